"""One matrix of tests for every method of full fine-tuning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from finetune.conftest import COLOURS, write_pictures
from rada import FFTConfig, FineTuner
from rada.core.errors import ConfigError, DataError, EncoderError, UnknownClassError
from rada.core.randomness import seeded
from rada.data import open_dataset
from rada.encoders import load_encoder
from rada.features import ClassSet
from rada.methods import Facts, get_method, list_methods
from rada.methods.finetune.base import EncoderConfig
from rada.methods.finetune.flyp import contrast
from rada.methods.finetune.ft import FineTuningConfig
from rada.methods.finetune.model import TunedModel
from rada.pretrained import load_model
from rada.training.batches import Order, Position, StepData, training_transform

# Those that train whole encoders; those that put something into them have tests of their own.
ENCODERS = ["ft", "l2_sp", "lp_ft", "flyp", "rada_ft"]
INSIDE = ["clip_lora", "maple", "promptsrc", "mma", "mmrl", "dept_maple", "dept_promptsrc"]
INSIDE += ["rada_promptsrc"]
NAMES = [*ENCODERS, "linear_probe", "rada"]
QUICK = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "evaluate_every": 0}
OWN = {
    # How the strength is chosen is tested in test_fft_strength.py.
    "rada_ft": {"num_heads": 2, "head_epochs": 2, "strength": 1.0},
    "rada": {"num_heads": 2, "epochs": 2, "min_steps": 0, "strength": 1.0},
}


def quick(name, **changes):
    common = QUICK if name in ENCODERS else {}
    return get_method(name).config(**common | OWN.get(name, {}) | changes)


def tuned(name, encoder, data, seed=1, fit=None, **changes):
    tuner = FineTuner(encoder, name, quick(name, **changes), progress=False, workers=0)
    return tuner, tuner.fit(data, seed=seed, **(fit or {}))


def model_of(name, encoder, data, **changes):
    """Return a model before training, and a batch of its first step."""
    method, config = get_method(name), quick(name, **changes)
    split = open_dataset(data).split("train")
    text = encoder.encode_classes(split.classes)
    templates = ("a photo of a {}.", "a picture of the {}.")
    facts = Facts(encoder.dim, encoder.scale, split.classes, templates)
    with seeded(0):
        model = TunedModel(method, facts, config, encoder, text)
    model.keep_pretrained()
    order = Order(torch.from_numpy(split.labels.copy()), len(split.classes), 8, 0, 2, seed=0)
    steps = StepData(
        split,
        order,
        training_transform(encoder, config.augmentation, config.crop_scale),
        workers=0,
        templates=templates,
        captions=method.captions,
        parts=1,
        skip_bad=False,
        rank=0,
        processes=1,
        device=torch.device("cpu"),
    )
    _, (batch,) = next(iter(steps.steps(Position(0, 0), 1)))
    return model, batch


def pixels(encoder, data):
    split = open_dataset(data).split("test")
    return torch.stack([encoder.preprocess(split.load(i)) for i in range(len(split))])


def class_set(encoder, names, templates=("a photo of a {}.",)):
    return ClassSet(tuple(names), encoder.encode_classes(names, templates), tuple(templates))


def predictions(model, encoder, data, names):
    own = model.encoder if model.method.train_encoder else encoder
    features = own.infer_images(pixels(own, data))
    return model.logits(features, class_set(encoder, names))


def test_all_the_published_methods_are_there():
    found = [m.name for m in list_methods() if issubclass(m.config, EncoderConfig)]
    assert [name for name in found if name not in INSIDE] == ENCODERS
    assert all(len(get_method(n).source) > 20 and get_method(n).title for n in NAMES)
    assert len({get_method(name).config for name in ENCODERS}) == len(ENCODERS)


@pytest.mark.parametrize("name", ENCODERS)
def test_starts_as_zero_shot(name, encoder, data):
    model, _ = model_of(name, encoder, data)
    features = encoder.infer_images(pixels(encoder, data))
    classes = class_set(encoder, model.facts.classes, model.facts.templates)
    zero_shot = encoder.scale * features @ classes.text_features.T
    if model.class_weights is not None:
        biases = torch.zeros(len(classes))
        model.set_class_weights(classes.text_features * encoder.scale, biases)
    for strength in (0, 0.5, 1, None):
        found = model.logits(features, classes, strength=strength)
        torch.testing.assert_close(found, zero_shot, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_in_everything_that_learns(name, encoder, data):
    model, batch = model_of(name, encoder, data)
    model.training_mode()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    learning = {key: value for key, value in model.named_parameters() if value.requires_grad}
    assert any(key.startswith("encoder_module.vision_model") for key in learning)
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
def test_learns_and_evaluates(name, encoder, data, dark):
    more = {"rada_ft": {"epochs": 12, "head_epochs": 30}, "rada": {"epochs": 30, "min_steps": 300}}
    more |= {"linear_probe": {}}
    changes = more.get(name, {"epochs": 12})
    tuner, result = tuned(
        name, encoder, data, fit={"ood": {"dark": dark}, "wise": (0, 0.5, 1)}, **changes
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
    biases = getattr(tuner.model, "class_biases", None)
    assert biases is None or biases.abs().max() > 1e-4
    first, _, last = result["wise"]
    for part in ("in_distribution", "out_of_distribution"):
        assert first[part] == result["zero_shot"][part] and last[part] == result["tuned"][part]
    right = predictions(tuner.model, encoder, data, tuner.model.facts.classes).argmax(1)
    labels = torch.from_numpy(open_dataset(data).split("test").labels.copy())
    accuracy = (right == labels).double().mean().item()
    assert accuracy == result["tuned"]["in_distribution"]["accuracy"]


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_weights_and_another_fit_starts_afresh(name, model_folder, data):
    states = []
    tuner = FineTuner(load_encoder(model_folder), name, quick(name), progress=False, workers=0)
    for _ in range(2):
        tuner.fit(data, seed=3)
        states.append({key: v.clone() for key, v in tuner.model.state_dict().items()})
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    if name != "linear_probe":  # it has nothing random but its folds
        other, _ = tuned(name, load_encoder(model_folder), data, seed=4)
        assert any(not torch.equal(v, states[0][k]) for k, v in other.model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_saved_model_gives_the_same_predictions(name, encoder, data, tmp_path):
    tuner, result = tuned(name, encoder, data, fit={"output_dir": tmp_path / "out"})
    names = tuner.model.facts.classes
    expected = predictions(tuner.model, encoder, data, names)
    loaded = load_model(tmp_path / "out").model
    found = predictions(loaded, encoder, data, names)
    np.testing.assert_allclose(found.softmax(1), expected.softmax(1), atol=1e-6)
    assert loaded.config == tuner.config and loaded.strength == tuner.model.strength
    assert (tmp_path / "out" / "encoder").exists() == (name in ENCODERS)
    if name in ENCODERS:
        from transformers import CLIPModel

        model = CLIPModel.from_pretrained(tmp_path / "out" / "encoder")  # without rada
        for key, value in model.state_dict().items():
            torch.testing.assert_close(value, tuner.model.encoder.model.state_dict()[key])
    if not tuner.method.new_classes:
        with pytest.raises(UnknownClassError, match="'dog'"):
            predictions(loaded, encoder, data, ["red", "dog"])
    again = FineTuner(encoder, name, tuner.config, progress=False, workers=0)
    assert again.fit(data, seed=1, output_dir=tmp_path / "out")["tuned"] == result["tuned"]
    torch.testing.assert_close(predictions(again.model, encoder, data, names), found)


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_classes_permutes_the_predictions(name, encoder, data):
    tuner, _ = tuned(name, encoder, data)
    names = list(tuner.model.facts.classes)
    order = [2, 0, 3, 1]
    found = predictions(tuner.model, encoder, data, [names[i] for i in order])
    torch.testing.assert_close(found, predictions(tuner.model, encoder, data, names)[:, order])


@pytest.mark.parametrize("name", ["flyp", "rada_ft"])
def test_new_classes_are_named_by_the_tuned_text_encoder(name, encoder, data):
    tuner, _ = tuned(name, encoder, data, epochs=4)
    model, names = tuner.model, ["red", "dog"]
    features = model.encoder.infer_images(pixels(model.encoder, data))
    own = class_set(model.encoder, names, model.facts.templates)
    expected = model.encoder.scale * features @ own.text_features.T
    before = class_set(encoder, names)
    torch.testing.assert_close(model.logits(features, before, strength=0), expected)
    assert not torch.allclose(own.text_features, before.text_features, atol=1e-4)
    if model.head is not None:
        expected = model.head(features, own.text_features, model.encoder.scale).logits
    torch.testing.assert_close(model.logits(features, before), expected)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_encoder_that_is_given_stays_as_it_is(name, encoder, data):
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    tuned(name, encoder, data)
    assert all(torch.equal(v, before[k]) for k, v in encoder.model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_one_class_is_refused(name, encoder, tmp_path):
    write_pictures(tmp_path / "one" / "train", 3, 0, names=["red"])
    with pytest.raises(DataError, match="at least 2"):
        FineTuner(encoder, name, quick(name), progress=False).fit(tmp_path / "one")


@pytest.mark.parametrize("name", ENCODERS)
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
    assert [model.facts.classes[label] for label in batch.labels] == classes


@pytest.mark.parametrize("name", ["ft", "l2_sp", "lp_ft"])
def test_the_head_is_the_linear_layer_of_the_public_code(name, encoder, data):
    """torch's `Linear` on unit features: weights from the text encoder, a bias that learns from zero."""
    changes = {"l2_alpha": 0.0, "l2_beta": 0.0} if name == "l2_sp" else {}
    model, batch = model_of(name, encoder, data, **changes)
    classes = class_set(encoder, model.facts.classes)
    layer = torch.nn.Linear(encoder.dim, len(classes))
    with torch.no_grad():
        layer.weight.copy_(encoder.scale * classes.text_features)
        layer.bias.zero_()
    images = encoder.forward_images(batch.pixels).detach()
    for _ in range(3):  # the image encoder held still, both learn the same
        model.zero_grad()
        model(batch)["loss"].backward()
        layer.zero_grad()
        cross_entropy(layer(images), batch.labels).backward()
        torch.testing.assert_close(model.class_biases.grad, layer.bias.grad, atol=1e-5, rtol=1e-3)
        pairs = ((model.class_weights, layer.weight), (model.class_biases, layer.bias))
        with torch.no_grad():
            for own, other in pairs:
                own -= 0.5 * other.grad
                other -= 0.5 * other.grad
    assert model.class_biases.abs().max() > 0.01
    expected = layer(images).detach()
    found = model.logits(images, classes)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    turned = model.logits(images, classes.take([3, 2, 1, 0]))
    torch.testing.assert_close(turned, expected.flip(1), atol=1e-4, rtol=1e-4)


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
    assert sum(bool(words & set(seen)) for words in spelt.values()) > 40  # draws of 80
    model = tuner.model
    expected = model.encoder.encode_classes(model.facts.classes, result["templates"])
    given = class_set(encoder, model.facts.classes)  # with one template, as a data set brings it
    torch.testing.assert_close(model.prepare(given).text_features, expected)
    _, other = tuned("ft", encoder, data)
    assert other["templates"] == ["a photo of a {}."]


