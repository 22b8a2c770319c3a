"""The cache: never stale, never damaged, shared, and gone on with after a kill."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import TinyEncoder, write_images

from rada.data import ImageSplit
from rada.features import CacheWarning, FeatureCache, Features, ViewTransform, extract_features

HERE = Path(__file__).parent


class Refusing(TinyEncoder):
    """Has the fingerprint of a `TinyEncoder`, but must not be used."""

    def image_embeddings(self, pixels):
        raise AssertionError("encoded what the cache holds")


def shards(cache):
    return sorted(cache.root.rglob("*.safetensors"))


def run(encoder, split, cache, **options):
    return extract_features(
        encoder, split, **{"cache": cache, "batch_size": 4, "workers": 0} | options
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_second_run_encodes_nothing_and_is_equal_to_the_bit(encoder, split, cache, workers):
    first = run(encoder, split, cache, views=2, workers=workers)
    again = run(Refusing(), split, cache, views=2, workers=2 - workers)
    assert first.fingerprint == again.fingerprint
    assert len(shards(cache)) == 10


def test_more_views_and_another_folder_reuse_what_is_there(encoder, split, cache, tmp_path):
    one = run(encoder, split, cache)
    three = run(encoder, split, cache, views=3)
    assert len(shards(cache)) == 15
    assert torch.equal(three.plain(), one.plain())
    assert torch.equal(run(Refusing(), split, cache).plain(), one.plain())
    moved = shutil.copytree(tmp_path / "images", tmp_path / "moved")
    twin = type(split).from_files(moved, split.ids, labels=split.labels, classes=split.classes)
    assert torch.equal(run(Refusing(), twin, cache).plain(), one.plain())


def test_changes_are_never_answered_from_the_cache(encoder, split, cache, tmp_path):
    base = run(encoder, split, cache, views=2).image_features
    assert not torch.equal(run(TinyEncoder(seed=1), split, cache).plain(), base[:, 0])
    assert not torch.equal(run(TinyEncoder(resize=30), split, cache).plain(), base[:, 0])
    assert not torch.equal(run(encoder, split, cache, views=2, seed=5).image_features, base)
    bright = ViewTransform(lambda image: encoder.preprocess(image) + 1, "brighter")
    other = run(encoder, split, cache, views=2, view_transform=bright).image_features
    assert torch.equal(other[:, 0], base[:, 0]) and not torch.equal(other[:, 1], base[:, 1])
    order = list(reversed(range(20)))
    turned = run(encoder, split.subset(order), cache).plain()
    assert torch.allclose(turned[order], base[:, 0], atol=1e-6)

    path = tmp_path / "images" / "05.jpg"
    before = path.stat()
    Image.new("RGB", (40, 40), "red").save(path)
    content = path.read_bytes()
    path.write_bytes(content + bytes(max(0, before.st_size - len(content))))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same time and size
    changed = run(encoder, split, cache).plain()
    same = [torch.equal(*rows) for rows in zip(changed, base[:, 0], strict=True)]
    assert same == [index != 5 for index in range(20)]


def test_a_model_that_was_trained_is_another_model(encoder, split, cache):
    base = run(encoder, split, cache).plain()
    optimizer = torch.optim.SGD(encoder.trainable_parameters("image"), lr=0.1)
    encoder.forward_images(torch.rand(2, 3, 24, 24)).sum().backward()
    optimizer.step()
    assert not torch.allclose(run(encoder, split, cache).plain(), base, atol=1e-4)
    assert len(cache.list()) == 2


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "empty": lambda path: path.write_bytes(b""),
    "one bit of the features": flip,
    "another shard's": lambda path: shutil.copy(sorted(path.parent.iterdir())[0], path),
    "a foreign file": lambda path: path.write_bytes(b"hello, this is not a feature file" * 9),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_found_and_rebuilt(encoder, split, cache, kind):
    expected = run(encoder, split, cache)
    DAMAGE[kind](shards(cache)[2])
    with pytest.warns(CacheWarning, match=r"damaged cache file .* encoded again"):
        assert run(encoder, split, cache, workers=2).fingerprint == expected.fingerprint
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(Refusing(), split, cache).fingerprint == expected.fingerprint


def test_bad_images_in_the_cache(encoder, split, cache, tmp_path):
    bad = tmp_path / "images" / "02.png"
    good = bad.read_bytes()
    bad.write_bytes(b"no image")
    first = run(encoder, split, cache, skip_bad=True)
    again = run(Refusing(), split, cache, skip_bad=True)
    assert again.fingerprint == first.fingerprint and again.skipped == first.skipped
    assert again.skipped[0][0] == "02.png" and len(again) == 19
    bad.write_bytes(good)
    assert len(run(encoder, split, cache, skip_bad=True)) == 20


def test_list_and_clear(encoder, split, cache):
    assert cache.list() == [] and cache.clear() == 0
    run(encoder, split, cache, views=2)
    run(TinyEncoder(seed=1, name="other"), split, cache)
    other, tiny = cache.list()
    assert (tiny.encoder, tiny.images, other.encoder, other.images) == ("tiny", 40, "other", 20)
    assert tiny.bytes == sum(p.stat().st_size for p in shards(cache) if tiny.fingerprint in str(p))
    assert abs(tiny.last_used - time.time()) < 60
    assert cache.clear(older_than=3600) == 0 and len(cache.list()) == 2
    for path in shards(cache)[:3]:
        os.utime(path, (0, 0))
    assert cache.clear(older_than=3600) > 0 and len(shards(cache)) == 12
    mine = cache.root / "mine.txt"
    mine.write_text("not the cache's")
    (cache.root / other.fingerprint / "note").write_text("nor this")
    assert cache.clear() > 0 and cache.list() == []
    assert mine.exists() and (cache.root / other.fingerprint / "note").exists()


def test_a_hit_counts_as_use(encoder, split, cache):
    run(encoder, split, cache)
    for path in shards(cache):
        os.utime(path, (0, 0))
    run(Refusing(), split, cache)
    assert cache.list()[0].last_used > time.time() - 60


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("RADA_CACHE", str(tmp_path))
    assert FeatureCache().root == tmp_path / "features"
    monkeypatch.delenv("RADA_CACHE")
    assert FeatureCache().root.parts[-2:] == ("rada", "features")


@pytest.fixture
def ordinary_user():
    """Give up root's right to write anywhere while the test runs."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def open_folder():
    """A folder that any user may reach; pytest's own are private."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="rada-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("mode", [0o000, 0o555])
@pytest.mark.parametrize("workers", [0, 2])
def test_no_permission(encoder, open_folder, request, mode, workers):
    split = write_images(open_folder / "images", 8)
    root = open_folder / "cache"
    root.mkdir(mode=0o777)
    root.chmod(mode)
    request.getfixturevalue("ordinary_user")
    with pytest.warns(CacheWarning, match=r"cache.*permission.*RADA_CACHE.*--no-cache.*goes on"):
        found = run(encoder, split, FeatureCache(root), workers=workers)
    assert found.fingerprint == run(encoder, split, False).fingerprint


def test_a_cache_that_may_only_be_read_is_read(encoder, open_folder, request):
    split = write_images(open_folder / "images", 8)
    root = open_folder / "cache"
    expected = run(encoder, split, FeatureCache(root))
    request.getfixturevalue("ordinary_user")
    assert run(Refusing(), split, FeatureCache(root)).fingerprint == expected.fingerprint


def test_a_file_where_the_cache_should_be(encoder, split, tmp_path):
    (tmp_path / "file").touch()
    with pytest.warns(CacheWarning, match="a part of the path is a file.*goes on without") as said:
        found = run(encoder, split, FeatureCache(tmp_path / "file"))
    assert found.fingerprint == run(encoder, split, False).fingerprint
    assert len([entry for entry in said if entry.category is CacheWarning]) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_where_a_shard_should_be(encoder, split, cache, workers):
    """It ended every run until somebody removed it by hand."""
    expected = run(encoder, split, cache)
    for path in shards(cache):
        path.unlink()
        (path / "something").mkdir(parents=True)
    with pytest.warns(CacheWarning, match="goes on without"):
        found = run(encoder, split, cache, workers=workers)
    assert found.fingerprint == expected.fingerprint
    assert all((path / "something").is_dir() for path in shards(cache))  # nothing of it is deleted


def work_in_background(folder, name, cache, delay, workers):
    if os.getsid(0) != os.getpid():
        os.setsid()
    torch.set_num_threads(1)
    ids = [f"{i:02d}.{('png', 'jpg')[i % 2]}" for i in range(20)]
    labels = [i % 2 for i in range(20)]
    split = ImageSplit.from_files(folder / "images", ids, labels=labels, classes=("cat", "dog"))
    options = {"batch_size": 2, "views": 2, "workers": workers, "cache": FeatureCache(cache)}
    extract_features(TinyEncoder(delay=delay), split, **options).save(folder / name)


def start(folder, name, cache, delay=0.0, workers=2):
    """Extract features in another process, the leader of its own group."""
    arguments = (folder, name, cache, delay, workers)
    process = multiprocessing.get_context("fork").Process(target=work_in_background, args=arguments)
    process.start()
    return process


def group_is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_and_go_on_gives_the_same_bits(split, cache, tmp_path, workers):
    root = cache.root.parent
    killed = start(tmp_path, "killed", root, delay=0.15, workers=workers)
    wait_until(lambda: len(shards(cache)) >= 5, 60)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    kept = {path: path.read_bytes() for path in shards(cache)}
    assert 5 <= len(kept) < 20
    wait_until(lambda: not group_is_alive(killed.pid), 30)  # no orphans

    again = start(tmp_path, "again", root, workers=workers)
    fresh = start(tmp_path, "fresh", tmp_path / "other", workers=workers)
    for process in (again, fresh):
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "again").read_bytes() == (tmp_path / "fresh").read_bytes()
    assert all(path.read_bytes() == content for path, content in kept.items())


SCRIPT = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parents[1] / "src")!r}]
from test_cache import work_in_background
folder = Path(sys.argv[1])
work_in_background(folder, "out", folder / "cache", 0.2, 2)
"""


