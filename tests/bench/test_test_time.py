"""Test-time methods in benchmarks, by labels such as `rada+rada`: the numbers of `TestTimeAdapter`."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.nn.functional import normalize
from typer.testing import CliRunner

import rada.cli.app as cli
from bench_samples import NAMES, QUICK
from golden.make import TUNED, tiny_encoder
from golden.make import write_images as write_colours
from rada import Classifier, Features, TestTimeAdapter
from rada.bench import Plan, run_plan
from rada.bench.cells import Folder
from rada.bench.page import write_files
from rada.bench.tables import load_runs
from rada.core.errors import ConfigError
from rada.encoders import load_encoder
from rada.methods import get_method
from rada.test_time import get_test_time_method, list_test_time_methods
from toy import SCALE, toy

VIEWS = 10
ON_FEATURES = [method.name for method in list_test_time_methods() if not method.needs]


@pytest.fixture
def viewed(tmp_path):
    """Features with several views of each image."""
    for split, seed in (("train", 1), ("test", 2)):
        images, labels, text = toy(classes=6, shots=6, dim=16)
        noise = torch.randn((len(images), VIEWS, 16), generator=torch.Generator().manual_seed(seed))
        views = normalize(images[:, None] + noise / 4, dim=-1)
        data = Features(views, labels, NAMES, text_features=text, scale=SCALE)
        data.save(tmp_path / "pets" / f"{split}.safetensors")
    return tmp_path / "pets"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "clip"
    tiny_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos") / "colours"
    for split in ("train", "test"):
        write_colours(root / split)
    return root


def accuracies(out):
    return {
        found["cell"]["label"]: {name: part["accuracy"] for name, part in found["parts"].items()}
        for found in Folder(out).results()
    }


@pytest.mark.parametrize("name", ON_FEATURES)
def test_features_give_the_numbers_of_the_adapter(name, viewed, tmp_path):
    plan = Plan(
        methods=(f"zero_shot+{name}", f"rada+{name}"),
        datasets=(str(viewed),),
        shots=(2,),
        seeds=(1,),
        options={
            f"zero_shot+{name}": {"test_time.views": VIEWS},
            f"rada+{name}": QUICK["rada"] | {"test_time.views": VIEWS},
        },
    )
    summary = run_plan(plan, tmp_path / "out")
    assert not summary.failed and summary.done == 2
    config = get_test_time_method(name).config(views=VIEWS)
    test = Features.load(viewed / "test.safetensors")
    shots = Features.load(viewed / "train.safetensors").few_shot(2, 1)
    shots = dataclasses.replace(shots, image_features=shots.image_features[:, :1])
    starts = {
        f"zero_shot+{name}": Classifier(None, "zero_shot", NAMES, scale=SCALE),
        f"rada+{name}": Classifier(None, get_method("rada").config(**QUICK["rada"])).fit(
            shots, seed=1
        ),
    }
    found = accuracies(tmp_path / "out")
    for label, start in starts.items():
        expected = TestTimeAdapter(start, name, config=config).evaluate(test, baselines=False)
        assert found[label] == {"test": expected["test_time"]["accuracy"]}
    for result in Folder(tmp_path / "out").results():
        assert result["cell"]["test_time"] == name
        assert result["test_time_config"] == config.to_dict() and result["predict_seconds"] > 0
    assert run_plan(plan, tmp_path / "out").skipped == 2


@pytest.mark.parametrize(
    ("label", "options"),
    [("zero_shot+tpt", {}), ("coop+tpt", {"epochs": 2}), ("rada+rada", QUICK["rada"]),
     ("ft+mean_of_views", TUNED), ("maple+prompt_align", TUNED),
     ("rada_ft+rada", TUNED | {"head_epochs": 1, "strength": 1.0})],
)  # fmt: skip
def test_images_give_the_numbers_of_the_adapter(label, options, photos, model_folder, tmp_path):
    """The views of a method that tunes the encoder are made by the tuned one."""
    method, name = (part.replace("-", "_") for part in label.split("+"))
    plan = Plan(
        methods=("zero_shot", label),
        datasets=(str(photos),),
        shots=(3,),
        seeds=(1,),
        model=str(model_folder),
        options={label: options | {"test_time.views": VIEWS}},
    )
    summary = run_plan(plan, tmp_path / "out", cache=False, progress=False)
    assert not summary.failed and summary.done == 2
    own = get_method(method).config(**options)
    start = Classifier(load_encoder(model_folder), own, workers=0, cache=False, progress=False)
    if method == "zero_shot":
        start = Classifier(
            load_encoder(model_folder), method, ("blue", "green", "red"), workers=0, cache=False
        )
    else:
        start.fit(photos, shots=3, seed=1)
    config = get_test_time_method(name).config(views=VIEWS)
    expected = TestTimeAdapter(start, name, config=config).evaluate(photos, baselines=False)
    assert accuracies(tmp_path / "out")[label] == {"test": expected["test_time"]["accuracy"]}


def test_base_to_new_and_tables(viewed, tmp_path):
    methods = ("zero_shot", "zero_shot+confident_views", "rada", "rada+rada", "mine")
    test_time = {"test_time.views": VIEWS}
    options = {
        "zero_shot+confident_views": test_time,
        "rada": QUICK["rada"],
        "rada+rada": QUICK["rada"] | test_time,
        "mine": QUICK["rada"] | test_time | {"method": "rada+rada", "test_time.steps": 2},
    }
    plan = Plan(
        protocols=("base-to-new",),
        methods=methods,
        datasets=(str(viewed),),
        shots=(2,),
        seeds=(1, 2),
        options=options,
    )
    assert not run_plan(plan, tmp_path / "out").failed
    assert all(set(parts) == {"base", "new"} for parts in accuracies(tmp_path / "out").values())
    runs = load_runs(tmp_path / "out")
    assert set(runs.labels()) == set(methods)
    text = write_files(tmp_path / "out", "zero_shot")["markdown"].read_text()
    test_times = [get_test_time_method(name).title for name in ("confident_views", "rada")]
    for row in (f"Zero-shot + {test_times[0]}", f"RAda + {test_times[1]}", "mine"):
        assert f"| {row} |" in text


def test_what_cannot_start_is_refused_before_training(viewed, tmp_path, monkeypatch):
    monkeypatch.setattr(type(get_method("linear_probe")), "train", None)
    plan = Plan(
        methods=("zero_shot+tpt", "linear_probe+rada"),
        datasets=(str(viewed),),
        shots=(2,),
        seeds=(1,),
        options={
            label: {"test_time.views": VIEWS} for label in ("zero_shot+tpt", "linear_probe+rada")
        },
    )
    reasons = {cell.label: why for cell, why in run_plan(plan, tmp_path / "out").failed}
    assert "adapts a RAda head, and Linear probe has none" in reasons["linear_probe+rada"]
    assert "works through the encoder" in reasons["zero_shot+tpt"]
    plan = Plan(methods=("zero_shot+mean_of_views",), datasets=(str(viewed),))
    ((_, reason),) = run_plan(plan, tmp_path / "few").failed
    assert "rada encode --views" in reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("rada+radda",)}, "no test-time method 'radda': did you mean 'rada'"),
        ({"methods": ("radda+rada",)}, "no method 'radda'"),
        (
            {"methods": ("rada",), "options": {"rada": {"test_time.views": 3}}},
            "'rada' has no test-time method for 'views'",
        ),
        (
            {"methods": ("rada+rada",), "options": {"rada+rada": {"test_time.view": 3}}},
            "there is no field 'view'",
        ),
        (
            {"methods": ("rada+rada",), "options": {"rada+rada": {"test_time.views": 0}}},
            "views should be",
        ),
    ],
)
def test_bad_labels(changes, message):
    with pytest.raises(ConfigError, match=message):
        Plan.from_dict({"datasets": ("textiles",)} | changes)


def test_zero_shot_tpt_starts_from_the_words_of_the_templates():
    plan = {"methods": ("zero_shot+tpt", "coop+tpt"), "datasets": ("textiles",)}
    found = {c.label: c for c in Plan.from_dict(plan | {"templates": ("a zzz {}.",)}).cells()}
    assert dict(found["zero_shot+tpt"].test_time_options) == {"context": "a zzz"}
    assert not found["coop+tpt"].test_time_options  # its prompts are learned
    for templates in (("zzz {} qqq",), ("auto",)):
        with pytest.raises(ConfigError, match="context="):
            Plan.from_dict(plan | {"templates": templates})


def test_on_the_command_line(viewed, tmp_path):
    words = ["bench", "--methods", "zero_shot,zero_shot+mean-of-views", "--datasets", str(viewed)]
    words += ["--set", f"zero_shot+mean-of-views.test_time.views={VIEWS}", "--json"]
    done = CliRunner().invoke(cli.app, [*words, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["done"] == 2
    found = next(r for r in Folder(tmp_path / "out").results() if r["cell"]["test_time"])
    assert found["cell"]["test_time"] == "mean_of_views"
    assert found["test_time_config"]["views"] == VIEWS