def test_templates_that_are_given_are_flyps(model_folder, data):
    for given in ("a photo of a {}.", ["a {}.", "the {}."]):
        config = quick("flyp")
        tuner = FineTuner(
            load_encoder(model_folder), "flyp", config, templates=given, progress=False, workers=0
        )
        wanted = [given] if isinstance(given, str) else given
        assert tuner.fit(data)["templates"] == wanted
        assert list(tuner.model.facts.templates) == wanted
    assert get_method("flyp").templates(("{} texture.",)) == ("{} texture.",)  # the data's own


def test_l2_sp_is_the_distance_to_the_pretrained_weights(encoder, data):
    model, batch = model_of("l2_sp", encoder, data, l2_alpha=0.5, l2_beta=0.1)
    assert model(batch)["penalty"].item() == 0
    with torch.no_grad():
        model.encoder_module.visual_projection.weight.add_(0.1)
        model.class_weights.add_(0.2)
        model.class_biases.add_(0.3)  # new weights: pulled to zero, with a weight of their own
    count, own = model.encoder_module.visual_projection.weight.numel(), model.class_weights.numel()
    expected = 0.25 * (count * 0.01 + own * 0.04) + 0.05 * len(model.facts.classes) * 0.09
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


def test_encoders_that_do_not_learn_stay_as_they_are(encoder, data):
    before = encoder.model.state_dict()
    for train, still in (("image", "text_model"), ("text", "vision_model")):
        tuner, _ = tuned("rada_ft", encoder, data, train=train, head_first=False)
        found = tuner.model.encoder.model.state_dict()
        moved = {k for k, v in found.items() if not torch.equal(v, before[k])}
        assert moved and not any(key.startswith(still) for key in moved)


