"""Class names and templates: where they come from, and what is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from data.images import draw_folder
from rada.core.errors import DataError
from rada.data import (
    Naming,
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


def test_names_by_folder_and_by_name(root: Path, tmp_path: Path) -> None:
    for given, expected in [
        ({"n01": "ant", "n02": "bee", "n_10": "cat"}, ("ant", "bee", "cat")),
        ({"n02": "bee"}, ("n01", "bee", "n 10")),
        ({"n 10": "cat"}, ("n01", "n02", "cat")),
        ({"n01": "a", "n02": "b", "n_10": "c", "n99": "of all ImageNet"}, ("a", "b", "c")),
        (["N 10", "new", "N02", "n01"], ("N 10", "new", "N02", "n01")),
    ]:
        file = tmp_path / "names.json"
        file.write_text(json.dumps(given))
        for source in (given, file, str(file)):
            dataset = open_dataset(root, class_names=source)
            assert dataset.classes == dataset.split("all").classes == expected
            keys = [dataset.keys[label] for label in dataset.split("all").labels.tolist()]
            assert keys == ["n01", "n02", "n_10"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["n01", "n02", "ten"], "class 'n_10', which is none of the 3 names given"),
        ({"n03": "bee"}, "'n03', which is none of the classes 'n01', 'n02', 'n_10'"),
        ({"n01": "bee", "n02": "bee"}, "'bee' twice"),
        (["a", "b"], "class 'n01', which is none of the 2 names given"),
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


def test_a_text_file_has_one_name_a_line(tmp_path: Path) -> None:
    for name in ("names.txt", "NAMES.TXT", "names"):
        (tmp_path / name).write_text("\ufeffhot dog\n\n  pizza \r\nice cream", encoding="utf-8")
        assert load_class_names(tmp_path / name) == ("hot dog", "pizza", "ice cream")
        (tmp_path / name).write_text('{"n01": "hot dog"}')
        assert load_class_names(str(tmp_path / name)) == {"n01": "hot dog"}
        (tmp_path / name).write_text("\n \n")
        with pytest.raises(DataError, match="there are no class names"):
            load_class_names(tmp_path / name)


def test_names_in_place_of_a_file(tmp_path: Path) -> None:
    for given in ("cat, dog", ", ".join(f"class {number}" for number in range(999)), "a\0b"):
        with pytest.raises(
            DataError, match=r"does not exist: name one, or write JSON, such as"
        ) as told:
            load_class_names(given)
        assert len(str(told.value)) < 300


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


def test_classes_match_by_name_alone() -> None:
    wanted = ["nominal fabric", "local defect", "global defect"]
    assert align_classes(["Local_Defect", "NOMINAL-fabric"], wanted) == [1, 0]
    assert align_classes(["a", "local defect"], wanted, {"a": "global defect"}) == [2, 1]
    assert align_classes(["cafe\u0301"], ["tea", "caf\u00e9"]) == [1]
    for found in (["x", "y", "z"], ["local", "nominal", "global"], ["Local", "hole"]):
        with pytest.raises(DataError, match=f"the class '{found[0]}', which is none"):
            align_classes(found, wanted)
    with pytest.raises(DataError, match=r'{"defect": "no defect"}'):
        align_classes(["defect"], ["no defect", "good"])  # it shows what it may mean, and asks
    with pytest.raises(DataError, match="'Cat' and 'cat', would both be 'cat'"):
        align_classes(["Cat", "cat"], ["cat", "dog"])


def test_numbers_are_places_in_a_list() -> None:
    colours = ["red", "green", "blue"]
    assert align_classes(["0", "2"], colours) == [0, 2]
    for labels in (["1", "2", "3"], ["3", "1"]):
        with pytest.raises(DataError, match=r'label 3, .* such as {"1": "red", "2": "green"'):
            align_classes(labels, colours)
    from_one = Naming(aliases={"1": "red", "2": "green", "3": "blue"})
    assert from_one.match(["1", "2", "3"]).classes == ("red", "green", "blue")
    assert from_one.match(["1", "2"]).classes == ("red", "green")
    # what the first data calls 1 stays that
    with pytest.raises(DataError, match="label 0"):
        align_classes(["0", "1"], colours, {"1": "red", "2": "green"})
    with pytest.raises(DataError, match="'007'"):
        align_classes(["007"], ["a"] * 8)


def test_a_misspelt_key_is_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"'n_1', which is none .* mean 'n_10'"):
        open_dataset(root, class_names={"n01": "ant", "n_1": "bee"})


def test_names_as_json_text(root: Path) -> None:
    assert open_dataset(root, class_names='{"n01": "ant"}').classes[0] == "ant"
    with pytest.raises(DataError, match="are not JSON"):
        open_dataset(root, class_names='{"n01": ')


def test_codes_for_names_are_worth_a_warning_with_names(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "ids", {"n01855672": 1, "n01440764": 1, "n00015388": 1})
    with pytest.warns(UserWarning, match="WordNet ids.*n01440764 is 'tench', n01855672 is 'goose'"):
        assert open_dataset(root).classes == ("n00015388", "n01440764", "n01855672")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = open_dataset(root, class_names="imagenet")
        assert dataset.classes == ("animal", "tench", "goose")
        draw_folder(tmp_path / "words", {"McLaren": 1, "iPhone": 1, "Annual crop": 1})
        open_dataset(tmp_path / "words")
    root = draw_folder(tmp_path / "joined", {"AnnualCrop": 1, "SeaLake": 1, "Forest": 1})
    with pytest.warns(UserWarning, match="AnnualCrop, SeaLake.*") as caught:
        open_dataset(root)
    offered = str(caught[0].message).split("--class-names ")[1].strip("'")
    assert open_dataset(root, class_names=offered).classes == ("annual crop", "Forest", "sea lake")


def test_the_names_of_imagenet_are_different() -> None:
    assert len(load_class_names("imagenet")) == 1000
    names = Naming.of("imagenet").aliases
    assert len(names) > 20000 and check_class_names(names.values())
