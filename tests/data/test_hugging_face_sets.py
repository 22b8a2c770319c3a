"""Data sets of Hugging Face by name and from disk, and refusals of several labels for one image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rada import open_dataset
from rada.cli.app import app
from rada.convert import convert_data
from rada.core.errors import DataError

# ImportError: with the oldest numpy that rada takes, today's pyarrow cannot be imported.
datasets = pytest.importorskip(
    "datasets", reason="needs the extra 'datasets'", exc_type=ImportError
)

NAMES = ("a_cat", "dog")


def pixels(number: int) -> Image.Image:
    return Image.fromarray(np.full((12, 16, 3), 20 * number, np.uint8))


def a_set(count: int = 4, kind: Any = None, **columns: Any) -> Any:
    kind = datasets.ClassLabel(names=list(NAMES)) if kind is None else kind
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    rows = {
        "image": [pixels(number) for number in range(count)],
        "label": [number % 2 for number in range(count)],
    }
    return datasets.Dataset.from_dict(rows | columns, features=features)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    both = datasets.DatasetDict(train=a_set(6), test=a_set(2), extra=a_set(2))
    both.save_to_disk(tmp_path / "pets")
    return tmp_path / "pets"


def test_saved_data_sets(saved: Path, recwarn: pytest.WarningsRecorder) -> None:
    for spec in (str(saved), f"hf-dataset:{saved}"):
        found = open_dataset(spec)
        assert found.name == "pets" and found.classes == ("a cat", "dog")
        assert found.keys == NAMES and set(found.splits) == {"train", "test"}
        train = found.split("train")
        assert train.labels.tolist() == [0, 1, 0, 1, 0, 1]
        assert train.load(2).getpixel((0, 0)) == (40, 40, 40) and train.ids[2] == "pets/train/2"
    assert any("'extra' is left out" in str(warning.message) for warning in recwarn)
    one = saved.parent / "one"
    a_set(4).save_to_disk(one)
    assert set(open_dataset(str(one)).splits) == {"all"}


def test_folders_that_the_library_reads(tmp_path: Path) -> None:
    """Parquet files, and labels that are texts."""
    texts = a_set(4, datasets.Value("string"), label=["dog", "cat", "dog", "cat"])
    texts = texts.rename_column("label", "species")
    (tmp_path / "files").mkdir()
    texts.to_parquet(tmp_path / "files" / "train.parquet")
    found = open_dataset(f"hf-dataset:{tmp_path / 'files'}?label=species")
    assert found.classes == ("cat", "dog")
    assert found.split("train", "all").labels.tolist() == [1, 0, 1, 0]


def test_the_command_line(saved: Path, tmp_path: Path) -> None:
    """From fit to evaluate, on the split that each takes."""
    from typer.testing import CliRunner

    out = str(tmp_path / "model")
    words = ["fit", f"hf-dataset:{saved}", "--method", "zero_shot", "--out", out, "--workers", "0"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["evaluate", out, str(saved), "--json", "--workers", "0"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout[done.stdout.index("{") :])
    assert result["images"] == 2 and result["classes"] == ["a cat", "dog"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("hf-dataset:", "names no data set"),
        ("hf-dataset:SAVED?colour=1", "no option 'colour'"),
        ("hf-dataset:SAVED?label=species", "no column 'species'"),
        ("hf-dataset:nobody/has-this", "cannot be opened"),
    ],
)
def test_refusals(spec: str, said: str, saved: Path) -> None:
    with pytest.raises(DataError, match=said):
        open_dataset(spec.replace("SAVED", str(saved)))


def test_labels_that_are_missing(tmp_path: Path) -> None:
    bare = datasets.DatasetDict(train=a_set(4), test=a_set(2, label=[-1, -1]))
    bare.save_to_disk(tmp_path / "bare")
    with pytest.warns(UserWarning, match="'test' is left out"):
        assert set(open_dataset(str(tmp_path / "bare")).splits) == {"train"}


def test_several_labels_are_not_yet_learned(tmp_path: Path) -> None:
    """In every form in which such data comes."""
    many = a_set(2, datasets.Sequence(datasets.ClassLabel(names=list(NAMES))), label=[[0], [0, 1]])
    many.save_to_disk(tmp_path / "many")
    said = "several labels, which rada cannot learn yet"
    with pytest.raises(DataError, match=said):
        open_dataset(str(tmp_path / "many"))
    with pytest.raises(DataError, match=said):
        convert_data(many)
    for number in range(2):
        pixels(number).save(tmp_path / f"{number}.png")
    lines = [{"path": "0.png", "label": ["cat", "dog"]}, {"path": "1.png", "label": "dog"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError, match="line 1.*" + said):
        open_dataset(tmp_path / "a.jsonl")
    (tmp_path / "b.csv").write_text("path,label\n0.png,cat\n1.png,dog\n0.png,dog\n")
    with pytest.raises(
        DataError, match="line 4.*'0.png' stands in line 2 already, as 'cat'.*" + said
    ):
        open_dataset(tmp_path / "b.csv")
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"path": ["0.png", "1.png"], "label": [["cat", "dog"], ["dog"]]})
    with pytest.raises(DataError, match=said):
        convert_data(table)