def test_wise_alpha_is_what_is_kept(model_folder, data):
    tuner, result = tuned("ft", load_encoder(model_folder), data, wise_alpha=0.0)
    found, first = (result[key]["in_distribution"] for key in ("tuned", "zero_shot"))
    assert found["accuracy"] == first["accuracy"] and found["ece"] == pytest.approx(first["ece"])
    assert all(torch.equal(v, tuner.model.pretrained[k]) for k, v in tuner.model.tuned().items())


def test_best_epoch_by_the_validation_split_alone(encoder, data, tmp_path):
    _, result = tuned("ft", encoder, data, epochs=4, select="best")
    found = [entry["validation"]["accuracy"] for entry in result["history"]]
    assert result["best"]["accuracy"] == max(found)
    assert result["best"]["epoch"] == found.index(max(found)) + 1
    write_pictures(tmp_path / "noval" / "train", 3, 0)
    with pytest.raises(ConfigError, match="needs a validation split"):
        tuned("ft", encoder, tmp_path / "noval", select="best")


def test_a_split_that_selects_does_not_test(encoder, tmp_path):
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
    with pytest.raises(ConfigError, match="the text encoder has no part in it"):
        FineTuner(encoder, "ft", FineTuningConfig(train="text"))
    with pytest.raises(ConfigError, match="rada takes EFTConfig, not RAdaFTConfig"):
        FineTuner(encoder, "rada", FFTConfig(train="image"))
    with pytest.raises(ConfigError, match="there is no tracker 'paper'"):
        FineTuner(encoder, "rada", trackers=["paper"])
    with pytest.raises(ConfigError, match="epochs should be a positive integer"):
        FFTConfig(epochs=0)


