"""`rada bench paper`, end to end on tiny stand-ins in the folders of the real data sets, with a tiny CLIP."""

from __future__ import annotations

import json
from typing import Any

import pytest
from timm.data import ImageNetInfo
from typer.testing import CliRunner

import layouts
import rada.cli.app as cli
from golden.make import QUICK, TUNED, tiny_encoder
from rada.bench import Plan, run_plan
from rada.bench.cells import Folder
from rada.bench.paper import PAPER, paper_plan, present, without
from rada.bench.paper_results import paper_table
from rada.bench.tables import load_runs, result_tables
from rada.core.errors import ConfigError
from rada.methods import get_method, list_methods
from rada.methods.finetune.base import EncoderConfig

SYNSETS = ImageNetInfo().label_names()
LABELS = (6, 11, 409, 530, 954)
SHRUNK = {"epochs": 1, "min_steps": 0, "prompt_epochs": 1, "head_epochs": 1, "strength": 1.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """DTD, FGVC Aircraft, ImageNet, and its shifted sets R, A and ObjectNet; the others are missing."""
    found = tmp_path_factory.mktemp("data")
    layouts.split_file(
        found, "dtd", "images", "split_zhou_DescribableTextures.json", ("red", "dog", "blue", "cat")
    )
    layouts.aircraft(found)
    layouts.imagenet(found, SYNSETS, LABELS)
    for place in ("imagenet-rendition/imagenet-r", "imagenet-adversarial/imagenet-a"):
        for label in LABELS[:3]:
            layouts.image(found / place / SYNSETS[label] / "1.jpg", label)
    layouts.objectnet(found)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "clip"
    tiny_encoder(folder)
    return str(folder)


def quick(name: str) -> list[str]:
    """Settings that make every method of a table short."""
    words = []
    for label in PAPER[name].methods():
        named = PAPER[name].options.get(label, {}).get("method", label)
        method, _, test_time = named.partition("+")
        config = get_method(method).config
        fields = QUICK.get(method, {}) | (TUNED if issubclass(config, EncoderConfig) else {})
        known = config().to_dict()
        fields |= {key: value for key, value in SHRUNK.items() if key in known}
        fields |= {"accumulate": 1} if "accumulate" in known else {}
        fields |= {"test_time.views": 10} if test_time else {}
        words += [f"--set={label}.{key}={json.dumps(value)}" for key, value in fields.items()]
    return words


def command(name: str, root: Any, model: str, out: Any, *more: str) -> Any:
    words = ["bench", "paper", "--table", name, "--data-root", str(root), "--out", str(out)]
    words += ["--model", model, "--shots", "1", "--seeds", "1", *quick(name), *more]
    return CliRunner().invoke(cli.app, words)


def rows_of(out: Any) -> dict[str, list[str]]:
    found = paper_table(load_runs(out))
    return {row[0]: list(row[1:]) for row in found.rows}


def test_base_to_new(root, model, tmp_path):
    sets = ["--datasets", "dtd,eurosat", "--json"]
    done = command("eft", root, model, tmp_path / "out", *sets)
    assert done.exit_code == 0, (done.output, done.exception)
    said = json.loads(done.stdout)
    assert list(said["missing"]) == [f"eurosat?root={root}"]
    assert "EuroSAT.zip" in said["missing"][f"eurosat?root={root}"]
    assert "missing: eurosat is not at" in done.stderr
    assert said["tables"]["eft"]["done"] == len(PAPER["eft"].methods())
    rows = rows_of(tmp_path / "out" / "eft")
    result = {r["cell"]["label"]: r for r in Folder(tmp_path / "out" / "eft").results()}
    base, new = (
        f"{100 * result['coop']['parts'][part]['accuracy']:.1f}" for part in ("base", "new")
    )
    assert rows["CoOp"][:2] == [base, new] and rows["CoOp"][3:] == ["82.69", "63.22", "71.66"]
    assert rows["DePT + MaPLe"][3:] == ["84.85", "74.82", "79.52"]
    assert rows["RAda (RAda)"][3:] == ["82.16", "74.14", "77.94"]
    # The data that was missing comes, and the same command goes on.
    layouts.split_file(
        root, "eurosat", "2750", "split_zhou_EuroSAT.json", ("Forest", "River", "SeaLake")
    )
    again = command("eft", root, model, tmp_path / "out", "--datasets", "dtd,eurosat")
    assert again.exit_code == 0, again.output
    count = len(PAPER["eft"].methods())
    assert f"{count} cells run, {count} there before" in again.output
    assert "averages of 2 of 11 sets" in again.output and "beside the paper" in again.output
    page = (tmp_path / "out" / "eft" / "index.html").read_text()
    assert "Beside the paper" in page and "80.08" in page
    assert "beside the paper" in (tmp_path / "out" / "eft" / "results.md").read_text()


def test_full_fine_tuning(root, model, tmp_path):
    sets = ["--datasets", "imagenet_r,imagenet_v2,objectnet"]
    done = command("fft", root, model, tmp_path / "out", *sets)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "missing: imagenet_v2 is not at" in done.stderr
    assert "2 of 5 shifted sets" in done.output
    results = {r["cell"]["label"]: r for r in Folder(tmp_path / "out" / "fft").results()}
    assert set(results) == set(PAPER["fft"].methods())
    parts = {name: part["classes"] for name, part in results["ft"]["parts"].items()}
    assert parts == {"source": 5, "imagenet_r": 3, "objectnet": 2}
    assert results["ft"]["config"]["warmup"] == 0.02 and results["ft"]["config"]["epochs"] == 1
    rows = rows_of(tmp_path / "out" / "fft")
    values = [results["ft"]["parts"][part]["accuracy"] for part in ("imagenet_r", "objectnet")]
    assert rows["FT"][3:] == [f"{50 * sum(values):.1f}", "81.3", "53.8"]
    assert rows["LP"][-2:] == ["79.9", "57.2"]


def test_test_time_training(root, model, tmp_path):
    sets = ["--datasets", "imagenet_a,imagenet_r"]
    done = command("ttt", root, model, tmp_path / "out", *sets)
    assert done.exit_code == 0, (done.output, done.exception)
    labels = PAPER["ttt"].methods()
    assert {"zero_shot+tpt", "coop+tpt", "cocoop+tpt", "zero_shot+rada", "rada+rada"} <= set(labels)
    runs = load_runs(tmp_path / "out" / "ttt")
    assert set(runs.datas("shift")) == {"imagenet_a", "imagenet_r"}  # one cell each
    assert len(runs.results) == 2 * len(labels)
    assert all(set(r["parts"]) == {"test"} for r in runs.results)
    rows = rows_of(tmp_path / "out" / "ttt")
    (a,), (r,) = (
        runs.values("shift", data, "coop+tpt", 1, "test").values()
        for data in ("imagenet_a", "imagenet_r")
    )
    assert rows["CoOp + TPT"] == [
        f"{100 * a:.1f}",
        f"{100 * r:.1f}",
        f"{50 * (a + r):.1f}",
        "62.84",
    ]
    for row, label in (("PromptAlign", "maple+prompt_align"), ("MaPLe + TPT", "maple-tpt")):
        (a,) = runs.values("shift", "imagenet_a", label, 1, "test").values()
        assert rows[row][0] == f"{100 * a:.1f}" and label in labels
    assert rows["PromptAlign"][-1] == "63.55"
    found = PAPER["ttt"].options["maple-tpt"]
    assert (found["test_time.weight"], found["test_time.learning_rate"]) == (0.0, 0.04)
    titles = [found.title for found in result_tables(runs, "zero_shot")]
    assert titles[0] == "Shift, average of 2 sets, %"
    assert set(titles[1:3]) == {"Shift, imagenet_a, %", "Shift, imagenet_r, %"}


def test_without_imagenet_what_learns_nothing_still_runs(root, model, tmp_path):
    plan = paper_plan("ttt", str(root), datasets=["imagenet_a"], model=model)
    gone = without(plan, {f"imagenet?root={root}"})
    assert gone.methods == ("zero_shot", "zero_shot+tpt", "zero_shot+rada")
    assert all(cell.dataset == cell.targets[0] for cell in gone.cells())
    assert without(plan, set(plan.targets)) is None
    fft = paper_plan("fft", str(root))
    assert without(fft, {f"imagenet?root={root}"}) is None
    left = without(fft, {f"imagenet_v2?root={root}"})
    assert len(left.targets) == 4 and left.methods == fft.methods


def test_a_shift_needs_nothing_but_what_it_is_tested_on(root, model, tmp_path):
    """Candidates that share a class among them: ObjectNet's."""
    spec = f"objectnet?root={root}"
    plan = Plan(
        protocols=("shift",),
        methods=("zero_shot", "rada"),
        datasets=(f"imagenet?root={root}",),
        targets=(spec,),
        shots=(1,),
        seeds=(1,),
        model=model,
        options={"rada": {"epochs": 1, "min_steps": 0, "strength": 0.5}},
    )
    summary = run_plan(plan, tmp_path / "out", progress=False)
    assert not summary.failed and summary.done == 2
    found = {r["cell"]["label"]: r for r in Folder(tmp_path / "out").results()}
    assert found["zero_shot"]["cell"]["dataset"] == spec
    assert set(found["zero_shot"]["identities"]) == {spec}
    assert set(found["rada"]["identities"]) == {spec, plan.datasets[0]}
    assert {part["images"] for r in found.values() for part in r["parts"].values()} == {2}
    assert run_plan(plan, tmp_path / "out").skipped == 2
    with pytest.raises(ConfigError, match="shift needs --targets"):
        Plan.from_dict(plan.to_dict() | {"targets": ()})


def test_plans_are_the_papers():
    eft, fft, ttt = (paper_plan(name, "/data") for name in ("eft", "fft", "ttt"))
    assert len(eft.datasets) == 11 and (eft.shots, eft.seeds) == ((16,), (1, 2, 3))
    assert {plan.model for plan in (eft, fft, ttt)} == {"open_clip:ViT-B-16/openai"}
    assert len(fft.targets) == 5 and len(ttt.targets) == 4
    assert fft.configs("ft")[0].batch_size == 512
    titles = {method.title for method in list_methods()}
    for row in PAPER["eft"].rows:  # what the registry has is run, by its title
        if row in titles:
            assert PAPER["eft"].labels_of(row), row
    everything = paper_plan("eft", "/data", methods=["all"]).methods
    assert {"gda", "taskres", "coop", "zero_shot"} <= set(everything) and "ft" not in everything
    tuned = paper_plan("eft", "/data", methods=["coop"], options={"coop": {"epochs": 3}})
    assert tuned.methods == ("zero_shot", "coop") and tuned.configs("coop")[0].epochs == 3


def test_printed_values_agree_with_each_other():
    for values in PAPER["eft"].rows.values():
        mean = 2 * values["Base"] * values["New"] / (values["Base"] + values["New"])
        assert mean == pytest.approx(values["HM"], abs=0.02)
    for table in PAPER.values():
        assert all(set(values) == set(table.columns) for values in table.rows.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "eff"], "no table 'eff'"),
        (["--datasets", "pets"], "none of the data sets of the table eft"),
        (["--table", "eft", "--methods", "radar"], "did you mean 'rada'"),
        (["--table", "ttt", "--set", "kgcoop.epochs=1"], "options for 'kgcoop'"),
    ],
)
def test_bad_commands(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(cli.app, ["bench", "paper", *arguments])
    assert isinstance(found.exception, ConfigError) and message in str(found.exception)
    assert not list(tmp_path.iterdir())


def test_nothing_there(tmp_path):
    there, missing = present((f"imagenet?root={tmp_path}", f"dtd?root={tmp_path}"))
    assert not there and all("put " in text for text in missing.values())
    words = ["bench", "paper", "--data-root", str(tmp_path), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 1 and done.stderr.count("nothing can be run") == 3
    assert done.stderr.count("missing: ") == 16 and not (tmp_path / "out").exists()
