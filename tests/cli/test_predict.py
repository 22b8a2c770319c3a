"""`rada predict` as a stream: what it reads, what it writes, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image, features

from cli.test_cli import rada
from rada import Classifier
from rada.cli import opening
from rada.cli.places import is_image
from rada.test_time import list_test_time_methods
from test_time.tiny_views import TinyEncoder, write_images

NAMES = ("cat", "dog")
KINDS = ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "jp2", "avif", "heic")


class Run:
    """Runs `rada predict` on a tiny model in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: tuple[str, ...] = NAMES
        self.loaded = 0
        monkeypatch.setattr(opening, "open_classifier", self._open)

    def _open(self, *_: object, skip_bad: bool, **__: object) -> Classifier:
        self.loaded += 1
        options = {"cache": False, "workers": 0, "skip_bad": skip_bad, "progress": False}
        return Classifier(TinyEncoder(), "zero_shot", self.names, **options)

    def __call__(
        self, *arguments: str | Path, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[str]:
        return rada("predict", "a-head", *arguments, environment={}, stdin=stdin)

    def ok(self, *arguments: str | Path, stdin: bytes = b"") -> str:
        done = self(*arguments, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    def rows(self, *arguments: str | Path, stdin: bytes = b"") -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.ok(*arguments, stdin=stdin))))

    def answers(self, *arguments: str | Path, stdin: bytes = b"") -> list[dict[str, object]]:
        lines = self.ok(*arguments, "--json", stdin=stdin).splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch) -> Run:
    return Run(monkeypatch)


