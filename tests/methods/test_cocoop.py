"""CoCoOp against a plain transcription of its public code, on the text encoder of a tiny CLIP."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy, relu

import rada.methods.prompts as prompts
from methods.test_prompts import text_of
from methods.test_recipes import coop_rates
from rada.features import ClassSet
from rada.methods import Run, get_method
from rada.methods.prompts import context_vectors
from rada.training.feature_loop import _steps

METHOD = get_method("cocoop")
WIDE = {"reduction": 3}  # the tiny encoder is 24 wide: a sixteenth of that is one unit


@pytest.fixture
def run(clip):
    return Run(seed=1, encoder=clip)


def shift(weights, image):
    """The network between image features and shift, as two matrix products."""
    first, first_bias, second, second_bias = weights
    return second @ relu(first @ image + first_bias) + second_bias


def plain_logits(encoder, data, context, weights):
    """One image after the other through the text encoder."""
    rows = [
        data.scale * text_of(encoder, context + shift(weights, image)) @ image
        for image in data.plain()
    ]
    return torch.stack(rows)


def test_it_trains_as_its_public_code(clip, text_data, run):
    config = METHOD.config(epochs=3, learning_rate=0.02, **WIDE)
    begun = METHOD.start(text_data, config, run)
    context = begun.context.detach().clone().requires_grad_()
    weights = [p.detach().clone().requires_grad_() for p in begun.meta_net.parameters()]
    optimizer = torch.optim.SGD([context, *weights], lr=0.1, momentum=0.9, weight_decay=5e-4)
    for epoch, rate in enumerate(coop_rates(3, 0.02)):
        optimizer.param_groups[0]["lr"] = rate
        for step in _steps(text_data, config, run.seed, 0, epoch):
            (row,) = step.rows.tolist()
            image = text_data.plain()[row]
            logits = text_data.scale * text_of(clip, context + shift(weights, image)) @ image
            optimizer.zero_grad()
            loss = cross_entropy(logits[None], text_data.labels[row, None])
            loss.backward(inputs=[context, *weights])
            optimizer.step()
    model = METHOD.fit(text_data, config, run)
    found = [model.context, *model.meta_net.parameters()]
    for own, wanted, start in zip(
        found, [context, *weights], [begun.context, *begun.meta_net.parameters()], strict=True
    ):
        torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-3)
        assert (wanted - start).abs().max() > 1e-3
    expected = plain_logits(clip, text_data, context, weights).detach()
    logits = model.logits(text_data.plain(), text_data.class_set())
    torch.testing.assert_close(logits, expected, atol=1e-2, rtol=1e-3)


def test_it_starts_at_the_words_and_a_network_of_random_weights(clip, text_data, run):
    model = METHOD.start(text_data, METHOD.config(), run)
    assert torch.equal(model.context, context_vectors(clip, "a photo of a"))
    first, _, second = model.meta_net
    assert (first.out_features, second.in_features, second.out_features) == (24 // 16, 1, 32)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        assert torch.equal(first.weight, torch.nn.Linear(24, 1).weight)
    # Without the shift it is zero-shot; the shift of random weights is there from the start.
    classes = text_data.class_set()
    zero_shot = model.zero_shot_logits(text_data.plain(), classes)
    assert not torch.allclose(model.adapted_logits(text_data.plain(), classes), zero_shot, atol=0.1)
    with torch.no_grad():
        second.weight.zero_(), second.bias.zero_()
    found = model.adapted_logits(text_data.plain(), classes)
    torch.testing.assert_close(found, zero_shot, atol=1e-3, rtol=0)


def test_published_values():
    config = METHOD.config()
    assert (config.epochs, config.batch_size, config.reduction) == (10, 1, 16)
    assert (config.learning_rate, config.optimizer, config.schedule) == (0.002, "sgd", "epochs")
    assert config.context == "a photo of a"
    assert METHOD.cost == "text encoder" and "token_embeddings" in METHOD.needs


@pytest.mark.parametrize("turn", [0, 1])
def test_training_raises_the_accuracy_on_the_shots(turn, text_data, run):
    data = dataclasses.replace(text_data, labels=text_data.labels.roll(turn))
    config = METHOD.config(epochs=30, **WIDE)  # the published rate
    classes = data.class_set()

    def accuracy(model):
        return float((model.logits(data.plain(), classes).argmax(1) == data.labels).double().mean())

    before, after = METHOD.start(data, config, run), METHOD.fit(data, config, run)
    assert accuracy(after) >= accuracy(before) + 0.3
    assert after.record["history"][-1]["accuracy"] == accuracy(after)


def test_gradients_reach_the_context_and_the_network_alone(clip, text_data, run):
    clip.unfreeze()
    frozen = copy.deepcopy(clip.model.state_dict())
    model = METHOD.fit(text_data, METHOD.config(epochs=2, **WIDE), run)
    assert all(torch.equal(value, frozen[key]) for key, value in clip.model.state_dict().items())
    assert all(p.grad is None for p in clip.model.parameters())
    named = dict(model.named_parameters())
    assert set(named) == {"context"} | {
        f"meta_net.{n}.{k}" for n in (0, 2) for k in ("weight", "bias")
    }
    assert all(p.grad is not None and p.grad.any() for p in named.values())
    assert model.trainable_parameters() == 4 * 32 + (24 * 8 + 8) + (8 * 32 + 32)
    assert set(model.own_state()) == set(named)


def test_images_of_a_batch_do_not_touch_each_other(text_data, run):
    model = METHOD.fit(text_data, METHOD.config(epochs=1, **WIDE), run)
    images, classes = text_data.plain(), text_data.class_set()
    together = model.logits(images, classes)
    alone = torch.cat([model.logits(image[None], classes) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)
    assert model.prepare(classes) is classes


def test_the_text_encoder_runs_in_chunks_with_the_same_gradient(clip, text_data, run, monkeypatch):
    names = tuple(f"{a} {b}" for a in ("red", "blue", "dog") for b in ("cat", "car", "white"))
    classes = ClassSet(names, clip.encode_classes(names))
    model = METHOD.start(text_data, METHOD.config(**WIDE), run)
    seen, whole = [], type(clip).encode_texts_from_embeddings

    def watched(self, embeddings, tokens):
        seen.append(len(embeddings))
        return whole(self, embeddings, tokens)

    monkeypatch.setattr(type(clip), "encode_texts_from_embeddings", watched)
    found = []
    for chunk in (64, 4):
        monkeypatch.setattr(prompts, "TEXT_CHUNK", chunk)
        model.zero_grad()
        seen.clear()
        logits = model(text_data.plain(), classes)  # 6 images x 9 classes
        logits.square().mean().backward()
        assert max(seen) <= chunk
        predicted = model.logits(text_data.plain(), classes)
        torch.testing.assert_close(predicted, logits.detach(), atol=1e-4, rtol=1e-5)
        assert max(seen) <= chunk
        found.append((logits.detach(), *(p.grad.clone() for p in model.parameters())))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


def test_its_logits_are_explained_by_dimensions(text_data, run):
    model = METHOD.fit(text_data, METHOD.config(epochs=1, **WIDE), run)
    classes = text_data.class_set()
    terms = model.logit_terms(text_data.plain(), classes)
    assert not terms.rest
    wanted = model.logits(text_data.plain(), classes)
    torch.testing.assert_close(terms.logits(), wanted, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(terms.weights[0], terms.weights[1])  # each image has its own
