"""Extraction without its cache: right features, any number of workers, bad images, streams."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import DIM, TinyEncoder

from rada.core.errors import ConfigError, DataError, EncoderError, FeatureError
from rada.data import ImageSplit
from rada.features import ViewTransform, extract_features, iter_features
from rada.features.images import SplitReader

QUICK = {"batch_size": 4, "cache": False}


def by_hand(encoder, split):
    """Encode one by one, without any of the code under test."""
    encoder.model.eval()
    with torch.no_grad():
        pixels = [encoder.preprocess(split.load(i)) for i in range(len(split))]
        return torch.cat([encoder.forward_images(p[None]) for p in pixels])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_features_are_those_of_the_encoder(encoder, split, workers):
    features = extract_features(encoder, split, workers=workers, **QUICK)
    assert features.image_features.shape == (20, 1, DIM)
    assert torch.allclose(features.plain(), by_hand(encoder, split), atol=1e-6)
    assert features.labels.tolist() == split.labels.tolist()
    assert features.ids == split.ids and features.classes == split.classes
    assert features.encoder == "tiny" and features.encoder_fingerprint == encoder.fingerprint


def test_views_depend_on_seed_and_image_alone(encoder, split):
    four = extract_features(encoder, split, views=4, seed=1, workers=2, **QUICK).image_features
    other = extract_features(encoder, split, views=4, seed=2, workers=0, **QUICK).image_features
    assert torch.allclose(four[:, 0], other[:, 0], atol=1e-6)
    assert not torch.allclose(four[:, 1], other[:, 1], atol=1e-3)
    assert not torch.allclose(four[:, 1], four[:, 2], atol=1e-3)
    order = list(range(19, -1, -1))
    turned = extract_features(
        encoder, split.subset(order), views=2, seed=1, workers=0, batch_size=7, cache=False
    )
    assert torch.allclose(turned.image_features[order], four[:, :2], atol=1e-6)


def test_own_view_transform(encoder, split):
    views = ViewTransform(encoder.preprocess, "plain again")
    two = extract_features(encoder, split, views=2, view_transform=views, **QUICK).image_features
    assert torch.allclose(two[:, 0], two[:, 1], atol=1e-6)


def test_the_global_generators_are_left_alone(encoder, split):
    torch.manual_seed(3)
    expected = torch.rand(2)
    for workers in (0, 2):
        torch.manual_seed(3)
        extract_features(encoder, split, views=2, workers=workers, **QUICK)
        assert torch.equal(torch.rand(2), expected)


def test_views_of_two_threads_are_those_of_one(encoder, split):
    """There is one source of random numbers for all threads: they take turns with it."""
    options = {"views": 6, "workers": 0, "progress": False, "cache": False}
    alone = {seed: extract_features(encoder, split, seed=seed, **options) for seed in (1, 2)}
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(extract_features, encoder, split, seed=n % 2 + 1, **options)
            for n in range(8)
        ]
    for number, job in enumerate(jobs):
        wanted = alone[number % 2 + 1].image_features
        assert torch.allclose(job.result().image_features, wanted, atol=1e-6)


def test_training_mode_is_neither_used_nor_lost(encoder, split):
    expected = by_hand(encoder, split)
    encoder.model.train()
    features = extract_features(encoder, split, workers=0, **QUICK)
    assert encoder.model.training
    assert torch.allclose(features.plain(), expected, atol=1e-6)


@pytest.fixture
def spoiled(tmp_path, split):
    (tmp_path / "images" / "02.png").write_bytes(b"no image")
    (tmp_path / "images" / "03.jpg").unlink()
    content = (tmp_path / "images" / "09.jpg").read_bytes()
    (tmp_path / "images" / "09.jpg").write_bytes(content[: len(content) // 3])
    return split


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named(encoder, spoiled, workers):
    with pytest.raises(DataError, match=r"02\.png.*1 more in the same batch.*--skip-bad") as caught:
        extract_features(encoder, spoiled, workers=workers, **QUICK)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("views", [1, 2])
def test_bad_images_are_skipped_and_counted(encoder, spoiled, workers, views):
    features = extract_features(
        encoder, spoiled, workers=workers, skip_bad=True, views=views, **QUICK
    )
    assert [name for name, _ in features.skipped] == ["02.png", "03.jpg", "09.jpg"]
    good = [i for i in range(20) if i not in (2, 3, 9)]
    assert features.ids == tuple(spoiled.ids[i] for i in good)
    assert features.labels.tolist() == [i % 2 for i in good]
    assert torch.allclose(features.plain(), by_hand(encoder, spoiled.subset(good)), atol=1e-6)


def test_only_bad_images(encoder, tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"")
    split = ImageSplit.from_files(tmp_path, ["a", "b"], labels=[0, 0], classes=("cat",))
    with pytest.raises(DataError, match="none of the 2 images"):
        extract_features(encoder, split, skip_bad=True, **QUICK)
    with pytest.raises(DataError, match="no images"):
        extract_features(encoder, split.subset([]), **QUICK)


@pytest.mark.parametrize("name", ["views", "batch_size", "workers"])
def test_bad_numbers(encoder, split, name):
    with pytest.raises(ConfigError, match=name):
        extract_features(encoder, split, **{"cache": False, name: -1})


def test_a_stream_is_taken_as_it_is_needed(encoder, split):
    taken = []

    def stream():
        for index in range(20):
            taken.append(index)
            yield split.path(index) if index % 3 else split.load(index)

    batches = iter_features(encoder, stream(), workers=0, **QUICK)
    first = next(batches)
    assert len(taken) == 4 and first.indices.tolist() == [0, 1, 2, 3]
    rows = torch.cat([first.features, *(batch.features for batch in batches)])
    assert torch.allclose(rows[:, 0], by_hand(encoder, split), atol=1e-6)


@pytest.mark.parametrize("workers", [None, 2])
def test_a_stream_through_workers(encoder, split, workers):
    paths = (str(split.path(index)) for index in range(20))
    batches = list(iter_features(encoder, paths, workers=workers, **QUICK))
    assert [(batch.start, batch.stop) for batch in batches] == [(i, i + 4) for i in range(0, 20, 4)]
    rows = torch.cat([batch.features for batch in batches])
    assert torch.allclose(rows[:, 0], by_hand(encoder, split), atol=1e-6)


def test_bad_images_of_a_stream(encoder, split, tmp_path):
    images = [split.path(0), tmp_path / "none.png", 3.5, tmp_path, split.path(1)]
    (batch,) = iter_features(encoder, images, cache=False, skip_bad=True)
    assert batch.indices.tolist() == [0, 4] and batch.features.shape == (2, 1, DIM)
    assert [bad.index for bad in batch.bad] == [1, 2, 3]
    assert "none.png" in batch.bad[0].reason and "3.5" in batch.bad[1].reason


def test_images_without_files(encoder):
    images = [Image.new("RGB", (30, 24 + i), (i * 20, 10, 200)) for i in range(5)]
    (batch,) = iter_features(encoder, images, cache=False)
    expected = torch.stack([encoder.preprocess(image) for image in images])
    assert torch.allclose(batch.features[:, 0], encoder.infer_images(expected), atol=1e-6)


def test_readers_and_splits_agree_on_digests(split):
    reader = SplitReader(split)
    for index in (0, 1):
        assert reader.open(index).digest == split.digest(index)


class BrokenEncoder(TinyEncoder):
    def image_embeddings(self, pixels):
        rows = super().image_embeddings(pixels).clone()
        rows[-1] = torch.nan
        return rows


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_encoder_is_named(split, cache, workers):
    with pytest.raises(FeatureError, match=r"'tiny' gave NaN.*03\.jpg"):
        extract_features(BrokenEncoder(), split, workers=workers, batch_size=4, cache=cache)
    assert cache.list() == []


class DyingEncoder(TinyEncoder):
    home = os.getpid()

    def image_embeddings(self, pixels):
        if os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image_embeddings(pixels)


def test_a_worker_that_dies_is_an_error_not_a_hang(split):
    with pytest.raises(EncoderError, match=r"worker process died .* lower the batch size"):
        extract_features(DyingEncoder(), split, workers=2, **QUICK)


class BuggyEncoder(TinyEncoder):
    def image_embeddings(self, pixels):
        raise RuntimeError("a bug")


def test_a_bug_in_a_worker_keeps_its_traceback(split):
    with pytest.raises(RuntimeError, match="image_embeddings"):
        extract_features(BuggyEncoder(), split, workers=2, **QUICK)


def test_stopping_early_leaves_no_workers(encoder, split):
    import multiprocessing

    batches = iter_features(encoder, split, workers=2, **QUICK)
    next(batches)
    batches.close()
    assert not multiprocessing.active_children()


def test_decoded_images_are_kept_between_views(encoder, split):
    from rada.features.work import BatchWork, Job

    class CountingReader(SplitReader):
        opened = 0

        def open(self, item):
            type(self).opened += 1
            return super().open(item)

    reader = CountingReader(split)
    views = ViewTransform(encoder.train_transform, "train")
    work = BatchWork(encoder, reader, views=views, seed=0, cache=None, keep=True)
    rows = [work.do(Job(0, tuple(range(4)), view)).rows for view in range(3)]
    assert reader.opened == 4
    assert not np.allclose(rows[1], rows[2])
