"""One matrix of tests for every method of full fine-tuning."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from fft.conftest import COLOURS, write_pictures
from rada.core.hashing import fingerprint_tensors
from torch.nn.functional import cross_entropy, log_softmax

from rada import FFTConfig, FineTuner, RAdaClassifier
from rada.core.errors import ConfigError, DataError, EncoderError
from rada.data import open_dataset
from rada.encoders import load_encoder
from rada.methods.finetune import get_fft_method, list_fft_methods
from rada.methods.finetune.flyp import contrast
from rada.methods.finetune.model import TunedModel
from rada.training.batches import Order, Step, StepData, training_transform

NAMES = [method.name for method in list_fft_methods()]
TOWERS = [method.name for method in list_fft_methods() if method.towers]
QUICK = FFTConfig(
    epochs=2,
    batch_size=8,
    learning_rate=1e-3,
    num_heads=2,
    head_epochs=2,
    evaluate_every=0,
    strength=1.0,  # how it is chosen is tested in test_fft_strength.py
)


def quick(name, **changes):
    config = dataclasses.replace(QUICK, **changes)
    return config if name in TOWERS else dataclasses.replace(config, learning_rate=None)


def tuned(name, encoder, data, seed=1, fit=None, **changes):
    tuner = FineTuner(encoder, name, quick(name, **changes), progress=False, workers=0)
    return tuner, tuner.fit(data, seed=seed, **(fit or {}))


def model_of(name, encoder, data, **changes):
    """Return a model before training, and a batch of its first step."""
    method = get_fft_method(name)
    config = method.resolve(quick(name, **changes))
    split = open_dataset(data).split("train")
    text = encoder.encode_classes(split.classes)
    templates = ("a photo of a {}.", "a picture of the {}.")
    model = TunedModel(encoder, method, config, split.classes, templates, text, seed=0)
    order = Order(torch.from_numpy(split.labels.copy()), len(split.classes), 8, 0, 2, seed=0)
    steps = StepData(
        split,
        order,
        training_transform(encoder, config),
        workers=0,
        templates=templates,
        captions=method.captions,
        parts=1,
        skip_bad=False,
        rank=0,
        processes=1,
        device=torch.device("cpu"),
    )
    _, (batch,) = next(iter(steps.steps(Step(0, 0), 1)))
    return model, batch


def pixels(encoder, data):
    split = open_dataset(data).split("test")
    return torch.stack([encoder.preprocess(split.load(i)) for i in range(len(split))])


def answers(model, encoder, data, names):
    features = encoder.infer_images(pixels(encoder, data))
    return model.logits(features, model.candidates(names))


def test_all_the_published_methods_are_there():
    assert set(NAMES) >= {"linear_probe", "ft", "l2_sp", "lp_ft", "flyp", "rada", "rada_ft"}
    assert all(len(method.source) > 20 and method.title for method in list_fft_methods())


@pytest.mark.parametrize("name", NAMES)
def test_starts_as_zero_shot(name, encoder, data):
    model, _ = model_of(name, encoder, data)
    features = encoder.infer_images(pixels(encoder, data))
    zero_shot = encoder.scale * features @ encoder.encode_classes(model.classes, model.templates).T
    if name in ("flyp", "rada_ft"):  # the text tower speaks by its templates' mean
        found = model.logits(features, model.candidates(model.classes))
    else:
        model.register_buffer("text", encoder.encode_classes(model.classes, model.templates))
        if model.vectors is not None:
            model.set_vectors(model.text * encoder.scale, torch.zeros(len(model.classes)))
        found = model.logits(features, model.candidates(model.classes))
    torch.testing.assert_close(found, zero_shot, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", TOWERS)
def test_gradients_in_everything_that_learns(name, encoder, data):
    model, batch = model_of(name, encoder, data)
    model.train_towers()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    learning = {key: value for key, value in model.named_parameters() if value.requires_grad}
    assert any(key.startswith("towers.vision_model") for key in learning)
    optimizer = torch.optim.SGD(learning.values(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model(batch)["loss"].backward()
        optimizer.step()
    dead = [key for key, value in learning.items() if value.grad is None or not value.grad.any()]
    # A key's bias shifts all scores of a query alike: its gradient is zero but for rounding.
    assert not [key for key in dead if not key.endswith("k_proj.bias")]
    still = [key for key, value in model.state_dict().items() if torch.equal(before[key], value)]
    assert {key for key in before if key not in learning} <= set(still)


@pytest.mark.parametrize("name", NAMES)
def test_learns_and_judges(name, encoder, data, dark):
    head = {"head_epochs": 30} if name.startswith("rada") else {}
    tuner, result = tuned(
        name, encoder, data, epochs=12, fit={"ood": {"dark": dark}, "wise": (0, 0.5, 1)}, **head
    )
    assert result["tuned"]["in_distribution"]["accuracy"] >= 0.75
    assert (
        result["tuned"]["in_distribution"]["accuracy"]
        > (result["zero_shot"]["in_distribution"]["accuracy"])
    )
    assert result["out_of_distribution"] == result["tuned"]["out_of_distribution"]
    assert (
        result["out_of_distribution"]["mean"] == result["out_of_distribution"]["dark"]["accuracy"]
    )
    first, _, last = result["wise"]
    for part in ("in_distribution", "out_of_distribution"):
        assert first[part] == result["zero_shot"][part] and last[part] == result["tuned"][part]
    assert tuner.classifier().score(data) == result["tuned"]["in_distribution"]["accuracy"]


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_weights_and_another_fit_starts_afresh(name, model_folder, data):
    states = []
    tuner = FineTuner(load_encoder(model_folder), name, quick(name), progress=False, workers=0)
    for _ in range(2):
        tuner.fit(data, seed=3)
        states.append(tuner.model.tuned())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    if name != "linear_probe":  # it has nothing random but its folds
        other, _ = tuned(name, load_encoder(model_folder), data, seed=4)
        assert any(not torch.equal(v, states[0][k]) for k, v in other.model.tuned().items())


@pytest.mark.parametrize("name", NAMES)
def test_saved_model_gives_the_same_answers(name, encoder, data, tmp_path):
    tuner, _ = tuned(name, encoder, data, fit={"output_dir": tmp_path / "out"})
    if tuner.model.biases is not None:
        assert tuner.model.biases.abs().max() > 1e-4
    expected = tuner.classifier().predict_proba(data / "test" / "red")
    model, found = tuner.model, pixels(encoder, data)[-4:]  # white comes last
    found = model.logits(encoder.infer_images(found), model.candidates(model.classes))
    white = tuner.classifier().predict_proba(data / "test" / "white")
    np.testing.assert_allclose(white, found.softmax(-1).numpy(), atol=1e-6)
    loaded = RAdaClassifier.from_pretrained(tmp_path / "out", progress=False)
    np.testing.assert_allclose(loaded.predict_proba(data / "test" / "red"), expected, atol=1e-6)
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(tmp_path / "out" / "encoder")  # without rada
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, encoder.model.state_dict()[key])
    if get_fft_method(name).has_vectors:
        with pytest.raises(DataError, match="'dog' is none of them"):
            loaded.text_features(["red", "dog"])


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_classes_permutes_the_answers(name, encoder, data):
    tuner, _ = tuned(name, encoder, data)
    names = list(tuner.model.classes)
    order = [2, 0, 3, 1]
    found = answers(tuner.model, encoder, data, [names[i] for i in order])
    torch.testing.assert_close(found, answers(tuner.model, encoder, data, names)[:, order])


@pytest.mark.parametrize("name", NAMES)
def test_one_class_is_refused(name, encoder, tmp_path):
    write_pictures(tmp_path / "one" / "train", 3, 0, names=["red"])
    with pytest.raises(DataError, match="at least 2"):
        FineTuner(encoder, name, quick(name), progress=False).fit(tmp_path / "one")


@pytest.mark.parametrize("name", TOWERS)
def test_parts_of_a_step_add_up(name, model_folder, data):
    if name == "flyp":
        pytest.skip("FLYP contrasts within a part, as its configuration says")
    _, a = tuned(name, load_encoder(model_folder), data, max_grad_norm=0.0)
    _, b = tuned(name, load_encoder(model_folder), data, max_grad_norm=0.0, accumulate=3)
    for one, two in zip(a["history"], b["history"], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4, abs=1e-5)


def test_contrast_against_a_plain_transcription():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    everything = torch.ones(4, dtype=torch.bool)
    expected = cross_entropy(logits, torch.arange(4), reduction="none")
    torch.testing.assert_close(contrast(logits, torch.eye(4).double(), everything), expected)
    known = torch.tensor([True, True, False, True])
    rows = [0, 1, 3]
    expected = cross_entropy(logits[rows][:, rows], torch.arange(3), reduction="none")
    torch.testing.assert_close(contrast(logits, torch.eye(4).double(), known)[rows], expected)


@pytest.mark.parametrize("same_class", ["negatives", "positives"])
def test_flyp_is_the_symmetric_contrastive_loss(same_class, encoder, data):
    model, batch = model_of("flyp", encoder, data, same_class=same_class)
    images = encoder.forward_images(batch.pixels)
    texts = encoder.forward_texts(encoder.tokenize(batch.captions))
    chances = log_softmax(encoder.scale * images @ texts.T, -1)
    back = log_softmax(encoder.scale * texts @ images.T, -1)
    same = (batch.labels[:, None] == batch.labels).float()
    target = torch.eye(8) if same_class == "negatives" else same / same.sum(1, keepdim=True)
    expected = -((target * chances).sum(1) + (target * back).sum(1)).mean() / 2
    torch.testing.assert_close(model(batch)["loss"], expected, rtol=1e-4, atol=1e-5)
    classes = [batch.captions[i].split()[-1].rstrip(".") for i in range(8)]
    assert [model.classes[label] for label in batch.labels] == classes


@pytest.mark.parametrize("name", ["ft", "l2_sp", "lp_ft"])
def test_the_head_is_the_linear_layer_of_the_public_code(name, encoder, data):
    """torch's `Linear` on unit features: weights from the text tower, a bias that learns from zero."""
    model, batch = model_of(name, encoder, data, l2_alpha=0.0, l2_beta=0.0)
    layer = torch.nn.Linear(encoder.dim, len(model.classes))
    with torch.no_grad():
        layer.weight.copy_(encoder.scale * encoder.encode_classes(model.classes))
        layer.bias.zero_()
    images = encoder.forward_images(batch.pixels).detach()
    for _ in range(3):  # the image tower held still, both learn the same
        model.zero_grad()
        model(batch)["loss"].backward()
        layer.zero_grad()
        cross_entropy(layer(images), batch.labels).backward()
        torch.testing.assert_close(model.biases.grad, layer.bias.grad, atol=1e-5, rtol=1e-3)
        with torch.no_grad():
            for own, other in ((model.vectors, layer.weight), (model.biases, layer.bias)):
                own -= 0.5 * other.grad
                other -= 0.5 * other.grad
    assert model.biases.abs().max() > 0.01
    text = model.candidates(model.classes)
    torch.testing.assert_close(
        model.logits(images, text), layer(images).detach(), atol=1e-4, rtol=1e-4
    )
    turned = model.logits(images, model.candidates(model.classes[::-1]))
    torch.testing.assert_close(turned, layer(images).detach().flip(1), atol=1e-4, rtol=1e-4)


