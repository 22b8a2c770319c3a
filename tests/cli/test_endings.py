"""How commands end before their end: wrong words, Ctrl-C, an output that is full or closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.test_cli import QUICK, environment, features, ok, refused  # noqa: F401 - fixtures

FULL = Path("/dev/full")
COMMAND = [sys.executable, "-m", "rada"]
SLOW = ("--set", "epochs=1000000", "--set", "strength=1")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("words", "unbuffered"),
    [(["models"], ""), (["models", "--json"], ""), (["models"], "1"), (["fit", "--help"], "1")],
)
def test_an_output_that_is_full(
    environment: dict[str, str],  # noqa: F811
    words: list[str],
    unbuffered: str,
) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [*COMMAND, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"PYTHONUNBUFFERED": unbuffered},
        )
    told = "error: cannot write standard output: the disk is full; free some space\n"
    assert (done.returncode, done.stderr) == (2, told)


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
def test_predictions_that_do_not_go_out(
    environment: dict[str, str],  # noqa: F811
    features: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    ok("fit", features["train"], "--out", tmp_path / "head", *QUICK, environment=environment)
    for command in ("predict", "evaluate"):
        with FULL.open("w") as full:
            done = subprocess.run(
                [*COMMAND, command, tmp_path / "head", features["test"]],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert done.stderr.endswith(
            "cannot write standard output: the disk is full; free some space\n"
        )


def test_another_os_error_keeps_its_traceback() -> None:
    from rada.cli.endings import told

    with pytest.raises(OSError, match="broken"), told():
        raise OSError("broken")


def test_an_output_that_is_closed(environment: dict[str, str]) -> None:  # noqa: F811
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *COMMAND, "models"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["fit", "x", "--shots", "0"], "--shots should be an integer, 1 or more, not '0' (rada fit --help)"),
        (["fit", "x", "--shots", "-3"], "--shots should be an integer, 1 or more, not '-3' (rada fit"),
        (["fit", "x", "--shots", "abc"], "--shots should be an integer, 1 or more, not 'abc'"),
        (["fit", "x", "--scale", "big"], "--scale should be a number, not 'big' (rada fit --help)"),
        (["predict", "x", "--top-k", "0"], "--top-k should be an integer, 1 or more, not '0'"),
        (["predict", "x", "--workers", "-1"], "--workers should be an integer, 0 or more, not '-1'"),
        (["app", "--port", "99999"], "--port should be an integer from 1 to 65535, not '99999'"),
        (["fit", "x", "--shost", "3"], "there is no option --shost: did you mean --shots? (rada fit"),
        (["fit"], "the argument DATA is missing (rada fit --help)"),
        (["fit", "x"], "the option --out is missing (rada fit --help)"),
        (["fit", "x", "--shots"], "--shots"),
        (["fot"], "no such command 'fot'. Did you mean 'fit'? (rada --help)"),
        (["bench", "quik"], "no such command 'quik'. Did you mean 'quick'? (rada bench --help)"),
    ],
)  # fmt: skip
def test_wrong_words_are_one_line(
    environment: dict[str, str],  # noqa: F811
    words: list[str],
    told: str,
) -> None:
    line, *more = refused(*words, environment=environment).splitlines()
    assert line.startswith("error: ") and told in line and "--help)" in line and not more


def test_a_long_value_is_shortened(environment: dict[str, str]) -> None:  # noqa: F811
    told = refused("fit", "x", "--shots", "9" * 400 + "x", environment=environment)
    assert len(told) < 200


def interrupted(words: list[str | Path], sign: str, environment: dict[str, str]) -> tuple[int, str]:  # noqa: F811
    """Run a command, press Ctrl-C once a text stands on standard error, and return how it ended."""
    # Of a parent that ignores SIGINT, as a shell's job in the background, a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run = subprocess.Popen(
            [*COMMAND, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=environment,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert run.stderr is not None
    for line in run.stderr:
        if sign in line:
            break
    time.sleep(0.2)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    _, told = run.communicate(timeout=60)
    return run.returncode, told


def test_ctrl_c_before_training(
    environment: dict[str, str],  # noqa: F811
    features: dict[str, Path],  # noqa: F811
    tmp_path: Path,
) -> None:
    """The first line stands there before torch is imported."""
    words = ["fit", features["train"], "--out", tmp_path / "head", *SLOW]
    code, told = interrupted(words, "Opening", environment)
    # In the midst of an import, Python itself dies of the signal in the end; a shell calls that 130 too.
    assert code in (130, -signal.SIGINT)
    assert told == "interrupted; the same command goes on from there\n"


def test_ctrl_c_says_what_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    from rada.cli.encode import _keeps
    from rada.cli.endings import resumable, told
    from rada.training.encoder_loop import FineTuningStopped

    def command(stop: BaseException, **_: object) -> None:
        raise stop

    def said(stop: BaseException, **given: object) -> tuple[int, str]:
        with pytest.raises(typer.Exit) as left, told():
            resumable(command)(stop, **given)
        return left.value.exit_code, capsys.readouterr().err

    goes_on = "; the same command goes on from there\n"
    assert said(KeyboardInterrupt()) == (130, f"interrupted{goes_on}")
    assert said(KeyboardInterrupt(), no_cache=True) == (130, "interrupted\n")
    stop = KeyboardInterrupt("interrupted after 3 epochs")
    assert said(stop, no_cache=True) == (130, f"interrupted after 3 epochs{goes_on}")
    assert said(FineTuningStopped(15, 7)) == (143, f"SIGTERM: stopped after step 7{goes_on}")
    with pytest.raises(typer.Exit), told():
        command(KeyboardInterrupt())
    assert capsys.readouterr().err == "interrupted\n"
    assert _keeps({"no_cache": True, "out": Path("a-store")})
    assert not _keeps({"no_cache": True, "out": Path("a.safetensors")})
