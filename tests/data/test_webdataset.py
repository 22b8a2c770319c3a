"""WebDataset shards, written on the fly, good and bad."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import pickle
import tarfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data.images import draw, draw_folder
from features.tiny import TinyEncoder
from network_samples import hanging_server
from rada import Classifier, EFTConfig
from rada.core import network
from rada.core.errors import DataError, MissingExtraError
from rada.data import few_shot, open_dataset
from rada.data.shards import urls as shard_urls
from rada.data.shards.index import shard_folder
from rada.data.shards.urls import expand_braces
from rada.encoders import CustomEncoder
from rada.features import extract_features

NAMES = ["ant", "bee", "cat"]


@pytest.fixture(autouse=True)
def fresh_cache(own_cache: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    monkeypatch.setenv("RADA_CACHE", str(tmp_path_factory.mktemp("cache")))


def image(seed: int) -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(
    path: Path, members: Iterable[tuple[str, bytes | tarfile.TarInfo]], **options: int
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(labels: Iterable[int | str], start: int = 0, suffix: str = "cls") -> list:
    members = []
    for number, label in enumerate(labels, start):
        members.append((f"{number:05d}.png", image(number)))
        members.append((f"{number:05d}.{suffix}", str(label).encode()))
    return members


def shards(folder: Path, count: int = 3, prefix: str = "train-") -> Path:
    """Write shards of six samples each, and their class names."""
    for shard in range(count):
        write_tar(folder / f"{prefix}{shard:03d}.tar", samples([0, 1, 2] * 2, 6 * shard))
    (folder / "classnames.txt").write_text("\n".join(NAMES))
    return folder


def refused(spec: object, *words: str, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(spec, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "spec", ["train-{000..002}.tar", "train-*.tar", "", "train-{000,00[12]}.tar"]
)
def test_ways_to_name_shards(tmp_path: Path, spec: str) -> None:
    shards(tmp_path)
    dataset = open_dataset(f"{tmp_path}/{spec}")
    split = dataset.split("all", "train")
    assert dataset.classes == tuple(NAMES) and split.counts().tolist() == [6, 6, 6]
    assert split.ids[0] == "train-000.tar/00000.png" and split.ids[-1] == "train-002.tar/00017.png"
    assert list(dataset.splits) == (["all"] if spec else ["train"])
    assert split.path(3) is None
    for index in (0, 7, 17):
        assert split.load(index).tobytes() == pixels_of(index)


def pixels_of(seed: int) -> bytes:
    from PIL import Image

    return Image.open(io.BytesIO(image(seed))).tobytes()


def test_one_shard_and_a_path(tmp_path: Path) -> None:
    shards(tmp_path)
    for spec in (tmp_path / "train-001.tar", f"file://{tmp_path}/train-001.tar"):
        dataset = open_dataset(spec)
        assert len(dataset.split("all")) == 6 and dataset.classes == tuple(NAMES)


def test_splits(tmp_path: Path) -> None:
    shards(tmp_path / "a", 2)
    shards(tmp_path / "a", 1, "pets-validation-")
    shards(tmp_path / "a", 1, "test_")
    assert {k: len(v) for k, v in open_dataset(tmp_path / "a").splits.items()} == {
        "train": 12, "val": 6, "test": 6
    }  # fmt: skip
    mixed = open_dataset(f"{tmp_path}/a/{{train-000,test_000}}.tar")
    assert list(mixed.splits) == ["train", "test"]
    shards(tmp_path / "b" / "train", 2, "")
    shards(tmp_path / "b" / "test", 1, "")
    (tmp_path / "b" / "test" / "classnames.txt").unlink()
    below = open_dataset(tmp_path / "b")
    assert {k: len(v) for k, v in below.splits.items()} == {"train": 12, "test": 6}
    assert below.split("test").ids[0] == "000.tar/00000.png"
    assert open_dataset(tmp_path / "b" / "train").classes == tuple(NAMES)
    shards(tmp_path / "b", 1, "more-")
    refused(tmp_path / "b", "more-000.tar", "'test'")
    shards(tmp_path / "a", 1, "more-")
    refused(tmp_path / "a", "more-000.tar", "no split")


def test_folders_of_images_stay_folders(tmp_path: Path) -> None:
    draw_folder(tmp_path, {"ant": 2, "bee": 2})
    write_tar(tmp_path / "backup.tar", samples([0, 1]))
    assert open_dataset(tmp_path).classes == ("ant", "bee")


LABELS = {
    "names": ([("txt", "ant"), ("txt", "hot_dog")], ("ant", "hot dog"), [0, 1]),
    "names in cls": ([("cls", "bee"), ("cls.txt", "ant")], ("ant", "bee"), [1, 0]),
    "json names": ([("json", '{"label": "b"}'), ("json", '{"class": "a"}')], ("a", "b"), [1, 0]),
    "json pairs": (
        [("json", '{"label": 7, "class_name": "a"}'), ("json", '{"cls": 3, "class_name": "b"}')],
        ("b", "a"),
        [1, 0],
    ),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_that_name_themselves(tmp_path: Path, kind: str) -> None:
    files, classes, labels = LABELS[kind]
    members = []
    for number, (suffix, text) in enumerate(files):
        members += [(f"x/{number}.png", image(number)), (f"x/{number}.{suffix}", text.encode())]
    split = open_dataset(write_tar(tmp_path / "a.tar", members)).split("all")
    assert split.classes == classes and split.labels.tolist() == labels


def test_a_caption_is_no_label(tmp_path: Path) -> None:
    members = [("1.png", image(1)), ("1.txt", b"two ants"), ("1.cls", b"0"), ("1.json", b"{}")]
    members += [("2.png", image(2)), ("2.cls", b"1"), ("2.txt", b"a bee at home")]
    shard = write_tar(tmp_path / "a.tar", members)
    assert open_dataset(shard, class_names=["ant", "bee"]).split("all").labels.tolist() == [0, 1]


def test_numbers_need_names(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", samples([0, 2, 0, 2]))
    refused(shard, "numbers 0 to 2", "classnames.txt", "--class-names")
    given = open_dataset(shard, class_names=NAMES)
    assert given.classes == tuple(NAMES) and given.split("all").labels.tolist() == [0, 2, 0, 2]
    assert open_dataset(shard, class_names={"0": "x", "1": "y", "2": "z"}).classes == (
        "x",
        "y",
        "z",
    )
    refused(shard, "label 2, but 2 class names were given", class_names=["ant", "bee"])
    for text in (
        json.dumps(NAMES),
        '{"0": "ant", "1": "bee", "2": "cat"}',
        '{"ant": 0, "bee": 1, "cat": 2}',
    ):
        (tmp_path / "classes.json").write_text(text)
        assert open_dataset(shard).classes == tuple(NAMES)
    (tmp_path / "classes.json").write_text('["ant", ["bee"]]')
    refused(shard, "classes.json", "list of names")
    (tmp_path / "classes.json").unlink()
    (tmp_path / "classes.txt").write_text("ant\nAnt\nbee")
    refused(shard, "classes.txt", "spelling")


def test_names_in_the_order_of_the_file(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(["bee", "Ant", "eel"], suffix="txt"))
    (tmp_path / "classnames.txt").write_text("cat\nbee\nant\n")
    refused(shard, "'00002.png'", "not among the class names", "--skip-bad")
    dataset = open_dataset(shard, skip_bad=True)
    assert dataset.split("all").labels.tolist() == [1, 2]
    assert dataset.classes == ("cat", "bee", "ant")


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "00000.png"
    return member


BAD = {
    "no image": ([("x.cls", b"1")], "has no image"),
    "no label": ([("x.png", image(9))], "has no label"),
    "bad json": ([("x.png", image(9)), ("x.json", b"{")], "cannot be read"),
    "nothing in cls": ([("x.png", image(9)), ("x.cls", b" ")], "cannot be read"),
    "negative": ([("x.png", image(9)), ("x.cls", b"-1")], "cannot be read"),
    "caption": ([("x.png", image(9)), ("x.txt", b"word " * 99)], "at most 200"),
    "duplicate": ([("00001.png", image(9)), ("00001.cls", b"1")], "is there twice"),
    "same suffix": (
        [("x.png", image(9)), ("x.cls", b"1"), ("x.png", image(8)), ("x.cls", b"1")],
        "is there twice",
    ),
    "out of range": ([("x.png", image(9)), ("x.cls", b"3")], "out of range"),
    "absurd label": ([("x.png", image(9)), ("x.cls", b"9" * 17)], "out of range"),
    "symlink": ([("x.png", link("x.png", tarfile.SYMTYPE)), ("x.cls", b"1")], "is a link"),
    "hardlink": ([("x.png", link("x.png", tarfile.LNKTYPE)), ("x.cls", b"1")], "is a link"),
    "dots": (
        [("x.1.png", image(8)), ("x.2.png", image(9)), ("x.cls", b"1")],
        "first dot of the file name",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_samples(tmp_path: Path, kind: str) -> None:
    members, words = BAD[kind]
    shard = write_tar(tmp_path / "a.tar", [*samples([0, 1, 2]), *members])
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    for _ in range(2):  # scanned, and from the index
        refused(shard, words, str(shard), "--skip-bad")
        dataset = open_dataset(shard, skip_bad=True)
        assert len(dataset.skipped) == 1 and words in dataset.skipped[0].reason
        expected = [0, 1, 2, 1] if kind == "same suffix" else [0, 1, 2]
        assert dataset.split("all").labels.tolist() == expected


def test_files_that_are_no_samples(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("sub")
    folder.type = tarfile.DIRTYPE
    extra = [
        ("sub", folder),
        ("._00000.png", b"mac"),
        ("__index__.json", b"{}"),
        ("LICENSE", b"MIT"),
    ]
    shard = write_tar(
        tmp_path / "a.tar", [*extra, *samples(["a", "b"], suffix="txt"), ("x.pyd", b"")]
    )
    assert len(open_dataset(shard).split("all")) == 2


def tamper(path: Path, change) -> None:
    """Change the header of the third member and mend its checksum."""
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[2].offset
    header = content[offset : offset + 512]
    change(header)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[offset : offset + 512] = header
    path.write_bytes(content)


def set_size(size: int):
    def change(header: bytearray) -> None:
        header[124:136] = (size + (1 << 96) if size < 0 else size).to_bytes(12, "big")
        header[124] = 0xFF if size < 0 else 0x80

    return change


def as_long_name(size: int):
    def change(header: bytearray) -> None:
        set_size(size)(header)
        header[156:157] = tarfile.GNUTYPE_LONGNAME

    return change


def as_pax(size: int):
    def change(header: bytearray) -> None:
        set_size(size)(header)
        header[156:157] = tarfile.XHDTYPE

    return change


@pytest.mark.parametrize(
    "change",
    [set_size(1 << 50), set_size(-1), set_size(-2048), as_long_name(1 << 40), as_long_name(-5),
     as_pax(1 << 33), as_pax(-1)],
)  # fmt: skip
def test_hostile_headers(tmp_path: Path, change) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(["a", "b"] * 3, suffix="txt"))
    tamper(shard, change)
    refused(shard, str(shard), "damaged or cut off at byte", "copy or write it again")


@pytest.mark.filterwarnings("ignore:.*the mark of its end")
def test_flipped_bytes_give_an_error_or_a_data_set(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", samples(["a", "b"] * 2, suffix="txt")).read_bytes()
    random = np.random.default_rng(0)
    for number in range(150):
        content = bytearray(whole)
        for place in random.integers(0, 7 * 1024, size=1 + number % 8):
            content[place] = random.integers(256)
        shard = tmp_path / "a.tar"
        shard.write_bytes(content[: random.integers(300, len(whole)) if number % 3 == 0 else None])
        try:
            split = open_dataset(shard, skip_bad=True).split("all")
            for index in range(len(split)):
                split.load(index)
        except DataError:
            continue


def test_endless_chain_of_headers(tmp_path: Path) -> None:
    header = bytearray(link("x", tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT))
    shard = tmp_path / "a.tar"
    shard.write_bytes(bytes(header) * 5000)
    refused(shard, str(shard))


def test_damaged_shards(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "whole.tar", samples(["a", "b"] * 3, suffix="txt")).read_bytes()
    bad = tmp_path / "bad.tar"
    bad.write_bytes(whole[:700])  # within an image
    refused(bad, str(bad), "cut off at byte 0")
    bad.write_bytes(whole[: 1024 * 5 + 300])
    refused(bad, str(bad), "damaged or cut off")
    middle = bytearray(whole)
    middle[2048:2100] = b"\xff" * 52
    bad.write_bytes(middle)
    refused(bad, str(bad), "damaged or cut off at byte 2048")
    bad.write_bytes(b"")
    refused(bad, str(bad), "is empty (0 bytes)")
    bad.write_bytes(b"no tar at all" * 100)
    refused(bad, str(bad), "is not a tar file")
    bad.write_bytes(b"\x1f\x8b" + whole)
    refused(bad, "compressed (gzip)", "unpack it")
    refused(tmp_path / "x.tar.gz", "compressed", "unpack it")
    write_tar(bad, [])
    refused(bad, str(bad), "holds no samples")
    bad.write_bytes(whole[: 1024 * 12])
    with pytest.warns(UserWarning, match="without the mark of its end"):
        open_dataset(bad)


def test_patterns_that_match_nothing(tmp_path: Path) -> None:
    shards(tmp_path)
    refused(f"{tmp_path}/other-*.tar", "no shard matches")
    refused(f"{tmp_path}/other.tar", "no shard matches")
    refused(f"{tmp_path}/train-{{000..004}}.tar", "2 of the 5 shards", "train-003.tar")
    refused(f"{tmp_path}/train-{{000..2.tar", "braces")
    refused(f"{tmp_path}/train-{{0..999999999}}.tar", "more than 100000")
    (tmp_path / "none").mkdir()
    refused(tmp_path / "none", "no sub-folders")
    with pytest.raises(DataError, match="braces"):
        expand_braces("{a,b")


def test_a_shard_that_changes(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(["a", "b"], suffix="txt"))
    split = open_dataset(shard).split("all")
    write_tar(shard, samples(["b", "c", "d"], suffix="txt", start=50))
    with pytest.raises(DataError, match="changed after it had been indexed"):
        split.load(0)
    again = open_dataset(shard).split("all")
    assert again.classes == ("b", "c", "d") and again.load(0).tobytes() == pixels_of(50)
    os.utime(shard, ns=(1, 1))  # same size, other date
    assert len(open_dataset(shard).split("all")) == 3
    assert len(list(shard_folder("index").iterdir())) == 1


def test_a_damaged_index_is_made_anew(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(["a", "b"], suffix="txt"))
    ids = open_dataset(shard).split("all").ids
    (index,) = shard_folder("index").iterdir()
    whole = index.read_bytes()
    for content in (b"", whole[:300], whole.replace(b"rada-shard-index", b"rada-shard-other")):
        index.write_bytes(content)
        assert open_dataset(shard).split("all").ids == ids


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    shard = write_tar(tmp_path / "a.tar", samples(["a", "b"], suffix="txt"))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RADA_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="index of a shard was not kept"):
        assert len(open_dataset(shard).split("all")) == 2


def test_random_access_of_parts(tmp_path: Path) -> None:
    shards(tmp_path)
    split = open_dataset(tmp_path).split("train")
    part = split.subset([16, 3])
    assert part.ids == ("train-002.tar/00016.png", "train-000.tar/00003.png")
    assert [part.load(k).tobytes() for k in (0, 1)] == [pixels_of(16), pixels_of(3)]
    again = pickle.loads(pickle.dumps(part))
    assert again.ids == part.ids and again.digest(0) == split.digest(16)
    assert len(pickle.dumps(split.subset([1]).source)) < len(pickle.dumps(split.source))
    drawn = few_shot(split, 2, seed=3)
    assert drawn.counts().tolist() == [2, 2, 2]
    shuffled = few_shot(split.subset(np.random.default_rng(0).permutation(18)), 2, seed=3)
    assert set(drawn.ids) == set(shuffled.ids)


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    members = samples(["a", "b"] * 2, suffix="txt")
    members[2] = ("00001.png", b"no image")
    members[4] = ("00002.png", b"")
    shard = write_tar(tmp_path / "a.tar", members)
    split = open_dataset(shard).split("all")
    with pytest.raises(DataError, match=r"a\.tar: 00001\.png' is not an image"):
        split.load(1)
    with pytest.raises(DataError, match=r"a\.tar: 00002\.png' is empty"):
        split.load(2)
    features = extract_features(TinyEncoder(), split, workers=0, skip_bad=True)
    assert [key for key, _ in features.skipped] == ["a.tar/00001.png", "a.tar/00002.png"]


def as_shards(folder: Path, root: Path) -> Path:
    """Pack a folder of class folders in its own order, two classes a shard."""
    split = open_dataset(folder).split("all")
    for number, part in enumerate(np.array_split(np.arange(len(split)), 2)):
        members = []
        for index in part.tolist():
            path = split.path(index)
            assert path is not None
            members.append((split.ids[index], path.read_bytes()))
            name = split.classes[split.labels[index]]
            members.append((split.ids[index].replace(".png", ".cls.txt"), name.encode()))
        write_tar(root / f"{number}.tar", members)
    return root


def test_features_are_those_of_the_folder(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "folder", {"ant": 5, "bee": 4})
    packed = as_shards(folder, tmp_path / "packed")
    found = [
        extract_features(TinyEncoder(), open_dataset(data).split("all"), views=3, workers=workers)
        for data, workers in ((folder, 0), (packed, 2))
    ]
    assert torch.equal(found[0].image_features, found[1].image_features)
    assert torch.equal(found[0].labels, found[1].labels)


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def test_fit_on_shards_is_fit_on_the_folder(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "folder", dict.fromkeys(COLOURS, 4))
    packed = as_shards(folder, tmp_path / "packed")

    def fit(data: Path) -> tuple[dict[str, torch.Tensor], float]:
        encoder = CustomEncoder(
            image_fn=lambda pixels: torch.cat([pixels.mean((2, 3)), pixels.std((2, 3))], 1) + 1,
            text_fn=lambda texts: torch.tensor(
                [
                    [*COLOURS.get(text.split()[-1].strip("."), (9, 9, 9)), 1.0, 1.0, 1.0]
                    for text in texts
                ]
            ),
            scale=10.0,
            dim=6,
        )
        config = EFTConfig(epochs=2, min_steps=0, strength=1.0, views=2, num_heads=2)
        clf = Classifier(encoder, config, list(COLOURS))
        clf.fit(data, seed=1)
        return clf.model_.head.state_dict(), clf.score(data)

    (weights, score), (others, other_score) = fit(folder), fit(packed)
    assert score == other_score and weights.keys() == others.keys()
    assert all(torch.equal(weights[key], others[key]) for key in weights)


def test_what_webdataset_writes(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    image = draw(tmp_path / "1.png", 5)
    from PIL import Image

    with webdataset.ShardWriter(f"{tmp_path}/pets-%03d.tar", maxcount=2, verbose=0) as sink:
        for number in range(5):
            sample = {"__key__": f"s/{number}", "jpg": Image.open(image), "cls": number % 2}
            sink.write({**sample, "json": {"label": number % 2, "class_name": "ab"[number % 2]}})
    split = open_dataset(f"{tmp_path}/pets-{{000..002}}.tar").split("all")
    assert split.classes == ("a", "b") and split.labels.tolist() == [0, 1, 0, 1, 0]
    assert split.load(4).size == (12, 8)
    theirs = [
        (key, int(label))
        for key, label in webdataset.WebDataset(
            [f"{tmp_path}/pets-{k:03d}.tar" for k in range(3)], shardshuffle=False
        ).to_tuple("__key__", "cls")
    ]
    keys = [key.partition("/")[2].removesuffix(".jpg") for key in split.ids]
    assert theirs == list(zip(keys, split.labels.tolist(), strict=True))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", asked
        running.shutdown()


def test_urls_are_copied_once(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    pytest.importorskip("webdataset")
    address, asked = server
    www = shards(tmp_path / "www")
    (www / "train-001.tar").rename(www / "away")
    pattern = address + "/train-{000..002}.tar"
    refused(pattern, "train-001.tar", "cannot be copied", class_names=NAMES)
    (www / "away").rename(www / "train-001.tar")
    dataset = open_dataset(pattern, class_names=NAMES)
    assert sum("train-000" in path for path in asked) == 1  # it was there from the first time
    local = open_dataset(f"{www}/train-*.tar").split("all")
    remote = dataset.split("all")
    assert remote.ids == local.ids and remote.fingerprint() == local.fingerprint()
    count = len(asked)
    open_dataset(pattern, class_names=NAMES)
    assert len(asked) == count


def test_a_damaged_copy_is_not_kept(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    pytest.importorskip("webdataset")
    address, asked = server
    www = shards(tmp_path / "www", 2)
    whole = (www / "train-001.tar").read_bytes()
    (www / "train-001.tar").write_bytes(whole[:3000])
    pattern = address + "/train-{000..001}.tar"
    refused(pattern, "train-001.tar", "cut off", "next run copies", class_names=NAMES)
    (www / "train-001.tar").write_bytes(whole)
    assert len(open_dataset(pattern, class_names=NAMES).split("all")) == 12
    assert sum("train-000" in path for path in asked) == 1


def test_commands_and_s3(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("webdataset")
    shards(tmp_path)
    spec = f"pipe:cat {tmp_path}/train-{{000..001}}.tar"
    assert len(open_dataset(spec, class_names=NAMES).split("all")) == 12
    refused("pipe:exit 3", "'pipe:exit 3'", "cannot be copied", class_names=NAMES)
    program = tmp_path / "bin" / "aws"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1 $2" = "s3 cp" ] && cat {tmp_path}/"${{3##*/}}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    assert len(open_dataset("s3://bucket/train-002.tar", class_names=NAMES).split("all")) == 6


def test_urls_without_the_library(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "webdataset.gopen", None)
    with pytest.raises(MissingExtraError, match=r"rada-vlm\[shards\]"):
        open_dataset("gs://bucket/a.tar")


def test_templates_of_clip_benchmark(tmp_path: Path) -> None:
    shards(tmp_path / "train", 1)
    shards(tmp_path / "test", 1)
    text = "a photo of a {c}.\n\nart of the {c}.\n"
    (tmp_path / "zeroshot_classification_templates.txt").write_text(text)
    for spec in (tmp_path, tmp_path / "test"):
        assert open_dataset(spec).templates == ("a photo of a {}.", "art of the {}.")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo\n")
    with pytest.raises(DataError, match="'a photo' should have"):
        open_dataset(tmp_path)


def test_compressed_shards_beside_others_are_named(tmp_path: Path) -> None:
    shards(tmp_path, 2)
    (tmp_path / "train-002.tar.gz").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"1 compressed shards .* such as 'train-002.tar.gz'"):
        assert len(open_dataset(tmp_path).splits) == 1


def test_a_command_that_says_nothing(monkeypatch) -> None:
    pytest.importorskip("webdataset")
    monkeypatch.setattr(shard_urls, "SILENCE", 0.3)
    for command in ("sleep 60; echo", "printf a; sleep 60; echo"):
        refused(f"pipe:{command}", command, "nothing came for 0.3 seconds", class_names=NAMES)


def test_shards_at_urls_need_no_other_library(
    tmp_path: Path, server: tuple[str, list[str]], monkeypatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "webdataset.gopen", None)
    shards(tmp_path / "www", 1)
    assert len(open_dataset(f"{server[0]}/train-000.tar", class_names=NAMES).split("all")) == 6


def test_a_server_that_hangs(monkeypatch, tmp_path: Path) -> None:
    """The copy ends with the address, soon, and leaves nothing half."""
    monkeypatch.setattr(network, "READ_TIMEOUT", 0.2)
    monkeypatch.setattr(network, "_PAUSE", 0.0)
    with hanging_server(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nabc") as (address, asked):
        url = f"{address}/a.tar"
        refused(url, url, "cannot be copied", "nothing came in time", class_names=NAMES)
        assert len(asked) == network.TRIES
