"""A feature store says what a features file says, a shard at a time, and goes on where it stopped."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
import torch

from cli.test_cli import ok, refused
from cli.test_predict_features import NAMES, table
from features.test_encode_processes import model, photos, two  # noqa: F401
from features.tiny import TinyEncoder, write_images
from rada import Classifier, EFTConfig, Features
from rada.core.errors import DataError, FeatureError, OutputError
from rada.features import FeatureStore, extract_features
from rada.features.files import file_key, save_features
from rada.features.processes import ProcessGroup
from rada.features.store_rows import StoreRows
from rada.features.store_writing import StorePlan, save_store, write_store


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Features, FeatureStore]:
    """90 rows in one piece, and in three shards of different sizes."""
    whole = table(90, views=2)
    pieces = [whole.subset(rows) for rows in torch.arange(90).split([40, 37, 13])]
    return whole, save_store(pieces, tmp_path / "store")


def same(one: Features, other: Features) -> None:
    assert one.ids == other.ids
    assert one.classes == other.classes
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.image_features, other.image_features)
    assert torch.equal(one.text_features, other.text_features)
    assert one.scale == other.scale


def test_a_store_holds_what_was_put_there(stored: tuple[Features, FeatureStore]) -> None:
    whole, store = stored
    assert len(store) == 90 and store.num_views == 2 and store.dim == 16
    assert torch.equal(store.labels, whole.labels)
    assert store.ids[41] == whole.ids[41] and store.ids[-1] == whole.ids[-1]
    assert tuple(store.ids) == whole.ids and list(store.ids[38:42]) == list(whole.ids[38:42])
    same(store.load(), whole)
    rows = [89, 0, 40, 39, 76, 77, 0]
    same(store.subset(rows), whole.subset(rows))
    same(store.few_shot(4, 1), whole.few_shot(4, 1))
    assert [len(part) for part in store.parts()] == [40, 37, 13]
    with pytest.raises(FeatureError, match="from 0 to 89"):
        store.subset([90])


def test_parts_are_short_where_what_is_made_of_them_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = table(90)
    skipped = dataclasses.replace(whole.subset(range(40)), skipped=(("broken.jpg", "cut off"),))
    store = save_store([skipped, whole.subset(range(40, 90))], tmp_path / "store")
    monkeypatch.setattr("rada.features.store.PART_NUMBERS", 15 * store.dim)
    parts = list(store.parts())
    assert [len(part) for part in parts] == [15, 15, 10, 15, 15, 15, 5]
    same(store.subset(range(15, 30)), parts[1])
    assert tuple(name for part in parts for name in part.ids) == whole.ids
    assert [part.skipped for part in parts] == [skipped.skipped, *[()] * 6]
    monkeypatch.setattr("rada.features.store.PART_NUMBERS", 1)  # many classes: one row at a time
    assert [len(part) for part in store.parts()] == [1] * 90


def test_half_precision_halves_the_files(tmp_path: Path) -> None:
    whole = table(300)
    full = save_store([whole], tmp_path / "full")
    half = save_store([whole], tmp_path / "half", half=True)
    size = [(store.folder / store.shards[0].file).stat().st_size for store in (full, half)]
    assert size[1] < 0.7 * size[0]
    found = half.load().image_features
    assert found.dtype is torch.float32
    assert (found - whole.image_features).abs().max() < 1e-3


def test_everything_takes_a_store_as_it_takes_a_file(
    stored: tuple[Features, FeatureStore], tmp_path: Path
) -> None:
    whole, store = stored
    whole.save(tmp_path / "rows.safetensors")
    heads = []
    for data in (tmp_path / "rows.safetensors", store.folder):
        out = tmp_path / f"head-{data.stem}"
        options = ["--set", "epochs=2", "--set", "min_steps=0", "--set", "num_heads=2"]
        ok("fit", data, "--shots", "4", "--seed", "2", "--out", out, *options, environment={})
        heads.append(out)
    weights = [(head / "model.safetensors").read_bytes() for head in heads]
    assert weights[0] == weights[1]
    answers, results = [], []
    for data in (tmp_path / "rows.safetensors", store.folder):
        answers.append(ok("predict", heads[0], data, environment={}))
        results.append(json.loads(ok("evaluate", heads[0], data, "--json", environment={})))
    assert answers[0] == answers[1]
    assert len(list(csv.DictReader(io.StringIO(answers[1])))) == 90
    for result in results:
        for key in ("data", "data_fingerprint", "timing", "environment", "command"):
            del result[key]
        for row in result["rows"]:  # parts of another size round otherwise
            result[row]["ece"] = round(result[row]["ece"], 4)
    assert results[0] == results[1]


def test_the_classifier_takes_an_opened_store(stored: tuple[Features, FeatureStore]) -> None:
    whole, store = stored
    config = EFTConfig(epochs=2, min_steps=0, num_heads=2, strength=0.5)
    clf = Classifier(None, config, progress=False).fit(store, shots=4, seed=1)
    assert (clf.predict(store) == clf.predict(whole)).all()
    assert clf.score(store) == clf.score(whole)
    found = clf.evaluate(store, class_names={"ant": "cat", "bee": "ant", "cat": "bee"})
    names = {"ant": "cat", "bee": "ant", "cat": "bee"}
    expected = clf.evaluate(whole, class_names=names)["adapted"]
    assert found["adapted"]["confusion"] == expected["confusion"]
    assert found.features is None and found.logits == {}
    one, other = (
        [answer.predictions[0] for answer in clf.predict_stream(x)] for x in (store, whole)
    )
    assert [answer.name for answer in one] == [answer.name for answer in other]
    chances = [answer.probability for answer in other]
    assert [answer.probability for answer in one] == pytest.approx(chances, abs=1e-5)


@pytest.mark.parametrize("protocol", ["few-shot", "base-to-new", "cross-dataset"])
def test_a_benchmark_reads_stores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """The numbers are those of files, and tested images are never all in memory."""
    whole, halves = table(90), [table(60).subset(range(30)), table(60).subset(range(30, 60))]
    save_store([whole], tmp_path / "stores" / "train")
    save_store(halves, tmp_path / "stores" / "test")
    (tmp_path / "files").mkdir()
    whole.save(tmp_path / "files" / "train.safetensors")
    table(60).save(tmp_path / "files" / "test.safetensors")
    save_store([whole.subset(range(50)), whole.subset(range(50, 90))], tmp_path / "alone" / "set")
    (tmp_path / "alone-file").mkdir()
    whole.save(tmp_path / "alone-file" / "set.safetensors")
    monkeypatch.setattr("rada.features.store.PART_NUMBERS", 7 * whole.dim)
    monkeypatch.setattr(FeatureStore, "load", None)
    found = {}
    for kind, data, other in (
        ("stores", tmp_path / "stores", tmp_path / "alone" / "set"),
        ("files", tmp_path / "files", tmp_path / "alone-file" / "set.safetensors"),
    ):
        words = ["--methods", "zero_shot,prior_probe", "--shots", "4", "--seeds", "1"]
        words += ["--protocol", protocol]
        if protocol == "cross-dataset":
            words += ["--targets", str(other)]
        for number, place in enumerate((data, other)):
            out = tmp_path / f"bench-{kind}-{number}"
            if protocol == "cross-dataset" and number:
                continue
            ok("bench", "--datasets", place, *words, "--out", out, environment={})
            cells = sorted(out.glob("cells/**/*.json"), key=lambda path: path.parts[-2:])
            assert len(cells) == 2
            results = [json.loads(path.read_text()) for path in cells]
            found[kind, number] = [
                {name: (part["images"], part["accuracy"], part["right"]) for name, part in parts}
                for parts in (result["parts"].items() for result in results)
            ]
    for number in {number for _, number in found}:
        assert found["stores", number] == found["files", number]


def test_a_benchmark_takes_views_from_a_store(tmp_path: Path) -> None:
    whole = table(40, views=10)
    save_store([whole.subset(range(25)), whole.subset(range(25, 40))], tmp_path / "set")
    whole.save(tmp_path / "set.safetensors")
    rows = ["--set", "zero_shot+zero.test_time.views=10"]
    right = []
    for place in (tmp_path / "set", tmp_path / "set.safetensors"):
        out = tmp_path / f"bench-{place.suffix}"
        ok(
            "bench",
            "--datasets",
            place,
            "--methods",
            "zero_shot,zero_shot+zero",
            *rows,
            "--out",
            out,
            environment={},
        )
        (cell,) = out.glob("cells/**/zero_shot-zero/*.json")
        right.append(json.loads(cell.read_text())["parts"]["test"])
    assert right[0] == right[1]


def test_some_rows_of_a_store(
    stored: tuple[Features, FeatureStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, store = stored
    monkeypatch.setattr("rada.features.store.PART_NUMBERS", 9 * store.dim * store.num_views)
    rows = StoreRows.all_of(store).subset([80, 3, 41, 5, 39])
    expected = whole.subset([3, 5, 39, 41, 80])
    same(rows.load(), expected)
    assert tuple(rows.ids) == expected.ids and list(rows.ids[1:3]) == list(expected.ids[1:3])
    assert [len(part) for part in rows.parts()] == [2, 1, 1, 1]
    assert torch.equal(torch.cat([p.image_features for p in rows.parts()]), expected.image_features)
    chosen, wanted = StoreRows.all_of(store).select_classes([2, 0]), whole.select_classes([2, 0])
    same(chosen.load(), wanted)
    assert chosen.classes == wanted.classes and torch.equal(chosen.labels, wanted.labels)
    same(chosen.few_shot(3, 5), wanted.few_shot(3, 5))
    same(chosen.select_classes([1]).load(), wanted.select_classes([1]))
    with pytest.raises(IndexError):
        chosen.ids[len(chosen)]
    with pytest.raises(FeatureError, match=r"no image .* is left"):
        chosen.subset([])


def test_encoding_to_a_store_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = write_images(tmp_path / "images", count=20)
    encoder = TinyEncoder()
    plan = StorePlan(split, ("a photo of a {}.",), batch_size=4, shard_rows=7)
    assert plan.shards() == [(0, 8), (8, 16), (16, 20)]
    options = {"workers": 0, "cache": False}
    calls: list[int] = []
    embed = encoder.image_embeddings

    def stopping(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return embed(pixels)

    monkeypatch.setattr(encoder, "image_embeddings", stopping)
    with pytest.raises(KeyboardInterrupt):
        write_store(ProcessGroup(1), encoder, plan, tmp_path / "store", **options)
    with pytest.raises(FeatureError, match="did not end"):
        FeatureStore.open(tmp_path / "store")
    calls.clear()
    calls += [0] * 10  # no stop any more
    store = write_store(ProcessGroup(1), encoder, plan, tmp_path / "store", **options)
    assert store is not None and sum(calls) == 12  # the first shard was kept
    expected = extract_features(encoder, split, batch_size=4, **options)
    assert torch.equal(store.load().image_features, expected.image_features)
    assert store.load().ids == expected.ids
    calls.clear()
    calls += [0] * 10
    write_store(ProcessGroup(1), encoder, plan, tmp_path / "store", **options)
    assert sum(calls) == 0


@pytest.mark.parametrize("damage", ["cut off", "empty", "half a header", "other bits", "few bits"])
def test_damaged_shards_are_written_again(tmp_path: Path, damage: str) -> None:
    split = write_images(tmp_path / "images", count=12)
    plan = StorePlan(split, ("{}",), batch_size=4, shard_rows=4)
    out, options = tmp_path / "store", {"workers": 0, "cache": False}
    write_store(ProcessGroup(1), TinyEncoder(), plan, out, **options)
    before = {path.name: path.read_bytes() for path in out.glob("[!.]*")}
    shard = out / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    rows = Features.load(shard).image_features
    place = content.index(rows.numpy().tobytes())
    if damage == "other bits":
        content[place : place + 4] = b"\x7f" * 4
    elif damage == "few bits":
        content[place] ^= 1
    else:
        del content[{"cut off": len(content) - 10, "empty": 0, "half a header": 40}[damage] :]
    shard.write_bytes(content)
    first, third = ((out / f"shard-0000{n}.safetensors").stat().st_mtime_ns for n in (0, 2))
    write_store(ProcessGroup(1), TinyEncoder(), plan, out, **options)
    assert before == {path.name: path.read_bytes() for path in out.glob("[!.]*")}
    now = [(out / f"shard-0000{n}.safetensors").stat().st_mtime_ns for n in (0, 2)]
    assert now == [first, third]  # the others are kept


def test_shards_of_an_earlier_rada_are_kept(tmp_path: Path) -> None:
    split = write_images(tmp_path / "images", count=4)
    plan = StorePlan(split, ("{}",), batch_size=4, shard_rows=4)
    out, options = tmp_path / "store", {"workers": 0, "cache": False}
    write_store(ProcessGroup(1), TinyEncoder(), plan, out, **options)
    shard = out / "shard-00000.safetensors"
    found = Features.load(shard)
    fields = {name: getattr(found, name) for name in ("image_features", "labels", "ids", "classes")}
    save_features(fields, shard, extra={"key": file_key(shard) or ""})  # without a checksum
    before = shard.read_bytes()
    write_store(ProcessGroup(1), TinyEncoder(), plan, out, **options)
    assert shard.read_bytes() == before


def test_shards_of_something_else_are_not_replaced(tmp_path: Path) -> None:
    split = write_images(tmp_path / "images", count=10)
    plan = StorePlan(split, ("{}",), batch_size=4, shard_rows=4)
    out, options = tmp_path / "store", {"workers": 0, "cache": False}
    write_store(ProcessGroup(1), TinyEncoder(), plan, out, **options)
    before = {path.name: path.read_bytes() for path in out.glob("[!.]*")}
    with pytest.raises(OutputError, match="other images"):
        write_store(ProcessGroup(1), TinyEncoder(seed=1), plan, out, **options)
    assert before == {path.name: path.read_bytes() for path in out.glob("[!.]*")}
    fewer = StorePlan(split.subset(range(6)), ("{}",), batch_size=4, shard_rows=4)
    store = write_store(ProcessGroup(1), TinyEncoder(), fewer, out, overwrite=True, **options)
    assert store is not None and len(store) == 6
    assert len(list(out.glob("shard-*"))) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "shard-00000.safetensors").write_bytes(b"a user's own")
    with pytest.raises(OutputError, match="did not write"):
        write_store(ProcessGroup(1), TinyEncoder(), plan, tmp_path / "mine", **options)
    assert (tmp_path / "mine" / "shard-00000.safetensors").read_bytes() == b"a user's own"


def test_bad_images_are_named(tmp_path: Path) -> None:
    split = write_images(tmp_path / "images", count=8)
    (tmp_path / "images" / "05.jpg").write_bytes(b"no image")
    plan = StorePlan(split, ("{}",), batch_size=4, shard_rows=4)
    options = {"workers": 0, "cache": False}
    with pytest.raises(DataError, match=r"05\.jpg"):
        write_store(ProcessGroup(1), TinyEncoder(), plan, tmp_path / "a", **options)
    store = write_store(
        ProcessGroup(1), TinyEncoder(), plan, tmp_path / "b", skip_bad=True, **options
    )
    assert store is not None and len(store) == 7
    assert [key for key, _ in store.skipped] == ["05.jpg"]
    for name in ("04.png", "06.png", "07.jpg"):  # a whole shard
        (tmp_path / "images" / name).write_bytes(b"no image")
    store = write_store(
        ProcessGroup(1), TinyEncoder(), plan, tmp_path / "c", skip_bad=True, **options
    )
    assert store is not None and store.load().ids == ("00.png", "01.jpg", "02.png", "03.jpg")
    assert len(store.skipped) == 4 and len(list(store.parts())) == 1
    with pytest.raises(DataError, match="none of the 4 images"):
        rest = StorePlan(split.subset([4, 5, 6, 7]), ("{}",), batch_size=4)
        write_store(ProcessGroup(1), TinyEncoder(), rest, tmp_path / "d", skip_bad=True, **options)


def test_two_processes_write_the_store_of_one(
    model: Path,  # noqa: F811
    photos: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    words = ("--model", f"hf:{model}", "--skip-bad", "--shard-rows", "2", "--half")
    ok("encode", photos, "--out", tmp_path / "one", *words, environment={})
    for process in two("encode", photos, "--out", tmp_path / "two", *words):
        assert process.returncode == 0, process.stderr
    one, other = (FeatureStore.open(tmp_path / name).load() for name in ("one", "two"))
    assert one.ids == other.ids and torch.equal(one.labels, other.labels)
    assert torch.equal(one.image_features, other.image_features)
    assert len(FeatureStore.open(tmp_path / "two").shards) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "rada-feature-store-9"}, "another version"),
        ({"shards": [{"file": "../../x.safetensors", "rows": 1, "key": ""}]}, "file"),
        ({"shards": [{"file": "shard-00009.safetensors", "rows": 1, "key": ""}]}, "lacks"),
        ({"dim": "wide"}, "dim"),
        ({"classes": ["one"]}, "class features"),
    ],
)
def test_a_damaged_index_is_refused(
    stored: tuple[Features, FeatureStore], change: dict[str, object], message: str
) -> None:
    folder = stored[1].folder
    index = json.loads((folder / "features.json").read_text())
    (folder / "features.json").write_text(json.dumps(index | change))
    with pytest.raises(FeatureError, match=message):
        FeatureStore.open(folder)
    assert message in refused("evaluate", folder, folder, environment={})


def test_a_foreign_shard_is_noticed(stored: tuple[Features, FeatureStore]) -> None:
    _, store = stored
    (store.folder / store.shards[0].file).write_bytes(
        (store.folder / store.shards[2].file).read_bytes()
    )
    with pytest.raises(FeatureError, match=r"shard-00000.*not the one"):
        list(FeatureStore.open(store.folder).parts())
    assert store.classes == NAMES


def test_options_of_a_store_are_refused_for_a_file(tmp_path: Path) -> None:
    text = refused(
        "encode", tmp_path, "--out", tmp_path / "f.safetensors", "--half", environment={}
    )
    assert "name a folder" in text
