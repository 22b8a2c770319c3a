"""One matrix of tests for every method: start, gradients, seeds, files, classes, errors, resume."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from torch.nn.functional import cross_entropy

import rada.training.state as training
from rada.core.errors import CheckpointError, ConfigError, FeatureError
from rada.features import ClassSet
from rada.methods import (
    Run,
    UnknownClassError,
    get_method,
    list_methods,
    register_method,
)
from rada.pretrained import Fitted, load_model, save_model
from rada.training import optimizers
from rada.training.strength import Strength

# Full fine-tuning has the same matrix, on images, in tests/finetune.
NAMES = [method.name for method in list_methods() if "images" not in method.needs]
GRADIENTS = ["clip_adapter", "tip_adapter_f", "cross_modal_probe", "coop", "kgcoop", "prograd"]
GRADIENTS += ["cocoop", "tcp", "dept_coop", "dept_cocoop", "dept_kgcoop"]
GRADIENTS += ["rada", "rada_released", "rada_adapter", "taskres", "clap", "lp_plus_plus", "rla"]
ZERO_SHOT_START = ["zero_shot", "cross_modal_probe", "rada", "rada_released", "rada_adapter"]
ZERO_SHOT_START += ["taskres", "clap", "rla"]
QUICK = {
    "clip_adapter": {"epochs": 3},
    "tip_adapter_f": {"epochs": 3},
    "cross_modal_probe": {"iterations": 3},
    "rada": {"epochs": 2, "min_steps": 0, "batch_size": 8, "strength": 1.0},
    "rada_released": {"epochs": 2},
    "rada_adapter": {"epochs": 2, "min_steps": 0, "batch_size": 8, "hidden": 4, "strength": 1.0},
    "coop": {"epochs": 2},
    "cocoop": {"epochs": 2, "reduction": 3},
    "kgcoop": {"epochs": 2},
    "prograd": {"epochs": 2, "length": 6},
    "tcp": {"epochs": 2},
    "dept_coop": {"epochs": 2},
    "dept_cocoop": {"epochs": 2, "reduction": 3},
    "dept_kgcoop": {"epochs": 2},
    "rada_coop": {"epochs": 2, "min_steps": 0, "prompt_epochs": 2, "strength": 1.0},
    "rada_kgcoop": {"epochs": 2, "min_steps": 0, "prompt_epochs": 2, "strength": 1.0},
    "taskres": {"epochs": 3},
    "clap": {"epochs": 3},
    "lp_plus_plus": {"iterations": 20},
    "rla": {"iterations": 3},
}


def config(name):
    return get_method(name).config(**QUICK.get(name, {}))


@pytest.fixture
def case_of(request):
    """Returns the data of a method and its run."""

    def find(name, **options):
        if "encoder" not in get_method(name).needs:
            return request.getfixturevalue("data"), Run(seed=1, **options)
        encoder = request.getfixturevalue("clip")
        return request.getfixturevalue("text_data"), Run(seed=1, encoder=encoder, **options)

    return find


def fitted(name, data, run=None):
    return get_method(name).fit(data, config(name), run or Run(seed=1))


def logits(model, data):
    return model.logits(data.plain(), data.class_set())


def zero_shot_logits(data):
    return data.scale * data.plain() @ data.text_features.T


def test_every_method_says_where_it_comes_from():
    assert set(NAMES) >= {
        *GRADIENTS,
        "zero_shot",
        "zero_shot_ensemble",
        "linear_probe",
        "tip_adapter",
        "gda",
        "svm_probe",
    }
    assert all(len(method.source) > 20 and method.title for method in list_methods())


@pytest.mark.parametrize("name", NAMES)
def test_start(name, case_of):
    data, run = case_of(name)
    model = get_method(name).start(data, config(name), run)
    found = logits(model, data)
    zero_shot = zero_shot_logits(data)
    assert found.shape == zero_shot.shape and found.isfinite().all()
    if name in ZERO_SHOT_START:
        torch.testing.assert_close(found, zero_shot)
    elif name in (
        "coop",
        "kgcoop",
        "rada_coop",
        "rada_kgcoop",
    ):  # the context spells the default template
        torch.testing.assert_close(found, zero_shot, atol=1e-3, rtol=0)
    elif name in ("linear_probe", "svm_probe"):
        assert (found == 0).all()
    elif name == "clip_adapter":  # near zero-shot: four fifths of the features are the image's own
        cosine = torch.cosine_similarity(found, zero_shot, dim=1)
        assert cosine.min() > 0.8 and not torch.allclose(found, zero_shot)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_in_every_parameter_after_two_steps(name, case_of):
    data, run = case_of(name)
    model = get_method(name).start(data, config(name), run).train()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model.loss(data.plain(), data.labels, data.class_set())["loss"].backward()
        optimizer.step()
    dead = [key for key, value in parameters.items() if value.grad is None or not value.grad.any()]
    assert not dead


@pytest.mark.parametrize("name", [name for name in NAMES if get_method(name).learns])
def test_learns_the_shots(name, case_of):
    data, run = case_of(name)
    before = cross_entropy(
        logits(get_method(name).start(data, config(name), run), data), data.labels
    )
    wanted = get_method(name).config()
    if name in ("rada_adapter", "rada"):
        wanted = dataclasses.replace(wanted, strength=1.0, min_steps=50)
    if name in ("coop", "kgcoop", "prograd", "cocoop"):
        wanted = dataclasses.replace(wanted, **QUICK[name] | {"epochs": 50})
    if name in ("rada_coop", "rada_kgcoop"):
        changes = {"strength": 1.0, "min_steps": 50, "prompt_epochs": 4}
        wanted = dataclasses.replace(wanted, **changes)
    after = cross_entropy(logits(get_method(name).fit(data, wanted, run), data), data.labels)
    assert after < before


@pytest.mark.parametrize("name", NAMES)
def test_seeds_repeat_and_differ(name, case_of):
    data, run = case_of(name)
    first, again = (logits(fitted(name, data, run), data) for _ in range(2))
    assert torch.equal(first, again)
    if name in ("clip_adapter", "rada_released", "rada_adapter", "rada", "cocoop"):
        other = logits(fitted(name, data, dataclasses.replace(run, seed=2)), data)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded(name, case_of, tmp_path):
    data, run = case_of(name)
    model = fitted(name, data, run)
    save_model(tmp_path / "it", Fitted(model, data.classes))
    loaded = load_model(tmp_path / "it", encoder=run.encoder).model
    assert torch.equal(logits(loaded, data), logits(model, data))
    assert loaded.trainable_parameters() == model.trainable_parameters()
    assert (loaded.record, loaded.strength) == (model.record, model.strength)


@pytest.mark.parametrize("name", NAMES)
def test_permuted_classes_permute_the_logits(name, case_of):
    data, run = case_of(name)
    model = fitted(name, data, run)
    order = torch.randperm(len(data.classes), generator=torch.Generator().manual_seed(3))
    permuted = model.logits(data.plain(), data.class_set().take(order))
    torch.testing.assert_close(permuted, logits(model, data)[:, order], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_classes_never_seen(name, case_of):
    data, run = case_of(name)
    model = fitted(name, data.select_classes(range(len(data.classes) - 1)), run)
    if not get_method(name).new_classes:
        with pytest.raises(UnknownClassError, match=data.classes[-1]):
            logits(model, data)
    else:
        found = logits(model, data)
        assert found.shape[1] == len(data.classes) and found.isfinite().all()
    if name in ("tip_adapter", "tip_adapter_f", "cross_modal_probe", "clap", "taskres"):
        zero_shot = zero_shot_logits(data)
        torch.testing.assert_close(found[:, -1], zero_shot[:, -1])


@pytest.mark.parametrize("name", [name for name in NAMES if get_method(name).learns])
def test_one_class_is_an_error(name, case_of):
    data, run = case_of(name)
    with pytest.raises(FeatureError, match=f"{name} needs images of at least 2 classes"):
        fitted(name, data.select_classes([0]), run)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("name", [name for name in GRADIENTS if name != "rada"])
def test_resumes_bit_for_bit(name, case_of, tmp_path, monkeypatch):
    data, run = case_of(name)
    whole = logits(fitted(name, data, run), data)
    run = dataclasses.replace(run, state_dir=tmp_path)
    epochs = {}

    def dies_after_one_epoch(self, path):
        save(self, path)
        epochs[path] = self.epoch
        if self.epoch == 1 and path == tmp_path / "state.safetensors":
            raise KilledError

    save = training.TrainingState.save
    monkeypatch.setattr(training.TrainingState, "save", dies_after_one_epoch)
    with pytest.raises(KilledError):
        fitted(name, data, run)
    monkeypatch.setattr(training.TrainingState, "save", save)
    assert epochs == {tmp_path / "state.safetensors": 1}
    assert torch.equal(logits(fitted(name, data, run), data), whole)


def test_rada_resumes_from_its_state(data, tmp_path):
    whole = logits(fitted("rada", data), data)
    for _ in range(2):
        run = Run(seed=1, state_dir=tmp_path / "state")
        assert torch.equal(logits(fitted("rada", data, run), data), whole)
        assert (tmp_path / "state").is_dir()


@pytest.mark.parametrize("name", ["rada", "rada_adapter"])
@pytest.mark.parametrize("classes", [3, 6])
def test_strength_is_chosen_on_the_shots(name, classes, data):
    method = get_method(name)
    part = data.select_classes(range(classes))
    model = method.fit(part, method.config(epochs=2, min_steps=0, batch_size=8), Run(seed=1))
    choice = model.record["strength_choice"]
    assert choice["method"] == ("shots" if classes < 4 else "classes")
    assert model.strength.value == choice["strength"] in choice["strengths"]
    assert model.strength.trained == choice["trained_strength"] in choice["strengths"]
    assert model.strength.classes == part.classes
    # Logits are linear in the strength, from zero-shot on.
    model.strength = Strength(0.0)
    torch.testing.assert_close(logits(model, part), zero_shot_logits(part))


@pytest.mark.parametrize("shots", [2, 4])
def test_folds_of_rada_adapter_make_the_steps_of_the_whole(shots, data, monkeypatch):
    steps, step = Counter(), optimizers.AdamW.step

    def watched_step(self, *args, **options):
        steps[self] += 1
        return step(self, *args, **options)

    monkeypatch.setattr(optimizers.AdamW, "step", watched_step)
    method = get_method("rada_adapter")
    wanted = method.config(epochs=2, min_steps=11, batch_size=5, hidden=4)
    record = method.fit(data.subset(range(6 * shots)), wanted).record
    counts = list(steps.values())
    assert counts == [counts[0]] * 3 and counts[0] >= 11
    assert record["effective"]["steps"] == counts[0]


@pytest.mark.parametrize("name", ["rada", "rada_adapter"])
def test_new_classes_have_a_strength_of_their_own(name, data, tmp_path):
    """Trained classes alone, in any order or number, get one strength; with a new class, the other."""
    method = get_method(name)
    known = data.select_classes([0, 1, 2, 3])
    model = method.fit(known, method.config(epochs=2, min_steps=0, batch_size=8), Run(seed=1))
    model.strength = Strength(1.0, 0.0, model.strength.classes)
    save_model(tmp_path / "head", Fitted(model, known.classes))
    for found in (model, load_model(tmp_path / "head").model):
        for classes in ([3, 0, 2, 1], [1, 2], [0, 1, 2, 3, 4], [4, 5]):
            part = data.select_classes(classes)
            same = torch.allclose(logits(found, part), zero_shot_logits(part), atol=1e-4)
            assert same == (max(classes) < 4)


def test_trainable_parameters(data):
    dim = 16
    expected = {
        "zero_shot": 0,
        "tip_adapter": 0,
        "tip_adapter_f": 24 * dim,
        "linear_probe": 6 * (dim + 1),
        "cross_modal_probe": 6 * dim,
        "lp_plus_plus": 6 * (dim + 1),
        "clap": 6 * dim,
        "taskres": 6 * dim,
        "gda": 0,
        "svm_probe": 0,
        "rla": dim * dim,
        "clip_adapter": 2 * dim * dim // 4,
        "rada": 6 * (dim * dim + dim),
        "rada_released": 6 * (dim * dim + dim),
        "rada_adapter": 6 * (dim * dim + dim) + 2 * (2 * 4 * dim + 4 + dim),
    }
    assert {name: fitted(name, data).trainable_parameters() for name in expected} == expected


@pytest.mark.parametrize("name", ["coop", "kgcoop", "prograd"])
def test_prompts_train_the_context_alone(name, text_data, clip):
    before = {key: value.clone() for key, value in clip.model.state_dict().items()}
    wanted = [p.requires_grad for p in clip.model.parameters()]
    model = fitted(name, text_data, Run(seed=1, encoder=clip))
    assert model.trainable_parameters() == {"prograd": 6}.get(name, 4) * 32
    after = clip.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert wanted == [p.requires_grad for p in clip.model.parameters()]
    assert all(p.grad is None for p in clip.model.parameters())


def test_tip_adapter_mixture_comes_from_the_shots(data):
    record = fitted("tip_adapter", data.subset(range(6))).record
    assert (record["alpha"], record["beta"]) == (1.0, 5.5)
    record = fitted(
        "tip_adapter_f", data.subset(range(6))
    ).record  # what its keys were trained with
    assert (record["alpha"], record["beta"]) == (4.0, 8.0)
    for name in ("tip_adapter", "tip_adapter_f"):
        method = get_method(name)
        record = method.fit(data, method.config(alpha=2.0, beta=3.5)).record
        assert (record["alpha"], record["beta"]) == (2.0, 3.5)


def test_tip_adapter_keys_are_the_mean_of_the_random_views(data):
    method = get_method("tip_adapter")
    assert method.views(method.config(views=10)) == 11
    views = torch.stack([data.plain(), *data.text_features[data.labels][None]], 1)
    several = dataclasses.replace(data, image_features=views)
    keys = method.fit(several, method.config(views=1)).keys
    torch.testing.assert_close(keys, data.text_features[data.labels])


@pytest.mark.parametrize("name", ["zero_shot_ensemble", "coop"])
def test_a_method_without_its_encoder(name, data):
    with pytest.raises(ConfigError, match=f"{name} works through the encoder"):
        fitted(name, data)


def test_unknown_method_is_suggested():
    with pytest.raises(ConfigError, match="did you mean 'tip_adapter"):
        get_method("tip_adaptor")


def test_names_are_taken_once():
    with pytest.raises(ValueError, match="taken"):
        register_method(get_method("rada"))


def test_configuration_of_another_method(data):
    with pytest.raises(ConfigError, match="takes EFTConfig, not ClipAdapterConfig"):
        get_method("rada").fit(data, config("clip_adapter"))


def test_damaged_files(data, tmp_path):
    path = tmp_path / "it" / "model.safetensors"
    save_model(tmp_path / "it", Fitted(fitted("rada_released", data), data.classes))
    whole = path.read_bytes()
    for content in (
        b"",
        whole[:100],
        whole[:-4] + b"\0\0\0\0",
        whole.replace(b"head.key", b"head.kez"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors|other weights"):
            load_model(tmp_path / "it")


def test_class_sets_keep_names_and_rows_together():
    classes = ClassSet(("a", "b", "c"), torch.eye(3))
    assert classes.take([2, 0]).rows_among(("a", "b")) == [None, 0]