def test_the_linear_probe_is_scikit_learns_with_its_offsets(encoder, data):
    from sklearn.linear_model import LogisticRegression

    tuner, _ = tuned("linear-probe", encoder, data)
    split = open_dataset(data).split("train")
    images = encoder.infer_images(
        torch.stack([encoder.preprocess(split.load(i)) for i in range(len(split))])
    )
    model = tuner.model
    offsets = [
        LogisticRegression(C=c, max_iter=2000).fit(images.numpy(), split.labels).intercept_
        for c in np.logspace(-2, 4, 7)
    ]
    found = model.biases.detach().numpy()
    assert np.abs(found).max() > 1e-3
    assert min(np.abs(found - wanted).max() for wanted in offsets) < 1e-2


def test_vectors_without_biases_still_load(encoder, data, tmp_path):
    """Models that were saved before there were biases."""
    from safetensors.torch import load_file, save_file

    tuner, _ = tuned("ft", encoder, data)
    with torch.no_grad():
        tuner.model.biases.zero_()
    expected = tuner.classifier().predict_proba(data / "test" / "red")
    tuner.save(tmp_path / "out")
    path, config = tmp_path / "out" / "classes.safetensors", tmp_path / "out" / "config.json"
    vectors = load_file(path)["vectors"]
    save_file({"vectors": vectors}, path, metadata={"format": "pt"})
    said = json.loads(config.read_text())
    config.write_text(json.dumps(said | {"weights_hash": fingerprint_tensors(vectors)}))
    loaded = RAdaClassifier.from_pretrained(tmp_path / "out", progress=False)
    np.testing.assert_allclose(loaded.predict_proba(data / "test" / "red"), expected, atol=1e-6)


