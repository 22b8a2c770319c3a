"""ProLIP on a tiny CLIP: one matrix of the encoder learns, and nothing else."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from rada import Classifier, FineTuner, extract_features
from rada.core.errors import ConfigError, EncoderError
from rada.data import open_dataset
from rada.encoders import CustomEncoder, load_encoder
from rada.features import Features
from rada.methods import Run, get_method
from rada.pretrained import EncoderId, Fitted, load_model, save_model

METHOD = get_method("prolip")
PROJECTION = "visual_projection.weight"


@pytest.fixture
def examples(encoder, data) -> Features:
    split = open_dataset(data).split("train")
    features = extract_features(encoder, split, workers=0, progress=False)
    text = encoder.encode_classes(features.classes)
    return dataclasses.replace(features, text_features=text, scale=encoder.scale)


def fitted(examples, encoder, run=None, **changes):
    values = {"learning_rate": 1e-3, "iterations": 40} | changes
    return METHOD.fit(examples, METHOD.config(**values), run or Run(seed=1, encoder=encoder))


def transcription(encoder, data, rate, steps):
    """ProLIP's loop on what CLIP's vision model gives its projection; 5 shots a class."""
    split = open_dataset(data).split("train")
    pixels = torch.stack([encoder.preprocess(split.load(i)) for i in range(len(split))])
    text = encoder.encode_classes(split.classes)
    labels = torch.from_numpy(split.labels.copy())
    with torch.no_grad():
        before = encoder.model.vision_model(pixels).pooler_output
    start = encoder.model.visual_projection.weight.detach().clone()
    weight = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([weight], lr=rate, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        logits = encoder.scale * normalize(before @ weight.T, dim=-1) @ text.T
        loss = cross_entropy(logits, labels) + ((weight - start) ** 2).sum() / 5
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return weight.detach()


def test_it_is_the_papers_loop(encoder, data, examples):
    expected = transcription(encoder, data, 1e-3, 40)
    model = fitted(examples, encoder)
    start = encoder.model.visual_projection.weight.detach()
    found = model.encoder.model.visual_projection.weight.detach()
    assert (expected - start).abs().max() > 5e-3
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)


def test_nothing_but_the_projection_changes(encoder, examples):
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    model = fitted(examples, encoder)
    assert model.trainable_parameters() == encoder.model.visual_projection.weight.numel()
    own = model.encoder.model.state_dict()
    assert [key for key, value in own.items() if not torch.equal(value, before[key])] == [
        PROJECTION
    ]
    assert all(torch.equal(v, before[k]) for k, v in encoder.model.state_dict().items())
    assert torch.equal(model.weight, own[PROJECTION])


def test_starts_as_zero_shot_and_learns(encoder, examples):
    run = Run(seed=1, encoder=encoder)
    start = METHOD.start(examples, METHOD.config(), run)
    classes = examples.class_set()
    zero_shot = encoder.scale * examples.plain() @ classes.text_features.T
    found = start.logits(start.features_of(examples), classes)
    torch.testing.assert_close(found, zero_shot, atol=1e-4, rtol=1e-4)
    model = fitted(examples, encoder, iterations=300)
    after = model.logits(model.features_of(examples), classes)
    right = [(x.argmax(1) == examples.labels).float().mean() for x in (zero_shot, after)]
    assert right[1] > right[0] + 0.1


def test_published_rate_lowers_the_loss(encoder, examples):
    history = METHOD.fit(examples, run=Run(seed=1, encoder=encoder)).record["history"]
    assert len(history) == 300 and history[-1]["loss"] < history[0]["loss"]
    assert history[0]["pull"] == 0 < history[-1]["pull"]


def test_features_alone_are_refused_with_what_to_do(encoder, examples):
    alone = dataclasses.replace(examples, images=None)
    with pytest.raises(ConfigError, match=r"prolip trains the projection inside.*'rla'"):
        fitted(alone, encoder)
    with pytest.raises(ConfigError, match="features alone"):
        Classifier(None, "prolip", progress=False).fit(alone)


def test_an_encoder_without_projection_is_refused_by_name(examples):
    layer = torch.nn.Linear(3, 3)
    pair = CustomEncoder(
        lambda x: layer(x.mean((2, 3))), lambda t: torch.eye(3), 10.0, 3, image_module=layer
    )
    with pytest.raises(EncoderError, match="does not offer 'image_projection'"):
        fitted(examples, pair)


def test_views_are_those_of_the_images(encoder, examples):
    one, more, again = (fitted(examples, encoder, views=v).weight for v in (1, 3, 3))
    assert torch.equal(more, again) and not torch.equal(one, more)


def test_goes_on_from_its_state(encoder, examples, tmp_path, monkeypatch):
    import rada.training.state as training

    whole = fitted(examples, encoder)
    save = training.TrainingState.save

    def dies(self, path):
        save(self, path)
        raise RuntimeError("the machine is gone")

    run = Run(seed=1, encoder=encoder, state_dir=tmp_path)
    monkeypatch.setattr(training.TrainingState, "save", dies)
    with pytest.raises(RuntimeError, match="gone"):
        fitted(examples, encoder, run)
    monkeypatch.undo()
    assert (tmp_path / "state.safetensors").stat().st_size < 20_000  # the matrix, not the encoder
    assert torch.equal(fitted(examples, encoder, run).weight, whole.weight)


def test_wise_ft_is_between_the_two_projections(encoder, examples, tmp_path):
    whole = fitted(examples, encoder)
    half = fitted(examples, encoder, wise_alpha=0.5)
    start = encoder.model.visual_projection.weight
    torch.testing.assert_close(half.weight, (start + whole.weight) / 2)
    assert torch.equal(half.encoder.model.visual_projection.weight, half.weight)
    with whole.averaged(0.5):
        torch.testing.assert_close(whole.encoder.model.visual_projection.weight, half.weight)
    origin = EncoderId(encoder.name, encoder.fingerprint)
    save_model(tmp_path / "it", Fitted(half, examples.classes, encoder=origin))
    loaded = load_model(tmp_path / "it").model
    assert torch.equal(loaded.weight, half.weight)
    assert torch.equal(loaded.encoder.model.visual_projection.weight, half.weight)


def test_in_the_fine_tuner(model_folder, data, dark, tmp_path):
    config = METHOD.config(learning_rate=1e-3, iterations=200)
    tuner = FineTuner(load_encoder(model_folder), "prolip", config, progress=False, workers=0)
    result = tuner.fit(
        data, seed=1, ood={"dark": dark}, wise=(0, 0.5, 1), output_dir=tmp_path / "out"
    )
    first, _, last = result["wise"]
    for part in ("in_distribution", "out_of_distribution"):
        assert first[part] == result["zero_shot"][part] and last[part] == result["tuned"][part]
    accuracy = [result[key]["in_distribution"]["accuracy"] for key in ("zero_shot", "tuned")]
    assert accuracy[1] > accuracy[0]
    clf = Classifier.from_pretrained(tmp_path / "out", workers=0, cache=False)
    assert clf.score(str(data / "test")) == pytest.approx(accuracy[1])


def test_a_projection_with_a_bias(tmp_path, data):
    from encoders.tiny_models import MAKERS

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MAKERS["open_clip_resnet"](tmp_path / "resnet")
    encoder = load_encoder(tmp_path / "resnet")
    split = open_dataset(data).split("train")
    features = extract_features(encoder, split, workers=0, cache=False, progress=False)
    text = encoder.encode_classes(features.classes)
    examples = dataclasses.replace(features, text_features=text, scale=encoder.scale)
    model = fitted(examples, encoder)
    history = model.record["history"]
    found = model.logits(model.features_of(examples), examples.class_set())
    # The loop's last loss is that of the encoder with the new weights: the bias was counted.
    loss = cross_entropy(found, examples.labels)
    assert history[-1]["cross_entropy"] == pytest.approx(float(loss), abs=2e-2)
    assert float(loss) < history[0]["cross_entropy"]
    before, after = encoder.image_projection(), model.encoder.image_projection()
    assert torch.equal(before.bias, after.bias) and not torch.equal(before.weight, after.weight)
