"""PromptAlign from MaPLe's and DePT's prompts, against a plain loop over the layers of a tiny CLIP."""

from __future__ import annotations

import math

import pytest
import torch
from plain_methods import by_confidence
from tiny_views import write_images
from torch.nn.functional import linear
from torch.testing import assert_close

from finetune.plain_clip import image_features, text_features
from golden.make import TUNED, tiny_encoder
from methods.test_dept import probe_of
from rada import Classifier, TestTimeAdapter
from rada.core.errors import ConfigError
from rada.data.views import seeded_view
from rada.features import Features, extract_features
from rada.features.images import SplitReader
from rada.methods import get_method
from rada.test_time import get_test_time_method
from rada.test_time.views import view_transform

METHOD = get_test_time_method("prompt_align")
CONFIG = METHOD.config(views=8, selection=0.4, learning_rate=0.01, layers=2)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "images", count=6)


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory, images):
    encoder = tiny_encoder(tmp_path_factory.mktemp("clip") / "clip")
    found = {}
    for name in ("maple", "dept_maple", "mma", "rada_promptsrc"):
        own = {"strength": 1.0, "head_min_steps": 5} if name == "rada_promptsrc" else {}
        config = get_method(name).config(**TUNED | own | {"epochs": 2, "learning_rate": 0.02})
        clf = Classifier(encoder, name, config=config, workers=0, cache=False, progress=False)
        found[name] = clf.fit(images, seed=1)
    return found


def parts_of(p):
    """MaPLe's tokens of images and of texts."""
    text = [p["inserts.context"], p["inserts.deeper.0"]]
    names = ("projection", "projections.0")
    maps = [(p[f"inserts.{n}.weight"], p[f"inserts.{n}.bias"]) for n in names]
    return [linear(tokens, *own) for tokens, own in zip(text, maps, strict=True)], text


def plain(clf, images, index, names, config):
    """One image: the confident views, one step of AdamW on entropy and distance, the original view."""
    model, encoder = clf.model_, clf.encoder_
    clip, scale = encoder.model, encoder.scale
    prompts = [f"a photo of a {name}." for name in names]
    ids = torch.tensor(encoder.tokenizer(prompts, padding=True)["input_ids"])
    every = {key: value.detach().clone() for key, value in model.named_parameters()}
    own = {k: v.requires_grad_() for k, v in every.items() if k.startswith("inserts.")}
    with encoder_without_parts(model):
        transform = view_transform(encoder, config).transform
        digest = SplitReader(images).open(index).digest
        pixels = [encoder.preprocess(images.load(index))]
        pixels += [
            seeded_view(images.load(index), transform, config.seed, digest, view)
            for view in range(1, config.views)
        ]
        pixels = torch.stack(pixels)

        def logits(rows, inputs=None):
            image, text = parts_of(own)
            features = image_features(clip, rows, prompts=image, inputs=inputs)
            found = scale * features @ text_features(clip, ids, prompts=text).T
            if not hasattr(model, "decoupled"):
                return found
            return 0.3 * found + 0.7 * probe_of(every, features, "image")

        kept = by_confidence(logits(pixels).detach().double())[: config.kept(config.views)]
        inputs = []
        chances = logits(pixels[kept], inputs).softmax(-1).mean(0)
        loss = -(chances * chances.log()).sum()
        for tokens, mean, variance in zip(
            inputs[: config.layers], model.token_means, model.token_variances, strict=True
        ):
            spread = tokens.var(0, unbiased=False)
            far = (tokens.mean(0) - mean).abs().mean() + (spread - variance).abs().mean()
            loss = loss + config.weight / config.layers * far / 2
        optimizer = torch.optim.AdamW(own.values(), lr=config.learning_rate)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return logits(pixels[:1])[0].detach()


def encoder_without_parts(model):
    return model.plain_encoder()