def test_test_time_training_refuses_a_model_with_a_bias_a_class(encoder, data):
    from rada import TestTimeAdapter

    tuner, _ = tuned("ft", encoder, data)
    with pytest.raises(ConfigError, match="rada, rada-ft or flyp"):
        TestTimeAdapter(tuner.classifier())


def test_flyp_takes_its_captions_from_80_templates(encoder, data, monkeypatch):
    seen = []
    caption_features = TunedModel.caption_features

    def watched(self, captions):
        seen.extend(captions)
        return caption_features(self, captions)

    monkeypatch.setattr(TunedModel, "caption_features", watched)
    tuner, result = tuned("flyp", encoder, data, epochs=6)
    assert len(set(result["templates"])) == 80
    assert {"a bad photo of a {}.", "a photo of many {}.", "a tattoo of the {}."} <= set(
        result["templates"]
    )
    spelt = {t: {t.format(name) for name in COLOURS} for t in result["templates"]}
    assert set(seen) <= set().union(*spelt.values())
    assert sum(bool(words & set(seen)) for words in spelt.values()) > 40  # 120 draws of 80
    expected = encoder.encode_classes(tuner.model.classes, result["templates"])
    torch.testing.assert_close(tuner.model.candidates(tuner.model.classes).text, expected)
    _, other = tuned("ft", encoder, data)
    assert other["templates"] == ["a photo of a {}."]


