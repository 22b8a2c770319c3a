"""From results to files: intervals, tables, CSV, Markdown, LaTeX, the page and the commands."""

from __future__ import annotations

import csv
import json
import re

import pytest
from scipy import stats
from typer.testing import CliRunner

import rada.cli.app as cli
from bench_samples import QUICK, write_features
from rada.bench import Plan, run_plan
from rada.bench.page import latex, markdown, write_files
from rada.bench.recipes import recipe
from rada.bench.tables import ResultTable, Runs, load_runs, paired_difference, result_tables
from rada.core.errors import CheckpointError, ConfigError


def result(label, seed, parts, *, protocol="base-to-new", data="pets", shots=4, **extra):
    cell = {"protocol": protocol, "label": label, "method": label, "dataset": data}
    cell |= {"shots": shots if seed else 0, "seed": seed, "targets": []}
    found = {
        name: {"name": name, "accuracy": value, "images": 10, "classes": 3}
        for name, value in parts.items()
    }
    costs = {"trainable_parameters": 5, "fit_seconds": 1.0, "predict_seconds": 0.1, "memory": None}
    means = {}
    if {"base", "new"} <= set(parts) and None not in parts.values():
        b, n = parts["base"], parts["new"]
        means = {"harmonic_mean": 2 * b * n / (b + n)}
    return {"cell": cell, "parts": found, "config": {}, "environment": {}} | costs | means | extra


def table(tables, title):
    found = next(t for t in tables if t.title.startswith(title))
    return {row[0]: dict(zip(found.columns[1:], row[1:], strict=True)) for row in found.rows}


def test_interval_is_students():
    gaps = [0.02, 0.05, -0.01]
    found = paired_difference({1: 0.52, 2: 0.65, 3: 0.69}, {1: 0.5, 2: 0.6, 3: 0.7})
    low, high = stats.t.interval(0.95, 2, stats.describe(gaps).mean, stats.sem(gaps))
    assert (found.mean, found.low, found.high) == pytest.approx((0.02, low, high))
    assert found.runs == 3


def test_differences_take_common_seeds_alone():
    assert paired_difference({1: 0.5, 2: 0.6}, {2: 0.5, 3: 0.9}).runs == 1
    assert paired_difference({1: 0.5}, {2: 0.5}) is None
    constant = paired_difference({1: 0.5, 2: 0.7}, {0: 0.5})
    assert constant.runs == 2 and constant.mean == pytest.approx(0.1)
    assert paired_difference({0: 0.6}, {0: 0.5}).low is None


def test_both_harmonic_means_are_named():
    """HM of the averages is not the mean of the HMs; published tables use the first."""
    results = [
        result("rada", 1, {"base": 0.9, "new": 0.3}, data="pets"),
        result("rada", 1, {"base": 0.5, "new": 0.7}, data="cars"),
        result("zero_shot", 0, {"base": 0.5, "new": 0.5}, data="pets"),
        result("zero_shot", 0, {"base": 0.5, "new": 0.5}, data="cars"),
    ]
    rows = table(result_tables(Runs({}, results), "zero_shot"), "Base to new, average of 2")
    averages, means = rows["RAda"]["HM of the averages"], rows["RAda"]["mean of the HMs"]
    assert float(averages) == pytest.approx(100 * 2 * 0.7 * 0.5 / 1.2, abs=0.05)
    assert float(means) == pytest.approx(100 * (0.45 + 0.7 / 1.2) / 2, abs=0.05)


def test_seeds_give_mean_deviation_and_difference():
    results = [result("zero_shot", 0, {"test": 0.5}, protocol="few-shot")]
    results += [
        result("rada", seed, {"test": value}, protocol="few-shot", shots=shots)
        for shots, values in ((1, (0.5, 0.6, 0.7)), (4, (0.7, 0.7, 0.7)))
        for seed, value in enumerate(values, 1)
    ]
    rows = table(result_tables(Runs({}, results), "zero_shot"), "Few-shot")
    assert rows["RAda"]["1 shot"] == "60.0 ± 10.0"
    assert rows["RAda"]["4 shots against Zero-shot"] == "+20.0 (+20.0 to +20.0)"
    assert rows["Zero-shot"]["1 shot"] == rows["Zero-shot"]["4 shots"] == "50.0"


def test_unequal_classes_are_shown_balanced_too():
    results = [result("zero_shot", 0, {"test": 0.5}, protocol="few-shot")]
    titles = [t.title for t in result_tables(Runs({}, results), "zero_shot")]
    assert titles == ["Few-shot accuracy, pets, %", "Cost"]
    results[0]["parts"]["test"]["balanced_accuracy"] = 0.4
    rows = table(result_tables(Runs({}, results), "zero_shot"), "Few-shot balanced accuracy")
    assert rows["Zero-shot"]["0 shots"] == "40.0"


