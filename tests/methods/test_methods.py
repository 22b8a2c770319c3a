"""One matrix of tests for every method: start, gradients, seeds, files, classes, errors, resume."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy

import rada.training.feature_loop as training
from rada.core.errors import CheckpointError, ConfigError, FeatureError
from rada.methods import (
    ClassSet,
    Examples,
    UnknownClassError,
    get_method,
    list_methods,
    load_predictor,
    register_method,
)

# Full fine-tuning has the same matrix, on pictures, in tests/finetune.
NAMES = [method.name for method in list_methods() if "pictures" not in method.needs]
GRADIENTS = ["clip_adapter", "tip_adapter_f", "cross_modal_probe", "coop"]
GRADIENTS += ["rada", "rada_released", "rada_adapter"]
ZERO_SHOT_START = ["zero_shot", "cross_modal_probe", "rada", "rada_released", "rada_adapter"]
QUICK = {
    "clip_adapter": {"epochs": 3},
    "tip_adapter_f": {"epochs": 3},
    "cross_modal_probe": {"iterations": 3},
    "rada": {"epochs": 2, "min_steps": 0, "batch_size": 8, "strength": 1.0},
    "rada_released": {"epochs": 2},
    "rada_adapter": {"epochs": 2, "min_steps": 0, "batch_size": 8, "hidden": 4, "strength": 1.0},
    "coop": {"epochs": 2},
}


def settings(name):
    return get_method(name).settings(**QUICK.get(name, {}))


@pytest.fixture
def task_of(request):
    def find(name):
        wanted = "text_task" if "encoder" in get_method(name).needs else "task"
        return request.getfixturevalue(wanted)

    return find


def fitted(name, task, **options):
    return get_method(name).fit(task, settings(name), **options)


def logits(predictor, task):
    return predictor.predict(task.examples, task.classes)


def test_every_method_says_where_it_comes_from():
    assert set(NAMES) >= {
        *GRADIENTS,
        "zero_shot",
        "zero_shot_ensemble",
        "linear_probe",
        "tip_adapter",
    }
    assert all(len(method.source) > 20 and method.title for method in list_methods())


@pytest.mark.parametrize("name", NAMES)
def test_start(name, task_of):
    task = task_of(name)
    predictor = get_method(name).start(task, settings(name))
    found = logits(predictor, task)
    zero_shot = task.scale * task.examples.plain() @ task.classes.text_features.T
    assert found.shape == zero_shot.shape and found.isfinite().all()
    if name in ZERO_SHOT_START:
        torch.testing.assert_close(found, zero_shot)
    elif name == "coop":  # the context spells the default template
        torch.testing.assert_close(found, zero_shot, atol=1e-3, rtol=0)
    elif name == "linear_probe":
        assert (found == 0).all()
    elif name == "clip_adapter":  # near zero-shot: four fifths of the features are the image's own
        cosine = torch.cosine_similarity(found, zero_shot, dim=1)
        assert cosine.min() > 0.8 and not torch.allclose(found, zero_shot)


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_in_every_parameter_after_two_steps(name, task_of):
    task = task_of(name)
    predictor = get_method(name).start(task, settings(name)).train()
    parameters = dict(predictor.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        predictor.loss(task.examples.plain(), task.labels, task.classes).backward()
        optimizer.step()
    dead = [key for key, value in parameters.items() if value.grad is None or not value.grad.any()]
    assert not dead


@pytest.mark.parametrize("name", [name for name in NAMES if get_method(name).learns])
def test_learns_the_shots(name, task_of):
    task = task_of(name)
    before = cross_entropy(logits(get_method(name).start(task, settings(name)), task), task.labels)
    config = get_method(name).settings()
    if name in ("rada_adapter", "rada"):
        config = dataclasses.replace(config, strength=1.0, min_steps=50)
    if name == "coop":
        config = dataclasses.replace(config, epochs=10)
    after = cross_entropy(logits(get_method(name).fit(task, config), task), task.labels)
    assert after < before


@pytest.mark.parametrize("name", NAMES)
def test_seeds_repeat_and_differ(name, task_of):
    task = task_of(name)
    first, again = (logits(fitted(name, task), task) for _ in range(2))
    assert torch.equal(first, again)
    if name in ("clip_adapter", "rada_released", "rada_adapter", "rada"):
        other = logits(fitted(name, dataclasses.replace(task, seed=2)), task)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded(name, task_of, tmp_path):
    task = task_of(name)
    predictor = fitted(name, task)
    predictor.save(tmp_path / "it.safetensors")
    loaded = load_predictor(tmp_path / "it.safetensors", task.encoder)
    assert torch.equal(logits(loaded, task), logits(predictor, task))
    assert loaded.trainable_parameters() == predictor.trainable_parameters()
    assert loaded.record == predictor.record


@pytest.mark.parametrize("name", NAMES)
def test_permuted_classes_permute_the_logits(name, task_of):
    task = task_of(name)
    predictor = fitted(name, task)
    order = torch.randperm(len(task.classes), generator=torch.Generator().manual_seed(3))
    permuted = predictor.predict(task.examples, task.classes.take(order))
    torch.testing.assert_close(permuted, logits(predictor, task)[:, order], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_classes_never_seen(name, task_of):
    task = task_of(name)
    predictor = fitted(name, task.on_classes(range(len(task.classes) - 1)))
    if not get_method(name).open_set:
        with pytest.raises(UnknownClassError, match=task.classes.names[-1]):
            logits(predictor, task)
    else:
        found = logits(predictor, task)
        assert found.shape[1] == len(task.classes) and found.isfinite().all()
    if name in ("tip_adapter", "tip_adapter_f", "cross_modal_probe"):
        zero_shot = task.scale * task.examples.plain() @ task.classes.text_features.T
        torch.testing.assert_close(found[:, -1], zero_shot[:, -1])


@pytest.mark.parametrize("name", [name for name in NAMES if get_method(name).learns])
def test_one_class_is_an_error(name, task_of):
    task = task_of(name)
    with pytest.raises(FeatureError, match=f"{name} needs examples of at least 2 classes"):
        fitted(name, task.on_classes([0]))


class KilledError(Exception):
    pass


@pytest.mark.parametrize("name", [name for name in GRADIENTS if name != "rada"])
def test_resumes_bit_for_bit(name, task_of, tmp_path, monkeypatch):
    task = task_of(name)
    whole = logits(fitted(name, task), task)
    epochs = {}

    def dies_after_one_epoch(self, path):
        save(self, path)
        epochs[path] = self.epoch
        if self.epoch == 1 and path == tmp_path / "state":
            raise KilledError

    save = training.TrainingState.save
    monkeypatch.setattr(training.TrainingState, "save", dies_after_one_epoch)
    with pytest.raises(KilledError):
        fitted(name, task, state_path=tmp_path / "state")
    monkeypatch.setattr(training.TrainingState, "save", save)
    assert epochs == {tmp_path / "state": 1}
    assert torch.equal(logits(fitted(name, task, state_path=tmp_path / "state"), task), whole)


def test_rada_resumes_from_its_state(task, tmp_path):
    whole = logits(fitted("rada", task), task)
    assert torch.equal(logits(fitted("rada", task, state_path=tmp_path / "a.state"), task), whole)
    assert (tmp_path / "a").is_dir()
    assert torch.equal(logits(fitted("rada", task, state_path=tmp_path / "a.state"), task), whole)


@pytest.mark.parametrize("name", ["rada", "rada_adapter"])
@pytest.mark.parametrize("classes", [3, 6])
def test_strength_is_chosen_on_the_shots(name, classes, task):
    method = get_method(name)
    config = method.settings(epochs=2, min_steps=0, batch_size=8)
    part = task.on_classes(range(classes))
    predictor = method.fit(part, config)
    choice = predictor.record["strength_choice"]
    assert choice["method"] == ("shots" if classes < 4 else "classes")
    assert float(predictor.strength) == choice["strength"] in choice["strengths"]
    trained = predictor.facts.pop("trained")
    assert trained["strength"] == choice["trained_strength"] in choice["strengths"]
    assert trained["classes"] == list(part.classes.names)
    # Logits are linear in the strength, from zero-shot on.
    predictor.strength.fill_(0.0)
    zero_shot = part.scale * part.examples.plain() @ part.classes.text_features.T
    torch.testing.assert_close(logits(predictor, part), zero_shot)


@pytest.mark.parametrize("shots", [2, 4])
def test_folds_of_rada_adapter_make_the_steps_of_the_whole(shots, task, monkeypatch):
    counts = []
    train, step = training.train, torch.optim.AdamW.step

    def watched_train(*args, **options):
        counts.append(0)
        return train(*args, **options)

    def watched_step(self, *args, **options):
        counts[-1] += 1
        return step(self, *args, **options)

    monkeypatch.setattr("rada.methods.rada_adapter.train", watched_train)
    monkeypatch.setattr(torch.optim.AdamW, "step", watched_step)
    method = get_method("rada_adapter")
    config = method.settings(epochs=2, min_steps=11, batch_size=5, hidden=4)
    part = task.on_classes(range(6), torch.arange(24) < 6 * shots)
    record = method.fit(part, config).record
    assert counts == [counts[0]] * 4 and counts[0] >= 11
    assert record["effective"]["steps"] == counts[0]


@pytest.mark.parametrize("name", ["rada", "rada_adapter"])
def test_new_classes_have_a_strength_of_their_own(name, task, tmp_path):
    """Trained classes alone, in any order or number, get one strength; with a new class, the other."""
    method = get_method(name)
    known = task.on_classes([0, 1, 2, 3])
    predictor = method.fit(known, method.settings(epochs=2, min_steps=0, batch_size=8))
    predictor.facts["trained"]["strength"] = 0.0
    predictor.strength.fill_(1.0)
    predictor.save(tmp_path / "head.safetensors")
    for found in (predictor, load_predictor(tmp_path / "head.safetensors")):
        for classes in ([3, 0, 2, 1], [1, 2], [0, 1, 2, 3, 4], [4, 5]):
            part = task.on_classes(classes)
            zero_shot = part.scale * part.examples.plain() @ part.classes.text_features.T
            same = torch.allclose(logits(found, part), zero_shot, atol=1e-4)
            assert same == (max(classes) < 4)


def test_trainable_parameters(task):
    dim = 16
    expected = {
        "zero_shot": 0,
        "tip_adapter": 0,
        "tip_adapter_f": 24 * dim,
        "linear_probe": 6 * (dim + 1),
        "cross_modal_probe": 6 * dim,
        "clip_adapter": 2 * dim * dim // 4,
        "rada": 6 * (dim * dim + dim),
        "rada_released": 6 * (dim * dim + dim),
        "rada_adapter": 6 * (dim * dim + dim) + 2 * (2 * 4 * dim + 4 + dim),
    }
    assert {name: fitted(name, task).trainable_parameters() for name in expected} == expected


def test_coop_trains_the_context_alone(text_task):
    before = {key: value.clone() for key, value in text_task.encoder.model.state_dict().items()}
    wanted = [p.requires_grad for p in text_task.encoder.model.parameters()]
    predictor = fitted("coop", text_task)
    assert predictor.trainable_parameters() == 4 * 384
    after = text_task.encoder.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert wanted == [p.requires_grad for p in text_task.encoder.model.parameters()]
    assert all(p.grad is None for p in text_task.encoder.model.parameters())


def test_tip_adapter_mixture_comes_from_the_shots(task):
    one_shot = task.on_classes(range(6), torch.arange(24) < 6)
    record = fitted("tip_adapter", one_shot).record
    assert (record["alpha"], record["beta"]) == (1.0, 5.5)
    record = fitted("tip_adapter_f", one_shot).record  # what its keys were trained with
    assert (record["alpha"], record["beta"]) == (4.0, 8.0)
    for name in ("tip_adapter", "tip_adapter_f"):
        config = get_method(name).settings(alpha=2.0, beta=3.5)
        record = get_method(name).fit(task, config).record
        assert (record["alpha"], record["beta"]) == (2.0, 3.5)


def test_tip_adapter_keys_are_the_mean_of_the_random_views(task):
    method = get_method("tip_adapter")
    assert method.views(method.settings(views=10)) == 11
    views = torch.stack([task.examples.plain(), *task.classes.text_features[task.labels][None]], 1)
    several = dataclasses.replace(task, examples=Examples(views))
    keys = method.fit(several, method.settings(views=1)).keys
    torch.testing.assert_close(keys, task.classes.text_features[task.labels])


@pytest.mark.parametrize("name", ["zero_shot_ensemble", "coop"])
def test_a_method_without_its_encoder(name, task):
    with pytest.raises(ConfigError, match=f"{name} works through the encoder"):
        fitted(name, task)


def test_unknown_method_is_suggested():
    with pytest.raises(ConfigError, match="did you mean 'tip_adapter"):
        get_method("tip_adaptor")


def test_names_are_taken_once():
    with pytest.raises(ValueError, match="taken"):
        register_method(get_method("rada"))


def test_settings_of_another_method(task):
    with pytest.raises(ConfigError, match="takes EFTConfig, not ClipAdapterSettings"):
        get_method("rada").fit(task, settings("clip_adapter"))


def test_damaged_files(task, tmp_path):
    path = tmp_path / "it.safetensors"
    fitted("rada_released", task).save(path)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole.replace(b"rada_released", b"rada_releasee")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"it\.safetensors"):
            load_predictor(path)


def test_class_sets_keep_names_and_rows_together():
    classes = ClassSet(("a", "b", "c"), torch.eye(3))
    assert classes.take([2, 0]).rows_among(("a", "b")) == [None, 0]