def test_templates_that_are_given_are_flyps(model_folder, data):
    for given in ("a photo of a {}.", ["a {}.", "the {}."]):
        tuner = FineTuner(
            load_encoder(model_folder), "flyp", QUICK, templates=given, progress=False, workers=0
        )
        wanted = [given] if isinstance(given, str) else given
        assert tuner.fit(data)["templates"] == wanted
    assert get_fft_method("flyp").templates(("{} texture.",)) == ("{} texture.",)  # the data's own


def test_l2_sp_is_the_distance_to_the_pretrained_weights(encoder, data):
    model, batch = model_of("l2_sp", encoder, data, l2_alpha=0.5, l2_beta=0.1)
    assert model(batch)["penalty"].item() == 0
    with torch.no_grad():
        model.towers.visual_projection.weight.add_(0.1)
        model.vectors.add_(0.2)
        model.biases.add_(0.3)  # new weights: pulled to zero, with a weight of their own
    count, own = model.towers.visual_projection.weight.numel(), model.vectors.numel()
    expected = 0.25 * (count * 0.01 + own * 0.04) + 0.05 * len(model.classes) * 0.09
    assert model(batch)["penalty"].item() == pytest.approx(expected, rel=1e-3)


def test_rada_ft_is_cross_entropy_and_the_largest_deviation(encoder, data):
    model, batch = model_of("rada_ft", encoder, data, alpha=0.7)
    torch.nn.init.normal_(model.head.out.weight, std=0.02)
    images = encoder.forward_images(batch.pixels)
    text = model.class_features(None, 1)
    batch.template = 1
    output = model.head(images, text, encoder.scale, return_mask=True)
    expected = cross_entropy(output.logits, batch.labels)
    expected = expected + 0.7 * (output.mask - 1).abs().flatten(1).amax(1).mean()
    torch.testing.assert_close(model(batch)["loss"], expected, rtol=1e-4, atol=1e-5)