def draw(path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def draw_bytes(folder: Path, name: bytes) -> bytes:
    """Write an image under any name that a file system of Linux takes."""
    place = os.fsencode(folder) + b"/" + name
    try:
        with open(place, "wb") as stream:  # noqa: PTH123
            stream.write(draw(folder / "source.png").read_bytes())
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    return place


# -- standard input ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_every_kind_is_told_from_text(predict: Run, tmp_path: Path, kind: str) -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    if kind == "avif" and not features.check("avif"):
        pytest.skip("this version of Pillow writes no AVIF")
    content = draw(tmp_path / f"one.{kind}").read_bytes()
    assert is_image(content[:32])
    (piped,) = predict.answers("-", stdin=content)
    (named,) = predict.answers(tmp_path / f"one.{kind}")
    assert piped["predictions"] == named["predictions"] and piped["path"] == "image 0"


@pytest.mark.parametrize(
    "name", ["été.png", "日本語.png", "é" * 20 + ".png", "BM.png", "RIFF.png", "P6.png", " a .png"]
)
@pytest.mark.parametrize(
    ("encoding", "end"), [("utf-8", "\n"), ("utf-8-sig", "\r\n"), ("utf-16", "\r\n")]
)
def test_paths_in_any_script_are_no_image(
    predict: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    encoding: str,
    end: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / name)
    found = predict.answers("-", stdin=f"{name}{end}{end}{name}{end}".encode(encoding))
    assert [answer["path"] for answer in found] == [name, name]


def test_answers_come_while_paths_are_still_written(
    predict: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream of paths is answered as far as it goes, not at its end."""
    from rada.cli.places import Places

    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as source:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        source.write(b"\xef\xbb\xbfone.png\n")
        found = iter(Places(["-"]))
        first: list[object] = []
        reader = threading.Thread(target=lambda: first.append(next(found)), daemon=True)
        reader.start()
        reader.join(20)
        assert first == [Path("one.png")]
        sys.stdin.detach()


# -- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["argument", "stdin", "folder"])
def test_a_name_that_is_no_unicode(predict: Run, tmp_path: Path, how: str) -> None:
    place = draw_bytes(tmp_path, b"caf\xe9.png")
    arguments: tuple[str | Path, ...] = (os.fsdecode(place),)
    stdin = b""
    if how == "stdin":
        arguments, stdin = ("-",), place + b"\n"
    elif how == "folder":
        arguments = (tmp_path,)
    other = tmp_path / "source.png"
    shown = str(tmp_path / "caf\\xe9.png")
    rows = predict.rows(*arguments, other, stdin=stdin)
    assert rows[0]["path"] == shown and rows[-1]["path"] == str(other)
    answers = predict.answers(*arguments, other, stdin=stdin)
    assert os.fsencode(str(answers[0]["path"])) == place
    assert answers[-1]["path"] == str(other)
    predict.ok(*arguments, other, "--out", tmp_path / "a.csv", stdin=stdin)
    assert shown in (tmp_path / "a.csv").read_text(encoding="utf-8")
    predict.ok(*arguments, other, "--json", "--out", tmp_path / "a.jsonl", stdin=stdin)
    first = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert os.fsencode(json.loads(first)["path"]) == place


def test_a_bad_image_whose_name_is_no_unicode(predict: Run, tmp_path: Path) -> None:
    place = draw_bytes(tmp_path, b"caf\xe9.png")
    Path(os.fsdecode(place)).write_bytes(b"no image")
    done = predict(os.fsdecode(place), tmp_path / "source.png", "--skip-bad")
    assert done.returncode == 0 and "skipped: 'caf" in done.stderr.replace(f"{tmp_path}/", "")
    assert len(done.stdout.splitlines()) == 2
    assert predict(os.fsdecode(place)).returncode == 2


def test_a_name_outside_of_the_code_page(predict: Run, tmp_path: Path) -> None:
    """A terminal of an old code page loses no answer; its JSON is JSON."""
    draw(tmp_path / "日本.png")
    code = (
        "import sys; from unittest import mock; sys.path[:0] = sys.argv.pop(1).split(':')\n"
        "import pytest; from cli.test_predict import Run; from rada.cli import main\n"
        "Run(pytest.MonkeyPatch()); main()"
    )
    path = f"{Path(__file__).parents[1]}:{Path(__file__).parents[2] / 'src'}"
    for arguments in ([], ["--json"]):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                code,
                path,
                "predict",
                "h",
                str(tmp_path / "日本.png"),
                *arguments,
            ],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": "latin-1"},
            check=True,
        )
        line = done.stdout.decode("latin-1").splitlines()[-1]
        shown = json.loads(line)["path"] if arguments else line
        assert ("日本.png" if arguments else "\\u65e5\\u672c.png") in shown


HOSTILE = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "=cmd|' /C calc'!A0",
    "\t=1",
    "\x1b[2J\x1b]0;x\x07",
    "a\x9b2J",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_the_table_commands_neither_a_spreadsheet_nor_a_terminal(
    predict: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    file = name.replace("/", "_") + ".png"
    draw(tmp_path / "source.png").rename(tmp_path / file)
    predict.names = (name, f"{name} other")
    stdin = os.fsencode(file) + b"\n"
    text = predict.ok("-", stdin=stdin)
    assert not any(
        (ord(sign) < 32 and sign not in "\n\t") or 127 <= ord(sign) < 160 for sign in text
    )
    (row,) = csv.DictReader(io.StringIO(text))
    for value in (row["path"], row["class"]):
        assert not value.startswith(("=", "+", "-", "@", "\t", "\r"))
    raw = predict.ok("-", "--json", stdin=stdin)
    assert "\x1b" not in raw and "\x9b" not in raw
    answer = json.loads(raw)
    assert answer["path"] == file and answer["predictions"][0]["name"] in predict.names


# -- errors and ends -----------------------------------------------------------------------------


def test_inputs_are_checked_before_the_model_is_loaded(predict: Run, tmp_path: Path) -> None:
    good = draw(tmp_path / "one.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.csv").write_text("path,label\nlost.png,a\none.png,b\n", encoding="utf-8")
    for bad in ("nowhere.png", "empty", "t.csv", "s3://bucket/a.png"):
        place = bad if "://" in bad else tmp_path / bad
        done = predict(good, place)
        assert done.returncode == 2 and bad in done.stderr + "t.csv"
        assert done.stdout == "" and predict.loaded == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "path,label,split\nb.png,,test\na.png,cat,train\nb.png,dog,left\n"),
        ("t.csv", "label,label,path\n,1.5,b.png\n,,a.png\n,,b.png\n"),
        ("t.tsv", "file_name\nb.png\na.png\nb.png\n"),
        ("t.jsonl", '{"path": "b.png"}\n{"path": "a.png", "label": null}\n{"path": "b.png"}\n'),
    ],
)
def test_of_a_table_the_paths_are_enough(
    predict: Run, tmp_path: Path, name: str, text: str
) -> None:
    draw(tmp_path / "a.png"), draw(tmp_path / "b.png")
    table = tmp_path / name
    table.write_text(text, encoding="utf-8")
    assert [Path(row["path"]).name for row in predict.rows(table)] == ["b.png", "a.png", "b.png"]
    (tmp_path / "a.png").unlink()
    done = predict(table)
    assert done.returncode == 2 and "a.png" in done.stderr and "--skip-bad" in done.stderr
    skipped = predict(table, "--skip-bad")
    assert skipped.returncode == 0 and "1 unreadable image left out" in skipped.stderr


def test_a_table_without_paths_is_no_list_of_images(predict: Run, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("label\ncat\n", encoding="utf-8")
    assert "should name the column path, but it is" in predict(table).stderr
    table.write_text("path,label\na.png,cat\n,dog\n", encoding="utf-8")
    assert "line 3: the path is None" in predict(table).stderr


def test_no_heading_before_an_error(predict: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    done = predict(tmp_path / "bad.png")
    assert done.returncode == 2 and done.stdout == ""
    done = predict(tmp_path / "bad.png", "--skip-bad")
    assert done.returncode == 0 and done.stdout == "path,class,probability\n"
    done = predict("-", stdin=b"nowhere.png\n")
    assert done.returncode == 2 and done.stdout == "" and "nowhere.png" in done.stderr


class _Gone(io.TextIOWrapper):
    """Output whose reader leaves after some lines."""

    def __init__(self, lines: int) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self.lines = lines

    def write(self, text: str) -> int:
        if self.lines == 0:
            raise BrokenPipeError(32, "Broken pipe")
        self.lines -= 1
        return super().write(text)


@pytest.mark.parametrize("lines", [0, 1, 2])
def test_a_reader_that_leaves_early_is_no_failure(predict: Run, tmp_path: Path, lines: int) -> None:
    from rada.cli import main

    words = ["rada", "predict", "a-head", *[str(draw(tmp_path / f"{n}.png")) for n in range(5)]]
    with (
        mock.patch.multiple(sys, argv=words, stdout=_Gone(lines)),
        pytest.raises(SystemExit) as left,
    ):
        main()
    assert left.value.code == 0


@pytest.mark.parametrize("command", [("datasets",), ("models",), ("models", "--json")])
def test_every_command_may_be_piped_into_head(command: tuple[str, ...]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "rada", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 0 and errors == b""


@pytest.mark.parametrize("command", [("fit", "--out", "o"), ("finetune", "--out", "o")])
@pytest.mark.parametrize("data", ["nowhere", "nowhere.csv", "nowhere.tar", "nowhere.safetensors"])
def test_no_command_loads_a_model_for_data_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], data: str
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = mock.Mock(side_effect=AssertionError("loaded"))
    for module in (
        "rada.encoders",
        "rada.encoders.loading",
        "rada.encoders.slot",
        "rada.finetuner",
    ):
        monkeypatch.setattr(f"{module}.load_encoder", loaded)
    done = rada(command[0], data, *command[1:], "--model", "embedded", environment={})
    assert done.returncode == 2 and data in done.stderr and "nowhere" in done.stderr


@pytest.mark.parametrize("data", ["nowhere", "nowhere.csv", "nowhere.safetensors"])
def test_evaluate_looks_for_its_data_first(predict: Run, tmp_path: Path, data: str) -> None:
    done = rada("evaluate", "a-head", tmp_path / data, environment={})
    assert done.returncode == 2 and data in done.stderr and predict.loaded == 0


@pytest.mark.parametrize(
    "method", [method.name for method in list_test_time_methods() if not method.needs]
)
def test_every_test_time_method_predicts_a_stream(
    predict: Run, tmp_path: Path, method: str
) -> None:
    first, second = write_images(tmp_path / "images", count=2).ids
    views = () if method == "tda" else ("--views", "10")  # its default is the image itself
    images = [tmp_path / "images" / name for name in (first, second)]
    found = predict.answers(*images, "--test-time", method, *views, "--top-k", "2")
    assert [line["path"] for line in found] == [str(path) for path in images]
    for line in found:
        chances = [entry["probability"] for entry in line["predictions"]]  # type: ignore[attr-defined]
        assert sum(chances) == pytest.approx(1)


@pytest.mark.parametrize("mode", [(), ("--online",)])
def test_an_explanation_leaves_the_predictions_of_a_stream_alone(
    predict: Run, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    folder = tmp_path / "images"
    write_images(folder, count=3)
    chosen = ("--test-time", "rada", "--views", "10", "--test-time-set", "agreement=0.0", *mode)
    plain = predict.answers(folder, *chosen)
    told = predict.answers(folder, *chosen, "--explain")
    for one, other in zip(plain, told, strict=True):
        best, same = one["predictions"][0], other["predictions"][0]  # type: ignore[index]
        assert best["name"] == same["name"] and "explanation" in other
        assert best["probability"] == pytest.approx(same["probability"], abs=1e-4)


def test_a_method_that_keeps_some_views_says_how_many_it_needs(
    predict: Run, tmp_path: Path
) -> None:
    image = draw(tmp_path / "one.png")
    done = predict(image, "--test-time", "zero", "--views", "5")
    assert done.returncode == 2 and "give at least 10 views" in done.stderr
    for method in ("mta", "mean_of_views"):  # all views have a part
        assert len(predict.answers(image, "--test-time", method, "--views", "5")) == 1
    kept = ("--test-time", "tda", "--test-time-set", "predict_with=kept")
    assert "1 views are too few" in predict(image, *kept).stderr
    online = predict(image, "--test-time", "tda", "--online")
    assert online.returncode == 2 and "--online belongs to --test-time rada" in online.stderr
