"""What people read on a terminal: names are text there, never markup, escapes or another line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import rada
from rada.cli.tables import class_table, comparison_table, plain_table
from rada.core.printable import clean
from rada.core.progress import track
from rada.core.terminal import bold, echo, screen
from rada.evaluation import compare

HOSTILE = (
    "[/b]",
    "[red]x",
    "[link=http://x]y[/link]",
    ":smile:",
    "\x1b[2J\x1b]0;owned\x07z",
    "a\rb",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_every_way_to_the_terminal_shows_the_name_itself(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = plain_table(name, name, "a heading so wide that the title fits")
    table.add_row(name, bold(name))
    screen().print(table)
    screen().print("The head is in ", bold(name), f" of {name}", sep="", soft_wrap=True)
    echo(f"error: {name}")
    echo(name, err=True)
    shown = capsys.readouterr()
    assert shown.out.count(clean(name)) == 7
    assert shown.err == f"{clean(name)}\n"
    assert "\x1b" not in shown.out and "\r" not in shown.out


@pytest.mark.parametrize("name", HOSTILE)
def test_results_and_bars(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = compare([[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [0, 1], [name, "other"])
    screen().print(comparison_table(result))
    screen().print(class_table(result))
    assert list(track([1, 2], name, enabled=True, unit=name)) == [1, 2]
    shown = capsys.readouterr()
    assert clean(name) in shown.out
    assert "\x1b[2J" not in shown.err and "\x1b]0" not in shown.err


def test_bold_is_still_bold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with (terminal := screen()).capture() as captured:
        terminal.print(bold("[/b]\x1b[2J"))
    assert captured.get() == "\x1b[1m[/b]\ufffd[2J\x1b[0m\n"


def test_lone_surrogates_can_be_printed(capsys: pytest.CaptureFixture[str]) -> None:
    echo("caf\udce9")
    screen().print("caf\udce9")
    assert capsys.readouterr().out == "caf\ufffd\ncaf\ufffd\n"


def test_nothing_else_reaches_the_terminal() -> None:
    """Text for people has one way out; a second one would be a hole in it."""
    root = Path(rada.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name == "terminal.py":
            continue
        assert "rich.console" not in text, path
        assert not re.search(r"from_markup|markup=True", text), path
        # JSON and the cache's folder are for programs and go out as they are.
        found = re.findall(r"typer\.echo\(.*", text)
        assert all("exact_json" in line or "cache_root" in line for line in found), (path, found)
        assert not re.search(r"^\s+print\(", text, re.MULTILINE), path
