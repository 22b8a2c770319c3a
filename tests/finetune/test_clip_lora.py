"""CLIP-LoRA on tiny models: low-rank changes learn, nothing else, and end as plain weights."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn.functional import cross_entropy, linear, normalize

from encoders.tiny_models import MAKERS
from finetune.conftest import examples_of
from rada import Classifier, FineTuner
from rada.core.errors import EncoderError
from rada.encoders import load_encoder
from rada.features import ClassSet
from rada.methods import Run, get_method
from rada.pretrained import EncoderId, Fitted, load_model, save_model

METHOD = get_method("clip_lora")
QUICK = {"epochs": 6, "batch_size": 20, "learning_rate": 1e-2, "augmentation": "plain"}


def config(**changes):
    return METHOD.config(**QUICK | changes)


def fitted(examples, encoder, run=None, **changes):
    return METHOD.fit(examples, config(**changes), run or Run(seed=1, encoder=encoder))


def predicted(model, examples, classes=None):
    return model.logits(model.features_of(examples), classes or examples.class_set())


class PlainLora(torch.nn.Module):
    """A linear layer plus B A / sqrt(r), as CLIP-LoRA's code has it (alpha 1)."""

    def __init__(self, layer, first, second):
        super().__init__()
        self.layer = layer
        self.first = torch.nn.Parameter(first.clone())
        self.second = torch.nn.Parameter(second.clone())

    def forward(self, x):
        change = self.second @ self.first / math.sqrt(len(self.first))
        return self.layer(x) + linear(x, change)


