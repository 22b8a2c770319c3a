"""Methods that put parts into frozen encoders, against plain loops over CLIP's layers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, linear, relu

from encoders.tiny_models import MAKERS
from finetune.conftest import examples_of
from finetune.plain_clip import image_features, text_features
from methods.test_dept import probe_of
from methods.test_recipes import coop_rates
from rada import FineTuner
from rada.core.errors import ConfigError, EncoderError
from rada.data.templates import PROMPTSRC_TEMPLATES
from rada.encoders import load_encoder
from rada.features import ClassSet
from rada.methods import Run, get_method
from rada.pretrained import EncoderId, Fitted, load_model, save_model
from rada.training.batches import Batch

PLAIN = ["maple", "promptsrc", "mma", "dept_maple", "dept_promptsrc"]
NAMES = [*PLAIN, "mmrl"]  # whose transcription is in test_mmrl
QUICK = {"epochs": 6, "batch_size": 20, "learning_rate": 0.05, "augmentation": "plain"}
# The features of a random encoder are nearly equal: SGD stays long where all answers are, AdamW does not.
LEAVES = {"batch_size": 4, "learning_rate": 0.01, "optimizer": "adamw", "schedule": "steps"}
LEARN = {
    "maple": LEAVES | {"epochs": 15},
    "promptsrc": LEAVES
    | {"epochs": 20, "average_mean": 20.0, "text_weight": 1.0, "image_weight": 1.0},
    "mma": {"epochs": 12, "learning_rate": 0.2},
    "mmrl": {**LEAVES, "epochs": 8},
    "dept_maple": {"epochs": 8, "batch_size": 4, "learning_rate": 0.01},
    "dept_promptsrc": {"epochs": 8, "batch_size": 4, "learning_rate": 0.01},
}
PROMPT = "a photo of a"


def config(name, **changes):
    return get_method(name).config(**QUICK | changes)


def fitted(name, examples, encoder, run=None, **changes):
    return get_method(name).fit(
        examples, config(name, **changes), run or Run(seed=1, encoder=encoder)
    )


def predicted(model, examples, classes=None):
    return model.logits(model.features_of(examples), classes or examples.class_set())


def ids_of(encoder, names):
    prompts = [f"{PROMPT} {name}." for name in names]
    return torch.tensor(encoder.tokenizer(prompts, padding=True)["input_ids"])


def pixels_of(encoder, examples):
    split = examples.images
    return torch.stack([encoder.preprocess(split.load(i)) for i in range(len(split))])


# What the published code computes, from the parameters by name ---------------------------------------


def maple_parts(p):
    text = [p["context"], p["deeper.0"]]
    maps = [
        ("projection.weight", "projection.bias"),
        ("projections.0.weight", "projections.0.bias"),
    ]
    images = [linear(tokens, p[w], p[b]) for tokens, (w, b) in zip(text, maps, strict=True)]
    return {"prompts": images}, {"prompts": text}


def promptsrc_parts(p):
    return {"prompts": [p["image.0"], p["image.1"]]}, {"prompts": [p["context"], p["text.0"]]}


def mma_parts(p):
    def branch(side, layer):
        def run(x):
            x = relu(linear(x, p[f"{side}.{layer}.down.weight"], p[f"{side}.{layer}.down.bias"]))
            x = relu(linear(x, p[f"shared.{layer}.weight"], p[f"shared.{layer}.bias"]))
            return 1e-3 * linear(x, p[f"{side}.{layer}.up.weight"], p[f"{side}.{layer}.up.bias"])

        return run

    return tuple(
        {"branches": [branch(side, layer) for layer in (0, 1)]} for side in ("image", "text")
    )


PARTS = {"maple": maple_parts, "promptsrc": promptsrc_parts, "mma": mma_parts}


def host_of(name):
    return name.removeprefix("dept_")


def both(name, encoder, parameters, pixels, names):
    inner = {k.removeprefix("inserts."): v for k, v in parameters.items()}
    images, text = PARTS[host_of(name)](inner)
    ids = ids_of(encoder, names)
    return (
        image_features(encoder.model, pixels, **images),
        text_features(encoder.model, ids, **text),
    )


def loss_of(name, encoder, parameters, pixels, examples, frozen, written):
    images, text = both(name, encoder, parameters, pixels, examples.classes)
    logits, labels = encoder.scale * images @ text.T, examples.labels
    loss = cross_entropy(logits, labels)
    if name.startswith("dept"):
        sides = (("image", images), ("text", text[labels]))
        probe = torch.cat([probe_of(parameters, rows, side) for side, rows in sides])
        loss = 0.3 * loss + 0.7 * cross_entropy(probe, labels.repeat(2))
    if host_of(name) != "promptsrc":
        return loss
    teacher = (encoder.scale * frozen @ written.T).log_softmax(1)
    divergence = (teacher.exp() * (teacher - logits.log_softmax(1))).sum() / logits.numel()
    return (
        loss + 25 * (text - written).abs().mean() + 10 * (images - frozen).abs().mean() + divergence
    )


def rates(name, epochs, peak):
    if name == "mma":  # no epoch at the small rate before the cosine
        return [peak * 0.5 * (1 + math.cos(math.pi * epoch / epochs)) for epoch in range(epochs)]
    return coop_rates(epochs, peak)


def transcription(name, encoder, examples, epochs, peak):
    """SGD, all images a step; returns the parameters that the method ends with."""
    start = get_method(name).start(examples, config(name), Run(seed=1, encoder=encoder))
    first = {k: v.detach().clone() for k, v in start.named_parameters() if v.requires_grad}
    own = {k: v.clone().requires_grad_() for k, v in first.items()}
    slow = [value for key, value in own.items() if key.startswith("inserts.")]
    fast = [value for key, value in own.items() if key.startswith("decoupled.")]
    pixels = pixels_of(encoder, examples)
    encoder.freeze()
    frozen = image_features(encoder.model, pixels)
    written = encoder.encode_classes(examples.classes, PROMPTSRC_TEMPLATES)
    groups = [{"params": part} for part in (slow, fast) if part]
    optimizer = torch.optim.SGD(groups, lr=peak, momentum=0.9, weight_decay=5e-4)
    fast_rates = rates(name, epochs, 6.5 * peak)
    gauss = [math.exp(-0.5 * (e - 15) ** 2) for e in range(1, epochs + 1)]
    average = {k: torch.zeros_like(v) for k, v in own.items()}
    for epoch, rate in enumerate(rates(name, epochs, peak)):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.param_groups[-1]["lr"] = fast_rates[epoch] if fast else rate
        loss = loss_of(name, encoder, own, pixels, examples, frozen, written)
        optimizer.zero_grad()
        loss.backward()
        if name == "mma":  # its gradient scaling layers: as if the branches were added as they are
            for value in own.values():
                value.grad *= 1000
        optimizer.step()
        for key, value in own.items():
            average[key] += gauss[epoch] / sum(gauss) * value.detach()
    ends = {k: v.detach() for k, v in own.items()}
    if host_of(name) == "promptsrc":  # its tokens are averaged, nothing else
        ends |= {k: v for k, v in average.items() if k.startswith("inserts.")}
    return first, ends


@pytest.mark.parametrize("name", PLAIN)
def test_it_is_the_published_loop(name, encoder, examples):
    epochs, peak = 5, 0.01 if name == "mma" else 0.02
    model = fitted(name, examples, encoder, epochs=epochs, learning_rate=peak)
    first, expected = transcription(name, encoder, examples, epochs, peak)
    found = dict(model.named_parameters())
    for key, value in expected.items():
        torch.testing.assert_close(found[key].detach(), value, atol=2e-4, rtol=2e-3)
    assert max((value - first[key]).abs().max() for key, value in expected.items()) > 1e-3
    # What it predicts is what the plain encoders say with these parts.
    images, text = both(name, encoder, expected, pixels_of(encoder, examples), examples.classes)
    logits = encoder.scale * images @ text.T
    if name.startswith("dept"):
        others = ClassSet((*examples.classes[:2], "dog"), examples.text_features[:3])
        torch.testing.assert_close(  # with a new class among them they are the prompts' alone
            predicted(model, examples, others)[:, :2], logits[:, :2], atol=2e-2, rtol=1e-2
        )
        logits = 0.3 * logits + 0.7 * probe_of(expected, images, "image")
    torch.testing.assert_close(predicted(model, examples), logits, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_the_parts_alone_learn_and_accuracy_rises(name, library, encoder, open_clip_folder, data):
    if library == "open_clip":
        encoder = load_encoder(open_clip_folder)
    examples = examples_of(encoder, data)
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    method, run = get_method(name), Run(seed=1, encoder=encoder)
    start = method.start(examples, config(name), run)
    learning = {key: p for key, p in start.named_parameters() if p.requires_grad}
    others = ("encoder_module.", "average.")
    parts = {key for key, _ in start.named_parameters() if not key.startswith(others)}
    assert learning.keys() == parts
    start.training_mode()
    pixels = pixels_of(encoder, examples)
    step = Batch(pixels, examples.labels, torch.ones(20), 20)
    start(step)["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning.values())
    model = fitted(name, examples, encoder, **LEARN[name])
    after = model.encoder.model.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert encoder.inserts is None
    labels = examples.labels
    right = [(predicted(m, examples).argmax(1) == labels).float().mean() for m in (start, model)]
    assert right[1] > right[0] + 0.2
    losses = [cross_entropy(predicted(m, examples), labels) for m in (start, model)]
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_saved_parts_are_small_and_load_into_the_named_encoder(
    name, encoder, examples, model_folder, tmp_path
):
    model = fitted(name, examples, encoder)
    origin = EncoderId(str(model_folder), encoder.fingerprint)
    save_model(tmp_path / "it", Fitted(model, examples.classes, encoder=origin))
    assert not (tmp_path / "it" / "encoder").exists()
    weights = sum(value.numel() for value in model.own_state().values())
    assert (tmp_path / "it" / "model.safetensors").stat().st_size < 4 * weights + 4000
    loaded = load_model(tmp_path / "it").model
    torch.testing.assert_close(predicted(loaded, examples), predicted(model, examples))
    others = ClassSet(("red", "dog"), examples.text_features[:2])
    found = predicted(loaded, examples, others)
    torch.testing.assert_close(found, predicted(model, examples, others))
    assert model.encoder.fingerprint == loaded.encoder.fingerprint != encoder.fingerprint
    given = load_model(tmp_path / "it", encoder=encoder).model
    assert encoder.inserts is None and given.encoder.model is encoder.model
    torch.testing.assert_close(predicted(given, examples), predicted(model, examples))


@pytest.mark.parametrize("name", NAMES)
def test_goes_on_from_its_state(name, examples, encoder, tmp_path, monkeypatch):
    from rada.training.encoder_loop import EncoderLoop

    changes = {"batch_size": 8, "epochs": 3, "checkpoint_every": 2, "augmentation": "random"}
    whole = fitted(name, examples, encoder, **changes)
    step = EncoderLoop._step

    def breaking(self, at, batches, state):
        if state.step == 5:
            raise RuntimeError("the machine is gone")
        return step(self, at, batches, state)

    run = Run(seed=1, encoder=encoder, state_dir=tmp_path)
    monkeypatch.setattr(EncoderLoop, "_step", breaking)
    with pytest.raises(RuntimeError, match="gone"):
        fitted(name, examples, encoder, run, **changes)
    monkeypatch.undo()
    again = fitted(name, examples, encoder, run, **changes)
    pairs = zip(whole.own_state().items(), again.own_state().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_published_values():
    maple, src, mma, dept_maple, dept_src = (get_method(name).config() for name in PLAIN)
    assert (dept_maple.epochs, dept_maple.batch_size, dept_maple.learning_rate) == (10, 4, 3.5e-3)
    for found in (dept_maple, dept_src):
        assert (found.probe_weight, found.probe_rate) == (0.7, 6.5)
    assert (maple.length, maple.depth, maple.learning_rate, maple.batch_size) == (2, 9, 3.5e-3, 4)
    assert (src.text_length, src.image_length, src.depth, src.epochs) == (4, 4, 9, 20)
    assert (src.learning_rate, src.batch_size, src.text_weight, src.image_weight) == (
        *(2.5e-3, 4, 25, 10),
    )
    assert (src.average_mean, src.average_deviation, maple.epochs, mma.epochs) == (15, 1, 5, 5)
    assert (mma.width, mma.layers, mma.branch_scale) == (32, 8, 1e-3)
    assert (mma.learning_rate, mma.batch_size) == (1.5e-3, 16)
    assert len(set(PROMPTSRC_TEMPLATES)) == 60 and "a photo of a {}." in PROMPTSRC_TEMPLATES
    for found in (maple, src, mma):
        assert (found.optimizer, found.weight_decay, found.warmup) == ("sgd", 5e-4, 0)


def test_mma_starts_near_zero_shot_and_prompts_at_their_words(encoder, examples):
    zero_shot = encoder.scale * examples.plain() @ examples.text_features.T
    start = get_method("mma").start(examples, config("mma"), Run(seed=1, encoder=encoder))
    torch.testing.assert_close(predicted(start, examples), zero_shot, atol=0.2, rtol=0.05)
    for name in ("maple", "promptsrc"):
        changes = config(name, depth=1)
        start = get_method(name).start(examples, changes, Run(seed=1, encoder=encoder))
        text = start.class_features(None).detach()
        torch.testing.assert_close(text, examples.text_features, atol=1e-5, rtol=1e-4)


def test_many_classes_learn_in_chunks_with_the_same_gradient(encoder, examples, monkeypatch):
    import rada.methods.deep_text as deep_text

    found = []
    for chunk in (64, 3):
        monkeypatch.setattr(deep_text, "TEXT_CHUNK", chunk)
        start = get_method("maple").start(examples, config("maple"), Run(seed=1, encoder=encoder))
        start.class_features(None).pow(3).sum().backward()
        found.append([p.grad for p in start.inserts.text_vectors()])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_what_cannot_carry_them_is_refused_by_name(tmp_path, data, encoder, examples):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MAKERS["open_clip_resnet"](tmp_path / "resnet")
    network = load_encoder(tmp_path / "resnet")
    for name, lacking in (
        *(("maple", "deep_image_prompts"), ("mma", "residual_branches")),
        ("mmrl", "deep_image_prompts"),
    ):
        with pytest.raises(EncoderError, match=f"does not offer '{lacking}'"):
            FineTuner(network, name)
    with pytest.raises(ConfigError, match="has 2 tokens, fewer than the 4 that learn"):
        fitted("promptsrc", examples, encoder, context="a photo")
    with pytest.raises(ConfigError, match="parts in both encoders"):
        config("mma", train="image")


def test_in_the_fine_tuner_with_wise_ft(model_folder, data, dark, tmp_path):
    tuner = FineTuner(
        load_encoder(model_folder), "promptsrc", config("promptsrc", epochs=3), progress=False
    )
    result = tuner.fit(data, seed=1, ood={"dark": dark}, wise=(0, 1), output_dir=tmp_path / "out")
    assert result["wise"][0]["in_distribution"] == result["zero_shot"]["in_distribution"]
    assert {"text_distance", "image_distance", "divergence"} <= result["history"][0].keys()
    again = tuner.fit(data, seed=1, ood={"dark": dark}, wise=(0, 1), output_dir=tmp_path / "out")
    assert again == result


def test_rada_promptsrc_is_the_head_on_promptsrc(encoder, examples, tmp_path):
    method = get_method("rada_promptsrc")
    head = {"head_epochs": 2, "head_min_steps": 30, "num_heads": 2}
    config = method.config(**QUICK | head | {"strength": 1.0})
    run = Run(seed=1, encoder=encoder, state_dir=tmp_path / "state")
    model = method.fit(examples, config, run)
    below = fitted("promptsrc", examples, encoder)
    for (key, value), (other, expected) in zip(
        model.inserts.named_parameters(), below.inserts.named_parameters(), strict=True
    ):
        assert key == other and torch.equal(value, expected)
    learned = dataclasses.replace(
        examples,
        image_features=below.features_of(examples),
        text_features=below.prepare(examples.class_set()).text_features,
    )
    rada = get_method("rada")
    own = rada.config(epochs=2, min_steps=30, num_heads=2, strength=1.0)
    above = rada.fit(learned, own, Run(seed=1))
    expected = above.logits(learned.plain(), learned.class_set())
    torch.testing.assert_close(predicted(model, examples), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, predicted(below, examples), atol=1e-2)
    # Strength 0 is PromptSRC alone, for new classes too.
    others = ClassSet(("red", "dog"), examples.text_features[:2])
    found = model.logits(model.features_of(examples), others, strength=0)
    torch.testing.assert_close(found, predicted(below, examples, others))
    save_model(
        tmp_path / "it",
        Fitted(model, examples.classes, encoder=EncoderId(encoder.name, encoder.fingerprint)),
    )
    loaded = load_model(tmp_path / "it", encoder=encoder).model
    torch.testing.assert_close(
        predicted(loaded, examples, others), predicted(model, examples, others)
    )
    again = method.fit(examples, config, run)  # from the states that are there
    assert torch.equal(predicted(again, examples), predicted(model, examples))


@pytest.mark.parametrize("stage", ["tokens", "head"])
def test_rada_promptsrc_goes_on_from_a_killed_run(stage, encoder, examples, tmp_path, monkeypatch):
    import rada.training.state as states
    from rada.training.encoder_loop import EncoderLoop

    method = get_method("rada_promptsrc")
    head = {"head_epochs": 3, "head_min_steps": 0, "num_heads": 2, "strength": 1.0}
    config = method.config(**QUICK | head | {"epochs": 2, "batch_size": 8, "checkpoint_every": 2})
    whole = method.fit(examples, config, Run(seed=1, encoder=encoder))
    kind, name = (EncoderLoop, "_step") if stage == "tokens" else (states.TrainingState, "save")
    usual = getattr(kind, name)

    def breaking(self, *arguments):
        found = usual(self, *arguments)
        reached = arguments[-1].step if stage == "tokens" else self.epoch
        if reached == (4 if stage == "tokens" else 1):
            raise RuntimeError("the machine is gone")
        return found

    run = Run(seed=1, encoder=encoder, state_dir=tmp_path)
    monkeypatch.setattr(kind, name, breaking)
    with pytest.raises(RuntimeError, match="gone"):
        method.fit(examples, config, run)
    monkeypatch.undo()
    again = method.fit(examples, config, run)
    pairs = zip(whole.own_state().items(), again.own_state().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_rada_promptsrc_chooses_its_strength_by_whole_runs(encoder, examples):
    method = get_method("rada_promptsrc")
    head = {"head_epochs": 1, "head_min_steps": 5, "num_heads": 2}
    config = method.config(**QUICK | head | {"epochs": 1})
    model = method.fit(examples, config, Run(seed=1, encoder=encoder))
    assert model.record["strength_choice"]["method"] == "classes"
    assert model.strength.classes == examples.classes