@pytest.mark.parametrize("name", ["maple", "dept_maple"])
def test_it_is_one_step_from_the_confident_views(name, classifiers, images):
    clf = classifiers[name]
    before = {key: value.clone() for key, value in clf.model_.own_state().items()}
    version = clf.encoder_.version
    adapter = TestTimeAdapter(clf, CONFIG)
    found = torch.from_numpy(adapter.logits(images))
    expected = torch.stack(
        [plain(clf, images, index, clf.candidates(), CONFIG) for index in range(3)]
    )
    assert_close(found[:3], expected, atol=2e-3, rtol=1e-3)
    doing_nothing = torch.from_numpy(clf.logits(images))
    assert (found - doing_nothing).abs().max() > 0.05
    # The model is as it was, and an image does not change what the next one gets.
    assert clf.encoder_.version == version
    after = clf.model_.own_state()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    last = TestTimeAdapter(clf, CONFIG).logits(images.subset([5, 0]))
    assert_close(torch.from_numpy(last), found[[5, 0]], atol=1e-4, rtol=1e-4)
    free = TestTimeAdapter(clf, METHOD.config(**CONFIG.to_dict() | {"weight": 0.0}))
    assert (torch.from_numpy(free.logits(images)) - found).abs().max() > 1e-3


def test_statistics_are_those_of_the_training_images(classifiers, images):
    model, encoder = classifiers["maple"].model_, classifiers["maple"].encoder_
    pixels = torch.stack([encoder.preprocess(images.load(i)) for i in range(len(images))])
    inputs = []
    with torch.no_grad(), encoder_without_parts(model):
        prompts, _ = parts_of(dict(model.named_parameters()))
        image_features(encoder.model, pixels, prompts=prompts, inputs=inputs)
    assert_close(model.token_means, torch.stack(inputs).mean(1), atol=1e-5, rtol=1e-4)
    spread = torch.stack(inputs).var(1, unbiased=False)
    assert_close(model.token_variances, spread, atol=1e-5, rtol=1e-4)
    assert (spread[:, -2:] == 0).all() and spread[
        :, :-2
    ].max() > 1e-3  # two tokens are the same for all


def test_a_saved_model_a_stream_and_features_with_images_predict_the_same(
    classifiers, images, tmp_path
):
    clf = classifiers["maple"]
    expected = TestTimeAdapter(clf, CONFIG).predict_proba(images)
    clf.save_pretrained(tmp_path / "it")
    options = {"workers": 0, "cache": False, "progress": False}
    loaded = TestTimeAdapter(Classifier.from_pretrained(tmp_path / "it", **options), CONFIG)
    paths = [images.path(index) for index in range(len(images))]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    loaded.classifier.skip_bad = True
    for stream in ([paths[0], broken, *paths[1:]], [images.load(i) for i in range(6)]):
        found = [a for a in loaded.predict_stream(stream, top_k=2) if a.predictions]
        chances = [dict(answer.predictions) for answer in found]
        rows = [[row[name] for name in clf.candidates()] for row in chances]
        assert len(rows) == 6
        if stream[0] == paths[0]:  # images in memory have views of their own
            assert_close(torch.tensor(rows), torch.from_numpy(expected), atol=1e-4, rtol=1e-3)
    views = {"views": 8, "view_transform": view_transform(clf.encoder_, CONFIG), "workers": 0}
    data = extract_features(clf.encoder_, images, cache=False, progress=False, **views)
    streamed = [answer.predictions[0].probability for answer in loaded.predict_stream(data)]
    assert_close(torch.tensor(streamed), torch.from_numpy(expected).amax(1), atol=1e-4, rtol=1e-3)
    alone = Features(data.image_features, data.labels, data.classes)
    with pytest.raises(ConfigError, match="there are features alone: give images"):
        loaded.predict(alone)


def test_what_it_cannot_start_from_is_refused_by_name(classifiers, images):
    for name, title in (("mma", "MMA"), ("rada_promptsrc", "RAda")):
        with pytest.raises(ConfigError, match=rf"maple, promptsrc, .*not from {title}"):
            TestTimeAdapter(classifiers[name], CONFIG).predict(images)
    clf = classifiers["dept_maple"]
    kept, clf.model_.token_means = clf.model_.token_means, None
    try:
        with pytest.raises(ConfigError, match="fit it again, or leave them out"):
            TestTimeAdapter(clf, CONFIG).predict(images)
    finally:
        clf.model_.token_means = kept
    published = METHOD.config()
    assert (published.weight, published.steps, published.selection) == (100.0, 1, 0.1)
    assert (published.learning_rate, published.views) == (5e-4, 64)
    with pytest.raises(ConfigError, match="layers should be an integer from 1 to 3"):
        METHOD.config(layers=4)
    assert math.isclose(published.weight_decay, 0.01)
