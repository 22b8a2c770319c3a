"""TPT from zero-shot and from learned prompts, against a plain transcription, by the text of a tiny CLIP."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from plain_methods import by_confidence
from torch.nn.functional import normalize, relu
from torch.testing import assert_close

import rada.methods.prompts as prompts
from encoders.tiny_models import MAKERS
from golden.make import QUICK, tiny_encoder
from methods.test_prompts import NAMES, text_of
from rada import Classifier, Features, TestTimeAdapter
from rada.core.errors import ConfigError
from rada.encoders import load_encoder
from rada.features import ClassSet
from rada.methods import Run, get_method, list_methods
from rada.methods.prompts import context_vectors
from rada.test_time import get_test_time_method
from rada.test_time.tpt import _has_prompts, tpt_logits

SCALE = 50.0
TPT = get_test_time_method("tpt")
LEARNED = ("coop", "cocoop", "kgcoop", "prograd")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def views(clip):
    """Twelve views of each of five images near the class features of a tiny CLIP."""
    generator = torch.Generator().manual_seed(0)
    text = clip.encode_classes(NAMES)
    labels = torch.arange(5) % 3
    found = text[labels][:, None] + torch.randn(5, 12, 24, generator=generator) / 8
    return Features(normalize(found, dim=-1), labels, NAMES, text_features=text, scale=SCALE)


@pytest.fixture(scope="module")
def models(clip, views):
    """Zero-shot and every method with prompts, fitted on other images."""
    data = dataclasses.replace(views, image_features=views.image_features[:, 5:6])
    run = Run(seed=1, encoder=clip)
    found = {"zero_shot": get_method("zero_shot").fit(data, None, run)}
    for name in LEARNED:
        method = get_method(name)
        quick = {**QUICK[name], "epochs": 3, "learning_rate": 0.02}
        found[name] = method.fit(data, method.config(**quick), run)
    return found


def start_of(model, encoder, image):
    """The context that the first step starts from."""
    if model.method.name == "zero_shot":
        return context_vectors(encoder, "a photo of a")
    if model.method.name != "cocoop":
        return model.context.detach().clone()
    first, first_bias, second, second_bias = (p.detach() for p in model.meta_net.parameters())
    return model.context.detach() + second @ relu(first @ image + first_bias) + second_bias


def plain(model, encoder, image, config):
    """One image: the confident views, one step of AdamW, the original view (TPT, section 3.2)."""
    context = start_of(model, encoder, image[0]).requires_grad_()
    text = text_of(encoder, context)
    kept = by_confidence(SCALE * image.double() @ text.detach().double().T)[
        : config.kept(len(image))
    ]
    mean = torch.stack([(SCALE * text @ image[view]).softmax(-1) for view in kept]).mean(0)
    (gradient,) = torch.autograd.grad(-(mean * mean.log()).sum(), context)
    with torch.no_grad():  # the first step of AdamW: both moments are the gradient's own
        context *= 1 - config.learning_rate * config.weight_decay
        context -= config.learning_rate * gradient / (gradient.abs() + 1e-8)
        return SCALE * text_of(encoder, context) @ image[0]


@pytest.mark.parametrize("name", ["zero_shot", *LEARNED])
def test_it_does_what_the_paper_says(name, clip, views, models):
    model, config = models[name], TPT.config(selection=0.3, learning_rate=0.05)
    classes = views.class_set()
    predict = TPT.predictor(model, classes, config)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = predict(views.image_features)
    expected = torch.stack([plain(model, clip, image, config) for image in views.image_features])
    assert_close(found, expected, atol=2e-3, rtol=1e-3)
    start = model.logits(views.plain(), classes)
    assert (found - start).abs().max() > 0.05  # a step was taken
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    alone = torch.cat([predict(image[None]) for image in views.image_features.flip(0)]).flip(0)
    assert torch.equal(alone, found)  # nothing is carried over from image to image


def test_from_zero_shot_by_itself(clip, views, models):
    config = TPT.config(selection=0.3)
    found = tpt_logits(clip, NAMES, views.image_features, config)
    model = models["zero_shot"]
    model = type(model)(
        model.method, dataclasses.replace(model.facts, scale=float(clip.scale)), model.config, clip
    )
    predict = TPT.predictor(model, views.class_set(), config)
    assert torch.equal(predict(views.image_features), found)


def test_zero_shot_starts_from_the_words_of_a_template(clip, views, models):
    def logits(templates=None, **fields):
        config = TPT.config(selection=0.3, **fields)
        options = {"classes": NAMES, "templates": templates, "progress": False}
        return TestTimeAdapter(clip, config, **options).logits(data)

    data = dataclasses.replace(views, text_features=None)
    for template in ("zzz dog {}.", "zzz dog {}"):
        assert np.array_equal(logits(template), logits(context="zzz dog"))
    assert not np.allclose(logits("zzz dog {}."), logits(), atol=1e-3)
    assert np.array_equal(logits(), logits(context="a photo of a"))
    assert np.array_equal(logits("a {} dog", context="zzz"), logits(context="zzz"))
    for templates in ("a {} dog", "{}.", ["a {}.", "zzz {}."]):
        with pytest.raises(ConfigError, match="--test-time-set context="):
            logits(templates)
    tested = TestTimeAdapter(clip, "tpt", classes=NAMES, templates="a zzz {}.", progress=False)
    told = tested.evaluate(data, baselines=False)
    assert told["test_time_config"]["context"] == "a zzz"


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_without_a_step_the_model_predicts(name, strength, clip, views, models):
    still = TPT.config(selection=0.3, learning_rate=1e-12, weight_decay=0.0)
    classes = ClassSet(("dog", "red", "blue"), clip.encode_classes(("dog", "red", "blue")))
    model = models[name]
    known = model.strength
    try:
        model.strength = dataclasses.replace(known, value=strength, temperature=2.0)
        found = TPT.predictor(model, classes, still)(views.image_features)
        assert_close(found, model.logits(views.plain(), classes), atol=1e-3, rtol=1e-4)
    finally:
        model.strength = known


@pytest.mark.parametrize("name", ["zero_shot", "coop", "cocoop"])
def test_many_classes_go_through_the_text_encoder_in_chunks(name, clip, views, models, monkeypatch):
    names = tuple(f"{a} {b}" for a in ("red", "blue", "dog") for b in ("cat", "car", "white"))
    classes = ClassSet(names, clip.encode_classes(names))
    seen, whole = [], type(clip).encode_texts_from_embeddings

    def watched(self, embeddings, tokens):
        seen.append(len(embeddings))
        return whole(self, embeddings, tokens)

    monkeypatch.setattr(type(clip), "encode_texts_from_embeddings", watched)
    found = []
    for chunk in (64, 4):
        monkeypatch.setattr(prompts, "TEXT_CHUNK", chunk)
        seen.clear()
        predict = TPT.predictor(models[name], classes, TPT.config(selection=0.3, steps=2))
        found.append(predict(views.image_features[:2]))
        assert max(seen) <= chunk
    assert_close(*found, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", ["siglip", "align", "open_clip", "chinese_clip"])
def test_it_starts_at_zero_shot_with_every_kind_of_tokenizer(family, tmp_path):
    torch.manual_seed(0)
    MAKERS[family](tmp_path / family)
    encoder = load_encoder(tmp_path / family)
    text = encoder.encode_classes(NAMES)
    views = normalize(text[:2, None] + torch.randn(2, 10, text.shape[1]) / 8, dim=-1)
    still = TPT.config(learning_rate=1e-12, weight_decay=0.0)
    found = tpt_logits(encoder, NAMES, views, still)
    assert_close(found, encoder.scale * views[:, 0] @ text.T, atol=2e-3, rtol=1e-3)


def test_what_has_no_prompts_of_its_own_is_refused_by_name(clip, views):
    data = dataclasses.replace(views, image_features=views.image_features[:, 5:6])
    run = Run(seed=1, encoder=clip)
    starts = []
    for method in list_methods():
        if "images" in method.needs:
            continue
        model = method.start(data, method.config(**QUICK.get(method.name, {})), run)
        model.encoder = clip
        try:
            TPT.check(model)
            starts.append(method.name)
        except ConfigError as error:
            assert f"not from {method.title}" in str(error) and "coop, cocoop, kgcoop" in str(error)
    assert starts == ["zero_shot", "zero_shot_ensemble", "coop", "cocoop", "kgcoop", "prograd"]


def test_class_features_of_more_than_the_context_are_no_start():
    class Deeper(prompts.PromptModel):
        def prepare(self, classes):
            return classes

    class OfImages(Deeper):
        def contexts(self, images):
            return self.context

    class Beside(OfImages):
        def score(self, images, classes):
            return images @ classes.text_features.T

    kinds = (prompts.PromptModel, Deeper, OfImages, Beside)
    assert [_has_prompts(kind) for kind in kinds] == [1, 0, 1, 0]


def test_the_words_of_the_configuration_are_for_zero_shot(views, models):
    config = TPT.config(context="a picture of the")
    with pytest.raises(ConfigError, match="CoOp has its own"):
        TPT.predictor(models["coop"], views.class_set(), config)
    assert math.isfinite(
        float(
            TPT.predictor(models["zero_shot"], views.class_set(), config)(
                views.image_features
            ).sum()
        )
    )


def test_a_saved_model_goes_on_from_its_prompts(clip, tmp_path):
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 255, (40, 40, 3), dtype=np.uint8) for _ in range(6)]
    options = {"workers": 0, "cache": False, "progress": False}
    config = get_method("cocoop").config(epochs=2, learning_rate=0.05)
    clf = Classifier(clip, config, ["red", "blue"], **options).fit((images, [0, 1] * 3), seed=1)
    clf.save_pretrained(tmp_path / "model")
    loaded = Classifier.from_pretrained(tmp_path / "model", encoder=clip, **options)
    settings = TPT.config(views=10, learning_rate=0.05)
    found = [TestTimeAdapter(one, settings).predict_proba(images) for one in (clf, loaded)]
    np.testing.assert_allclose(*found, atol=1e-6)
    assert np.abs(found[0] - clf.predict_proba(images)).max() > 1e-4