def transcription(encoder, examples, starts, rate, steps):
    """The published loop; every step sees all images, and the text encoder runs in each."""
    split = examples.images
    pixels = torch.stack([encoder.preprocess(split.load(i)) for i in range(len(split))])
    prompts = [f"a photo of a {name}." for name in split.classes]
    tokens = encoder.tokenizer(prompts, padding=True, return_tensors="pt")
    model, own = encoder.model, []
    model.requires_grad_(False)
    for tower in (model.vision_model, model.text_model):
        for layer in tower.encoder.layers:
            for name in ("q_proj", "k_proj", "v_proj"):
                plain = getattr(layer.self_attn, name)
                key = next(key for key, value in model.named_modules() if value is plain)
                own.append(PlainLora(plain, *starts[key]))
                setattr(layer.self_attn, name, own[-1])
    parameters = [p for change in own for p in (change.first, change.second)]
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-2, betas=(0.9, 0.999), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-6)
    for _ in range(steps):
        images = normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        text = normalize(
            model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output,
            dim=-1,
        )
        loss = cross_entropy(encoder.scale * images @ text.T, examples.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return [
        (change.layer.weight + change.second @ change.first / math.sqrt(2)).detach()
        for change in own
    ]


def test_it_is_the_published_loop(encoder, examples):
    start = METHOD.start(examples, config(), Run(seed=1, encoder=encoder))
    starts = {
        name: (module.lora_A["default"].weight.detach(), module.lora_B["default"].weight.detach())
        for name, module in start.encoder_module.named_modules()
        if hasattr(module, "lora_A")
    }
    assert len(starts) == 2 * 2 * 3
    model = fitted(examples, encoder, dropout=0.0, epochs=10)
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    after = model.encoder.model.state_dict()
    expected = transcription(encoder, examples, starts, 1e-2, 10)
    names = [
        f"{tower}.encoder.layers.{layer}.self_attn.{name}.weight"
        for tower in ("vision_model", "text_model")
        for layer in (0, 1)
        for name in ("q_proj", "k_proj", "v_proj")
    ]
    for name, weight in zip(names, expected, strict=True):
        assert (weight - before[name]).abs().max() > 1e-3
        torch.testing.assert_close(after[name], weight, atol=3e-4, rtol=1e-3)
    assert {key for key, value in after.items() if not torch.equal(value, before[key])} == set(
        names
    )


def test_published_values_and_steps(encoder, examples):
    published = METHOD.config()
    values = (published.rank, published.alpha, published.dropout, published.learning_rate)
    assert values == (2, 1.0, 0.25, 2e-4)
    assert (published.weight_decay, published.batch_size, published.optimizer) == (
        0.01,
        32,
        "adamw",
    )
    assert published.final_learning_rate == 1e-6 and published.train == "both"
    assert published.steps(examples) == 2500  # 5 shots
    many = dataclasses.replace(
        examples,
        image_features=examples.image_features.repeat(6, 1, 1),
        labels=examples.labels.repeat(6),
        ids=(),
        images=None,
    )
    assert published.steps(many) == 8000  # 30 shots count as 16
    assert METHOD.config(epochs=3).steps(examples) == 3


@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_changes_alone_learn_and_start_as_zero_shot(library, encoder, open_clip_folder, data):
    if library == "open_clip":
        encoder = load_encoder(open_clip_folder)
    examples = examples_of(encoder, data)
    model = METHOD.start(examples, config(), Run(seed=1, encoder=encoder))
    classes = examples.class_set()
    zero_shot = encoder.scale * examples.plain() @ classes.text_features.T
    torch.testing.assert_close(predicted(model, examples), zero_shot, atol=1e-4, rtol=1e-4)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert learning and all(".lora_A." in name or ".lora_B." in name for name in learning)
    assert len(learning) == 2 * 2 * 2 * 3
    pixels = torch.stack([encoder.preprocess(examples.images.load(i)) for i in range(8)])
    model.training_mode()
    optimizer = torch.optim.SGD(learning.values(), lr=0.1)
    for _ in range(2):  # the first factor has a gradient when the second is not zero
        images, text = model.image_features(pixels), model.class_features(None)
        optimizer.zero_grad()
        cross_entropy(model.scale() * images @ text.T, examples.labels[:8]).backward()
        optimizer.step()
    assert all(p.grad.abs().sum() > 0 for p in learning.values())


@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_learns_saves_and_loads_without_peft(
    library, encoder, open_clip_folder, data, tmp_path, monkeypatch
):
    if library == "open_clip":
        encoder = load_encoder(open_clip_folder)
    examples = examples_of(encoder, data)
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    model = fitted(examples, encoder, epochs=15)
    assert all(torch.equal(v, before[k]) for k, v in encoder.model.state_dict().items())
    assert list(model.encoder.model.state_dict()) == list(before)
    found = predicted(model, examples)
    zero_shot = encoder.scale * examples.plain() @ examples.text_features.T
    right = [(x.argmax(1) == examples.labels).float().mean() for x in (zero_shot, found)]
    assert right[1] > right[0] + 0.2
    assert model.trainable_parameters() < 3000
    save_model(
        tmp_path / "it",
        Fitted(model, examples.classes, encoder=EncoderId(encoder.name, encoder.fingerprint)),
    )
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    loaded = load_model(tmp_path / "it").model
    torch.testing.assert_close(predicted(loaded, examples), found)
    assert loaded.trainable_parameters() == model.trainable_parameters()
    others = ClassSet(("red", "dog"), examples.text_features[:2])
    torch.testing.assert_close(
        predicted(loaded, examples, others), predicted(model, examples, others)
    )


def test_goes_on_from_its_state(examples, encoder, tmp_path, monkeypatch):
    from rada.training.encoder_loop import EncoderLoop

    changes = {"batch_size": 8, "epochs": 3, "checkpoint_every": 2, "augmentation": "random"}
    whole = fitted(examples, encoder, **changes)
    step = EncoderLoop._step

    def breaking(self, at, batches, state):
        if state.step == 5:
            raise RuntimeError("the machine is gone")
        return step(self, at, batches, state)

    run = Run(seed=1, encoder=encoder, state_dir=tmp_path)
    monkeypatch.setattr(EncoderLoop, "_step", breaking)
    with pytest.raises(RuntimeError, match="gone"):
        fitted(examples, encoder, run, **changes)
    monkeypatch.undo()
    assert max(p.stat().st_size for p in tmp_path.rglob("*.safetensors")) < 40_000
    again = fitted(examples, encoder, run, **changes)
    pairs = zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    other = fitted(examples, encoder, **changes | {"dropout": 0.0})
    name = "encoder_module.vision_model.encoder.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(other.state_dict()[name], whole.state_dict()[name])  # dropout is on


def test_wise_ft_is_the_line_between_the_weights(examples, encoder, model_folder, data, tmp_path):
    whole, half = (fitted(examples, encoder, wise_alpha=alpha) for alpha in (1.0, 0.5))
    name = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
    start, end = encoder.model.state_dict()[name], whole.encoder.model.state_dict()[name]
    torch.testing.assert_close(half.encoder.model.state_dict()[name], (start + end) / 2)
    tuner = FineTuner(load_encoder(model_folder), "clip_lora", config(), progress=False, workers=0)
    result = tuner.fit(data, seed=1, wise=(0, 0.5, 1), output_dir=tmp_path / "out")
    first, _, last = (entry["in_distribution"] for entry in result["wise"])
    assert first == result["zero_shot"]["in_distribution"]
    assert last == result["tuned"]["in_distribution"]
    assert tuner.fit(data, seed=1, wise=(0, 0.5, 1), output_dir=tmp_path / "out") == result
    clf = Classifier.from_pretrained(tmp_path / "out", workers=0, cache=False)
    assert clf.score(str(data / "test")) == pytest.approx(last["accuracy"])


def test_an_encoder_without_attention_is_refused_by_name(tmp_path, data):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MAKERS["open_clip_resnet"](tmp_path / "resnet")
    encoder = load_encoder(tmp_path / "resnet")
    examples = examples_of(encoder, data)
    with pytest.raises(EncoderError, match="does not offer 'image_attention'"):
        fitted(examples, encoder)
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    after = fitted(examples, encoder, train="text").encoder.model.state_dict()
    moved = [key for key, value in after.items() if not torch.equal(value, before[key])]
    assert moved == [f"transformer.resblocks.{i}.attn.in_proj_weight" for i in (0, 1)]