def test_what_a_method_cannot_do_is_a_dash():
    results = [
        result("zero_shot", 0, {"base": 0.5, "new": 0.5}),
        result("linear_probe", 1, {"base": 0.9, "new": None}),
    ]
    rows = table(result_tables(Runs({}, results), "zero_shot"), "Base to new")
    assert rows["Linear probe"]["New"] == rows["Linear probe"]["HM"] == "\u2013"


def test_unknown_reference():
    results = [result("zero_shot", 0, {"base": 0.5, "new": 0.5})]
    with pytest.raises(ConfigError, match="did you mean 'zero_shot'"):
        result_tables(Runs({}, results), "zero_shots")


def test_latex_and_markdown_escape():
    found = ResultTable("50 % of a_b", ["Method", "x & y"], [["a|b", "5 ± 1"]], note="so")
    assert r"a\|b" in markdown(found) and markdown(found).rstrip().endswith("so")
    text = latex(found)
    assert r"\caption{50 \% of a\_b}" in text and r"x \& y" in text and r"5 $\pm$ 1 \\" in text


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A benchmark of two protocols with a failed method."""
    folder = tmp_path_factory.mktemp("bench")
    plan = Plan(
        protocols=("few-shot", "base-to-new"),
        methods=("zero_shot", "coop", "tip_adapter", "rada"),
        datasets=(write_features(folder),),
        shots=(1, 2),
        seeds=(1, 2),
        options={"rada": QUICK["rada"]},
    )
    run_plan(plan, folder / "out")
    return folder / "out"


def test_files(finished):
    files = write_files(finished)
    assert {path.name for path in files.values()} == {
        "results.csv", "results.md", "results.tex", "index.html",
    }  # fmt: skip
    rows = list(csv.DictReader(files["csv"].open()))
    rada = [
        row for row in rows if (row["method"], row["part"], row["shots"]) == ("rada", "HM", "2")
    ]
    values = load_runs(finished).values("base-to-new", "pets", "rada", 2, "HM")
    assert float(rada[0]["mean"]) == pytest.approx(sum(values.values()) / 2, abs=1e-6)
    assert rada[0]["seeds"] == "2" and float(rada[0]["low"]) <= float(rada[0]["high"])
    assert "| RAda |" in files["markdown"].read_text()
    assert files["latex"].read_text().count(r"\begin{tabular}") == 5
    page = files["html"].read_text()
    assert "coop works through the encoder" in page and "RAda" in page
    assert not re.search(r'(src|href)="https?:', page)  # needs no network
    assert page.count("<figure") >= 4


def test_recipes():
    plan = recipe("paper-cross", "/data")
    assert plan.datasets == ("imagenet?root=/data",) and len(plan.targets) == 10
    assert plan.seeds == (1, 2, 3) and plan.shots == (16,)
    assert recipe("paper-dg", "/data").targets[-1] == "objectnet?root=/data"
    assert {"rada", "zero_shot", "tip_adapter_f"} <= set(recipe("quick").methods)


def test_nothing_to_report(tmp_path):
    with pytest.raises(CheckpointError, match=r"bench\.json' does not exist"):
        write_files(tmp_path)


def test_command(tmp_path):
    data = write_features(tmp_path)
    command = ["bench", "--methods", "zero_shot,tip-adapter", "--datasets", data, "--shots", "1,2"]
    command += ["--seeds", "1,2", "--set", "tip-adapter.alpha=2.0", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["done"] == 5 and not said["failed"]
    again = CliRunner().invoke(cli.app, command)
    assert again.exit_code == 0 and "5 there before" in again.output
    report = CliRunner().invoke(cli.app, ["bench", "report", str(tmp_path / "out")])
    assert report.exit_code == 0 and "index.html" in report.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "rada"], "say --methods and --datasets"),
        (["--methods", "rada", "--datasets", "x"], "say where the results go"),
        (
            ["--methods", "rada", "--datasets", "x", "--out", "o", "--shots", "few"],
            "--shots should be",
        ),
        (["--methods", "radar", "--datasets", "x", "--out", "o"], "did you mean 'rada'"),
        (["--methods", "rada", "--datasets", "x", "--out", "o"], "reference 'zero_shot' is none"),
        (
            ["--methods", "rada", "--datasets", "x", "--out", "o", "--set", "a=1"],
            "METHOD.FIELD=VALUE",
        ),
    ],
)
def test_bad_commands(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(cli.app, ["bench", *arguments])
    assert isinstance(found.exception, ConfigError) and message in str(found.exception)
    assert not list(tmp_path.iterdir())