def test_ctrl_c_ends_cleanly(split, cache, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, tmp_path],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_until(lambda: len(shards(cache)) >= 3, 60)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0 and "KeyboardInterrupt" in stderr
    # An interrupt that comes while the library handles an error is printed after that error: the two are
    # one traceback. More of them would be those of workers that the interrupt reached as well.
    chained = stderr.count("During handling of the above exception")
    assert stderr.count("Traceback") - chained == 1, stderr
    wait_until(lambda: not group_is_alive(process.pid), 30)


def test_processes_share_a_cache(split, cache, tmp_path):
    root = cache.root.parent
    names = [f"out{index}" for index in range(3)]
    processes = [start(tmp_path, name, root, delay=0.02, workers=0) for name in names]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len({(tmp_path / name).read_bytes() for name in names}) == 1
    assert len(shards(cache)) == 20
    assert not list(cache.root.rglob("*.tmp"))


def test_decoding_is_part_of_the_name(encoder, cache, tmp_path, monkeypatch):
    """Features of JPEGs decoded at a fraction of their size are never taken for exact ones."""
    monkeypatch.setattr("rada.data.images._PHOTO", 0)
    split = write_images(tmp_path / "large", count=4, scale=8)
    fast = run(encoder, split, cache)
    exact = run(encoder, split, cache, exact_decoding=True)
    assert (fast.decoding, exact.decoding) == ("fast", "exact")
    changed = (fast.plain() != exact.plain()).any(1).tolist()
    assert changed == [False, True, False, True]  # every other file is a PNG
    kept = len(shards(cache))
    assert torch.equal(run(encoder, split, cache).plain(), fast.plain())
    again = run(encoder, split, cache, exact_decoding=True)
    assert torch.equal(again.plain(), exact.plain()) and len(shards(cache)) == kept == 2
    again.save(tmp_path / "rows.safetensors")
    assert Features.load(tmp_path / "rows.safetensors").decoding == "exact"


def test_views_see_the_whole_image(encoder, cache, tmp_path, monkeypatch):
    monkeypatch.setattr("rada.data.images._PHOTO", 0)
    split = write_images(tmp_path / "large", count=2, scale=8)
    fast = run(encoder, split, cache, views=3).image_features
    exact = run(encoder, split, False, views=3, exact_decoding=True).image_features
    assert torch.equal(fast[:, 1:], exact[:, 1:])
    assert torch.equal(fast[:, 0], run(encoder, split, False).plain())