def test_towers_that_do_not_learn_stay_as_they_are(model_folder, data):
    for train, still in (("image", "text_model"), ("text", "vision_model")):
        encoder = load_encoder(model_folder)
        before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
        tuned("rada-ft", encoder, data, train=train, head_first=False)
        moved = {k for k, v in encoder.model.state_dict().items() if not torch.equal(v, before[k])}
        assert moved and not any(key.startswith(still) for key in moved)


def test_wise_alpha_is_what_is_kept(model_folder, data):
    tuner, result = tuned("ft", load_encoder(model_folder), data, wise_alpha=0.0)
    assert result["tuned"]["in_distribution"] == result["zero_shot"]["in_distribution"]
    assert all(torch.equal(v, tuner.model.start[k]) for k, v in tuner.model.tuned().items())


def test_best_epoch_by_the_validation_split_alone(encoder, data, tmp_path):
    _, result = tuned("ft", encoder, data, epochs=4, select="best")
    found = [entry["validation"]["accuracy"] for entry in result["history"]]
    assert result["best"]["accuracy"] == max(found)
    assert result["best"]["epoch"] == found.index(max(found)) + 1
    write_pictures(tmp_path / "noval" / "train", 3, 0)
    with pytest.raises(ConfigError, match="needs a validation split"):
        tuned("ft", encoder, tmp_path / "noval", select="best")


def test_a_split_that_selects_does_not_judge(encoder, tmp_path):
    for seed, split in enumerate(("train", "val")):
        write_pictures(tmp_path / split, 3, seed)
    with pytest.warns(UserWarning, match="beside the one that selects"):
        _, result = tuned("ft", encoder, tmp_path, epochs=2, select="best")
    assert result["tuned"]["in_distribution"] is None and "best" in result
    _, result = tuned("ft", encoder, tmp_path, epochs=2)
    assert result["tuned"]["in_distribution"]["images"] == 12


def test_what_cannot_be_trained_is_refused(encoder):
    with pytest.raises(ConfigError, match="did you mean 'flyp'"):
        FineTuner(encoder, "flipp")
    with pytest.raises(ConfigError, match="the text tower has no part in it"):
        FineTuner(encoder, "ft", FFTConfig(train="text"))
    with pytest.raises(ConfigError, match="leaves the encoder as it is"):
        FineTuner(encoder, "rada", FFTConfig(train="image"))
    with pytest.raises(ConfigError, match="there is no tracker 'paper'"):
        FineTuner(encoder, "rada", trackers=["paper"])
    with pytest.raises(ConfigError, match="epochs should be a positive integer"):
        FFTConfig(epochs=0)


def test_an_encoder_that_cannot_be_saved_says_so_before_training(data, tmp_path):
    from rada import CustomEncoder

    encoder = CustomEncoder(
        lambda x: x.mean((2, 3)), lambda t: torch.randn(len(t), 3), scale=10.0, dim=3
    )
    with pytest.raises(EncoderError, match="image_gradients"):
        FineTuner(encoder, "ft")
    with pytest.raises(EncoderError, match="save"):
        FineTuner(encoder, "linear-probe").fit(data, output_dir=tmp_path / "out")


def test_thousands_of_prompts_fit(encoder, data):
    """Chunks of prompts are computed again in the backward pass: same gradient, less memory."""
    gradients = []
    for chunk in (2, 64):
        model, batch = model_of("rada_ft", encoder, data, text_chunk=chunk)
        model.train_towers()
        encoder.model.zero_grad()
        model(batch)["loss"].backward()
        gradients.append(encoder.model.text_projection.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)
    assert all(math.isfinite(value) for value in gradients[0].flatten().tolist())
    assert len(COLOURS) == 4
