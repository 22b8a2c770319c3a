"""Class names and templates: where they come from, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from data.pictures import draw_folder
from rada.core.errors import DataError
from rada.data import (
    align_classes,
    build_prompts,
    check_class_names,
    load_class_names,
    load_templates,
    open_dataset,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "d", {"n01": 1, "n02": 1, "n_10": 1})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no class names"),
        (["cat", ""], "number 1 is ''"),
        (["cat", " \t"], "give every class a name"),
        (["cat", None], "number 1 is None"),
        (["cat", 3], "number 1 is 3"),
        (["cat", "dog", "cat"], "'cat' twice"),
        (["cat", "Cat"], "'Cat' and 'cat', which differ in spelling only"),
        (["hot dog", "hot_dog"], "differ in spelling only"),
        (["hot dog", " hot  dog"], "differ in spelling only"),
    ],
)
def test_bad_class_names(names: list[object], message: str, root: Path) -> None:
    with pytest.raises(DataError, match=message):
        check_class_names(names)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        open_dataset(root, class_names=names)  # type: ignore[arg-type]


def test_equal_strings_that_are_other_objects_are_found() -> None:
    with pytest.raises(DataError, match="twice"):
        check_class_names(["".join(["c", "at"]), "".join(["ca", "t"])])


def test_names_by_folder_and_by_order(root: Path, tmp_path: Path) -> None:
    for given, expected in [
        ({"n01": "ant", "n02": "bee", "n_10": "cat"}, ("ant", "bee", "cat")),
        ({"n02": "bee"}, ("n01", "bee", "n 10")),
        ({"n 10": "cat"}, ("n01", "n02", "cat")),
        ({"n01": "a", "n02": "b", "n_10": "c", "n99": "of all ImageNet"}, ("a", "b", "c")),
        (["x", "y", "z"], ("x", "y", "z")),
    ]:
        file = tmp_path / "names.json"
        file.write_text(json.dumps(given))
        for source in (given, file, str(file)):
            dataset = open_dataset(root, class_names=source)
            assert dataset.classes == dataset.split("all").classes == expected
            assert dataset.keys == ("n01", "n02", "n_10")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n03": "bee"}, "'n03', which is none of the classes 'n01', 'n02', 'n_10'"),
        ({"n01": "bee", "n02": "bee"}, "'bee' twice"),
        (["a", "b"], "2 names were given for the 3 classes"),
        ([["a", "b", "c"]], "number 0 is"),
        ("absent.json", "does not exist"),
        (7, "list of names or an object"),
    ],
)
def test_names_that_do_not_fit(root: Path, given: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset(root, class_names=given)  # type: ignore[arg-type]


def test_a_damaged_file_of_names(tmp_path: Path) -> None:
    for name, text in (("a.json", "{"), ("b.json", '"cat"'), ("c.json", "null")):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError):
            load_class_names(tmp_path / name)


def test_numbers_as_names_are_worth_a_warning(tmp_path: Path) -> None:
    root = draw_folder(tmp_path, {"0": 1, "1": 1, "10": 1, "2": 1})
    with pytest.warns(UserWarning, match="called by numbers"):
        assert open_dataset(root).classes == ("0", "1", "2", "10")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = [f"c{number}" for number in range(11)]
        assert open_dataset(root, class_names=names).split("all").labels.tolist() == [0, 1, 2, 10]


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ("a photo", "'a photo' should have {} once"),
        (["a {}.", "a photo"], "'a photo' should have"),
        ("{} and {}", "once"),
        ([], "not \\[\\]"),
        ([3], "3 should have"),
        ("", "'' should have"),
        ("absent.json", "does not exist"),
        ({"a": "{}"}, "list of texts"),
    ],
)
def test_bad_templates(templates: object, message: str, root: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_templates(templates)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        open_dataset(root, templates=templates)  # type: ignore[arg-type]


def test_templates_from_everywhere(tmp_path: Path, root: Path) -> None:
    assert load_templates("a {}.") == ("a {}.",)
    (tmp_path / "t.json").write_text('["a {}.", "the {name} {}"]')
    assert load_templates(str(tmp_path / "t.json")) == ("a {}.", "the {name} {}")
    assert open_dataset(root, templates=tmp_path / "t.json").templates[0] == "a {}."
    assert open_dataset(root).templates == ("a photo of a {}.",)


def test_prompts_keep_names_as_they_are() -> None:
    assert build_prompts(["{x}", "50 % \\1"], "a {}.") == [["a {x}."], ["a 50 % \\1."]]


def test_aligning_classes() -> None:
    wanted = ["nominal fabric", "local defect", "global defect"]
    assert align_classes(["global", "local"], wanted) == [2, 1]
    assert align_classes(["Local_Defect"], wanted) == [1]
    assert align_classes(["a", "local"], wanted, {"a": "global defect"}) == [2, 1]
    assert align_classes(["cat", "food"], ["cat food", "cat"]) == [1, 0]
    with pytest.warns(UserWarning, match="'x' = 'nominal fabric'"):
        assert align_classes(["x", "y", "z"], wanted) == [0, 1, 2]
    with pytest.raises(DataError, match="the class 'hole'"):
        align_classes(["local", "hole"], wanted)
