"""DePT on CoOp, CoCoOp and KgCoOp, against a plain transcription of its equations on a tiny CLIP."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy, linear

from methods.test_cocoop import plain_logits, shift
from methods.test_prompts import text_of
from methods.test_recipes import coop_rates
from rada.core.errors import ConfigError
from rada.features import ClassSet
from rada.methods import Run, get_method

NAMES = ["dept_coop", "dept_kgcoop"]
HEAD = ("image_scale", "image_shift", "text_scale", "text_shift")


def probe_of(p, features, side):
    """The linear classifier on scaled and shifted features of the length that CLIP's own have."""
    shifted = p[f"decoupled.{side}_scale"] * (10 * features) + p[f"decoupled.{side}_shift"]
    return linear(shifted, p["decoupled.probe.weight"], p["decoupled.probe.bias"])


def transcription(name, clip, data, own, epochs):
    """The published loop: SGD, the probe's parts at 6.5 times the rate; all images are one batch."""
    slow = [own["context"]]
    fast = [value for key, value in own.items() if key != "context"]
    optimizer = torch.optim.SGD(
        [{"params": slow}, {"params": fast}], lr=1.0, momentum=0.9, weight_decay=5e-4
    )
    rates = zip(coop_rates(epochs, 3.5e-3), coop_rates(epochs, 6.5 * 3.5e-3), strict=True)
    images, labels = data.plain(), data.labels
    for pair in rates:
        for group, rate in zip(optimizer.param_groups, pair, strict=True):
            group["lr"] = rate
        text = text_of(clip, own["context"])
        both = torch.cat([probe_of(own, text[labels], "text"), probe_of(own, images, "image")])
        loss = 0.3 * cross_entropy(data.scale * images @ text.T, labels)
        loss = loss + 0.7 * cross_entropy(both, labels.repeat(2))
        if name == "dept_kgcoop":
            loss = loss + 2 * (1 - cosine_similarity(text, data.text_features).mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {key: value.detach() for key, value in own.items()}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_published_loop(name, clip, text_data):
    method, run = get_method(name), Run(seed=1, encoder=clip)
    config = method.config(epochs=12, batch_size=6)
    start = method.start(text_data, config, run)
    first = {k: v.detach().clone() for k, v in start.named_parameters() if v.requires_grad}
    assert first.keys() == {
        *(f"decoupled.{part}" for part in HEAD),
        *("context", "decoupled.probe.weight", "decoupled.probe.bias"),
    }
    own = {key: value.clone().requires_grad_() for key, value in first.items()}
    clip.freeze()
    expected = transcription(name, clip, text_data, own, 12)
    model = method.fit(text_data, config, run)
    found = {k: v.detach() for k, v in model.named_parameters() if k in first}
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=2e-5, rtol=2e-3)
        assert (value - first[key]).abs().max() > 1e-4, key
    # Trained classes, in any order, get probe and prompts; others the prompts alone.
    images, text = text_data.plain(), text_of(clip, found["context"])
    fused = 0.7 * probe_of(found, images, "image") + 0.3 * text_data.scale * images @ text.T
    classes = text_data.class_set().take([2, 0])
    torch.testing.assert_close(
        model.logits(images, classes), fused[:, [2, 0]], atol=1e-3, rtol=1e-3
    )
    names = ("red", "dog")
    others = ClassSet(names, clip.encode_classes(names))
    prompts = text_data.scale * images @ model.prepare(others).text_features.T
    torch.testing.assert_close(model.logits(images, others), prompts.detach(), atol=1e-3, rtol=1e-3)
    longer = method.fit(text_data, method.config(epochs=20, batch_size=2), run)
    right = [
        (m.logits(images, text_data.class_set()).argmax(1) == text_data.labels).float().mean()
        for m in (start, longer)
    ]
    assert right[1] > right[0] + 0.2


NETWORK = [f"meta_net.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")]


def test_on_cocoop_the_probe_sees_the_class_features_that_each_image_made(clip, text_data):
    method, run = get_method("dept_cocoop"), Run(seed=1, encoder=clip)
    config = method.config(epochs=6, batch_size=6, reduction=3)
    start = method.start(text_data, config, run)
    first = {k: v.detach().clone() for k, v in start.named_parameters() if v.requires_grad}
    assert first.keys() == {
        *(f"decoupled.{part}" for part in (*HEAD, "probe.weight", "probe.bias")),
        *("context", *NETWORK),
    }
    own = {key: value.clone().requires_grad_() for key, value in first.items()}
    clip.freeze()
    slow = [value for key, value in own.items() if not key.startswith("decoupled.")]
    fast = [value for key, value in own.items() if key.startswith("decoupled.")]
    optimizer = torch.optim.SGD(
        [{"params": slow}, {"params": fast}], lr=1.0, momentum=0.9, weight_decay=5e-4
    )
    images, labels, scale = text_data.plain(), text_data.labels, text_data.scale
    rates = zip(coop_rates(6, 3.5e-3), coop_rates(6, 6.5 * 3.5e-3), strict=True)
    for pair in rates:
        for group, rate in zip(optimizer.param_groups, pair, strict=True):
            group["lr"] = rate
        network, loss = [own[key] for key in NETWORK], 0.0
        for image, label in zip(images, labels, strict=True):  # one image after the other
            text = text_of(clip, own["context"] + shift(network, image))
            both = [probe_of(own, text[label], "text"), probe_of(own, image, "image")]
            loss = loss + 0.3 * cross_entropy(scale * text @ image, label) / len(images)
            loss = loss + 0.7 * sum(cross_entropy(x, label) for x in both) / (2 * len(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model = method.fit(text_data, config, run)
    found = {k: v.detach() for k, v in model.named_parameters() if k in first}
    for key, value in own.items():
        torch.testing.assert_close(found[key], value.detach(), atol=2e-5, rtol=2e-3)
        assert (value - first[key]).abs().max() > 1e-5, key
    network = [found[key] for key in NETWORK]
    host = plain_logits(clip, text_data, found["context"], network).detach()
    fused = 0.7 * probe_of(found, images, "image") + 0.3 * host
    classes = text_data.class_set()
    torch.testing.assert_close(model.logits(images, classes), fused, atol=1e-3, rtol=1e-3)
    terms = model.terms(images, model.prepare(classes.take([2, 0])))
    torch.testing.assert_close(terms.logits(), fused[:, [2, 0]], atol=1e-3, rtol=1e-3)
    others = ClassSet(("red", "dog"), clip.encode_classes(("red", "dog")))
    prompts = model.cosines(images, model.texts_of(images, others)).detach()
    torch.testing.assert_close(model.logits(images, others), prompts, atol=1e-3, rtol=1e-3)
    new = model.terms(images, model.prepare(others))
    torch.testing.assert_close(new.logits(), prompts, atol=1e-3, rtol=1e-3)


def test_published_values_and_their_ranges():
    for name in (*NAMES, "dept_cocoop"):
        config = get_method(name).config()
        assert (config.probe_weight, config.probe_rate, config.epochs) == (0.7, 6.5, 10)
        assert (config.learning_rate, config.batch_size, config.optimizer) == (3.5e-3, 4, "sgd")
    assert get_method("dept_kgcoop").config().weight == 2.0
    with pytest.raises(
        ConfigError, match=r"probe_weight should be in \[0, 1\], but the value passed is 1.5"
    ):
        get_method("dept_coop").config(probe_weight=1.5)
