"""Tables on terminals of any width: nothing is cut."""

from __future__ import annotations

import pytest

from rada.cli.tables import comparison_table, plain_table
from rada.core.terminal import bold, screen

INTERVAL = [0.824, 1.0]


def result() -> dict[str, object]:
    row = {"accuracy": 1.0, "balanced_accuracy": 0.996, "ece": 0.316, "interval": INTERVAL}
    return {
        "images": 18,
        "classes": ["cat", "dog", "eel"],
        "rows": ["zero_shot"],
        "zero_shot": row,
        "chance": 1 / 3,
    }


@pytest.mark.parametrize("width", [20, 30, 40, 52, 60, 66, 80, 200])
def test_no_value_is_cut(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    screen().print(comparison_table(result()))
    told = capsys.readouterr().out
    assert "\u2026" not in told and max(map(len, told.splitlines())) <= width
    for number in ("100.0", "82.4\u2013100.0", "99.6", "31.6", "33.3"):
        assert number in told


def test_a_narrow_terminal_has_a_line_for_each_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "24")
    table = plain_table("A title", "class", "accuracy", "calibration")
    table.add_row("[b]a\x1b[2J", "90.0 %", bold("3.1 %"))
    table.add_row("chance", "33.3 %", "")
    screen().print(table)
    assert capsys.readouterr().out.splitlines() == [
        "A title",
        "[b]a\ufffd[2J",
        "  accuracy: 90.0 %",
        "  calibration: 3.1 %",
        "chance",
        "  accuracy: 33.3 %",
    ]