def pair(**options):
    """Return a custom encoder; its image side learns where `image_module` is given."""
    from rada import CustomEncoder

    layer = options.get("image_module", torch.nn.Identity())
    return CustomEncoder(
        lambda x: layer(x.mean((2, 3))),
        lambda texts: torch.tensor([[len(t), t.count("e") + 1, ord(t[-2])] for t in texts]).float(),
        scale=10.0,
        dim=3,
        **options,
    )


def test_an_encoder_that_cannot_be_saved_says_so_before_training(data, tmp_path):
    with pytest.raises(EncoderError, match="image_gradients"):
        FineTuner(pair(), "ft")
    with pytest.raises(EncoderError, match="save"):
        tuner = FineTuner(pair(image_module=torch.nn.Linear(3, 3)), "ft")
        tuner.fit(data, output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_functions_of_ones_own_are_trained_in_place(data):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 3)
    before = layer.weight.detach().clone()
    tuner = FineTuner(pair(image_module=layer), "ft", quick("ft"), progress=False, workers=0)
    first = tuner.fit(data)
    after = layer.weight.detach().clone()
    assert not torch.equal(after, before) and tuner.model.encoder.image_module is layer
    assert tuner.fit(data)["history"] == first["history"]  # from the pretrained weights again
    assert torch.equal(layer.weight, after)


def test_thousands_of_prompts_fit(encoder, data):
    """Chunks of prompts are computed again in the backward pass: same gradient, less memory."""
    gradients = []
    for chunk in (2, 64):
        model, batch = model_of("rada_ft", encoder, data, text_chunk=chunk)
        model.training_mode()
        encoder.model.zero_grad()
        model(batch)["loss"].backward()
        gradients.append(encoder.model.text_projection.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)
    assert all(math.isfinite(value) for value in gradients[0].flatten().tolist())
    assert len(COLOURS) == 4
