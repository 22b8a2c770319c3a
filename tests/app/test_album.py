"""Uploads are bounded, and nothing of them is trusted."""

from __future__ import annotations

import io
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from rada.app.album import Album, Intake
from rada.app.archives import archived_images
from rada.app.config import AppConfig
from rada.core.errors import ConfigError, DataError

BOUNDS = {"max_images": 10, "max_file": 1_000_000, "max_total": 5_000_000}


def photo(seed=0, side=40, kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def archive(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as out:
        for name, content in entries:
            out.writestr(name, content)
    return path


def test_images_lie_under_numbers_whatever_they_were_called(tmp_path):
    album, intake = Album(tmp_path / "a", AppConfig()), Intake()
    names = ["../../evil.png", "/etc/passwd", "..\\up.png", "<b>.png", "x" * 500, "", "nul\0.png"]
    for seed, name in enumerate(names):
        album.add(photo(seed), name, "learn", intake)
    assert len(album) == len(names) == len(intake.added)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        f"{n:06d}{end}" for n in range(len(names)) for end in ("", ".small")
    }
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [one.name for one in album.pictures][:3] == ["evil.png", "passwd", "up.png"]
    assert max(len(one.name) for one in album.pictures) <= 120


def test_what_is_no_image_is_refused_by_name(tmp_path):
    album, intake = Album(tmp_path, AppConfig(max_file_megabytes=1)), Intake()
    album.add(b"hello", "a.txt", "learn", intake)
    album.add(photo()[:200], "cut.png", "learn", intake)
    album.add(b"x" * 1_000_001, "big.png", "learn", intake)
    assert [name for name, _ in intake.refused] == ["a.txt", "cut.png", "big.png"]
    assert "not an image" in intake.refused[0][1] and "more than 1 MB" in intake.refused[2][1]
    assert len(album) == 0 and list(tmp_path.iterdir()) == []


def test_a_decompression_bomb_is_not_decoded(tmp_path):
    album, intake = Album(tmp_path, AppConfig(max_megapixels=1)), Intake()
    buffer = io.BytesIO()
    Image.new("1", (5000, 5000)).save(buffer, "PNG")  # a few kilobytes of 25 million pixels
    album.add(buffer.getvalue(), "bomb.png", "learn", intake)
    assert intake.refused_count == 1 and "pixels" in intake.refused[0][1] and len(album) == 0


def test_number_size_and_copies(tmp_path):
    album, intake = Album(tmp_path, AppConfig(max_images=2)), Intake()
    for seed in (0, 0, 1, 2):
        album.add(photo(seed), f"{seed}.png", "learn", intake)
    assert len(album) == 2 and intake.twice == 1 and "room for 2 images" in intake.refused[0][1]
    small, intake = Album(tmp_path / "b", AppConfig(max_total_megabytes=1)), Intake()
    for seed in range(3):
        small.add(photo(seed, side=400), "x.png", "learn", intake)  # half a megabyte each
    assert len(small) == 2 and "room for 1 MB" in intake.refused[0][1]


def test_what_is_shown_is_never_the_file_that_was_sent(tmp_path):
    album, intake = Album(tmp_path, AppConfig()), Intake()
    album.add(photo(side=2000) + b"<script>", "x.png", "learn", intake)
    for large, side in ((False, 256), (True, 1024)):
        shown = album.shown(0, large=large)
        assert shown.startswith(b"\xff\xd8") and b"<script>" not in shown
        assert max(Image.open(io.BytesIO(shown)).size) == side
    with pytest.raises(DataError, match="no image 1"):
        album.shown(1)
    album.forget()
    assert not tmp_path.exists()


def test_an_archive_gives_its_images(tmp_path):
    entries = [
        ("cat/1.png", photo(1)),
        ("dog/2.jpg", photo(2, kind="JPEG")),
        ("__MACOSX/cat/._1.png", b"junk"),
        (".hidden/3.png", photo(3)),
        ("readme.txt", b"text"),
        ("broken.png", b"no image"),
        ("inner.zip", b"PK\x03\x04"),
    ]
    album, intake = Album(tmp_path / "a", AppConfig()), Intake()
    album.add_archive(archive(tmp_path / "x.zip", entries), "try", intake)
    assert [one.name for one in album.pictures] == ["1.png", "2.jpg"]
    assert {one.role for one in album.pictures} == {"try"}
    assert [name for name, _ in intake.refused] == ["broken.png"]


@pytest.mark.parametrize(
    "name", ["../x.png", "/x.png", "C:/x.png", "a\\..\\..\\x.png", "a/../../x.png"]
)
def test_an_archive_that_leads_out_is_refused(tmp_path, name):
    place = archive(tmp_path / "x.zip", [("ok.png", photo()), (name, photo(1))])
    with pytest.raises(DataError, match="outside itself"):
        list(archived_images(place, **BOUNDS))
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_bombs_are_refused_before_anything_is_read(tmp_path):
    zeros = archive(tmp_path / "zeros.zip", [("0.png", b"\0" * 4_000_000)])
    with pytest.raises(DataError, match="times its size"):
        list(archived_images(zeros, **BOUNDS))
    many = archive(tmp_path / "many.zip", [(f"{n}.png", b"") for n in range(101)])
    with pytest.raises(DataError, match="101 entries"):
        list(archived_images(many, **BOUNDS))
    stored = [(f"{n}.png", np.random.default_rng(n).bytes(900_000)) for n in range(6)]
    with pytest.raises(DataError, match="would grow to"):
        list(archived_images(archive(tmp_path / "large.zip", stored), **BOUNDS))
    with pytest.raises(DataError, match="cannot be read"):
        (tmp_path / "cut.zip").write_bytes(zeros.read_bytes()[:300])
        list(archived_images(tmp_path / "cut.zip", **BOUNDS))


def test_a_directory_that_lies_gains_nothing(tmp_path):
    """The directory says 100 bytes; the data would be 3 MB."""
    place = archive(tmp_path / "x.zip", [("liar.png", b"\1" * 3_000_000)])
    raw = bytearray(place.read_bytes())
    true_size, small = (3_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little")
    assert raw.count(true_size) == 2
    place.write_bytes(bytes(raw).replace(true_size, small))
    ((name, content),) = archived_images(place, **BOUNDS)
    assert name == "liar.png"
    assert isinstance(content, str) or len(content) <= 100


def test_damaged_and_large_files_inside_are_passed_over(tmp_path):
    noise = np.random.default_rng(0).bytes(1_200_000)
    place = archive(
        tmp_path / "x.zip", [("large.png", noise), ("bad.png", photo(1)), ("ok.png", photo())]
    )
    raw = bytearray(place.read_bytes())
    compressed = zlib.compressobj(wbits=-15)
    part = compressed.compress(photo(1)) + compressed.flush()
    start = raw.find(part[:20])
    raw[start + 30 : start + 60] = bytes(30)
    place.write_bytes(bytes(raw))
    found = dict(archived_images(place, **BOUNDS))
    assert "more than 1 MB" in found["large.png"] and "damaged" in found["bad.png"]
    assert found["ok.png"] == photo()


def test_bounds_are_checked():
    with pytest.raises(ConfigError, match="max_classes"):
        AppConfig(max_classes=1)
    with pytest.raises(ConfigError, match="max_images"):
        AppConfig(max_images=0)
