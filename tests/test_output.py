"""Output folders: nothing of the user's is replaced or deleted, one owner at a time, whole saves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rada.core import output
from rada.core.errors import OutputError, StorageError
from rada.core.output import STATE_FOLDER, check_apart, check_file, claim, finish_save
from rada.core.storage import atomic_path


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def visible(folder: Path) -> dict[str, bytes]:
    return {k: v for k, v in tree(folder).items() if not k.startswith(STATE_FOLDER)}


def save(folder: Path, **files: str) -> None:
    with claim(folder, "model") as out, out.saving() as stage:
        for name, text in files.items():
            path = stage / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)


@pytest.mark.parametrize("kind", ["model", "report", "bench", "demo", "encoder"])
@pytest.mark.parametrize("name", ["training/cat/1.jpg", "result.json", "config.json", ".hidden"])
def test_foreign_folders_are_refused_untouched(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("{}")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="rada did not write"), claim(tmp_path, kind):  # type: ignore[arg-type]
        pass
    assert tree(tmp_path) == before


def test_new_and_empty_folders_are_taken_and_left_clean(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new/below"):
        with claim(tmp_path / name, "model"):
            pass
    assert not list((tmp_path / "empty").iterdir())
    assert not (tmp_path / "new").exists()
    with claim(tmp_path / "new/below", "model") as out:
        out.write_json("result.json", {})
    with claim(tmp_path / "new/below", "model") as out:
        out.write_json("result.json", {"a": 1})
    assert json.loads((tmp_path / "new/below/result.json").read_text()) == {"a": 1}


def test_other_files_in_an_own_folder_stay(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    save(folder, config_json="1", encoder__a_json="2")
    (folder / "notes.txt").write_text("mine")
    (folder / "encoder" / "mine.txt").write_text("mine")
    (folder / "training").mkdir()
    (folder / "training" / "1.jpg").write_text("mine")
    save(folder, config_json="3")
    assert visible(folder) == {
        "config.json": b"3",
        "encoder/mine.txt": b"mine",
        "notes.txt": b"mine",
        "training/1.jpg": b"mine",
    }
    (folder / "result.json").write_text("mine")
    with claim(folder, "model") as out:
        for write in (out.write_json, out.write_bytes):
            with pytest.raises(OutputError, match=r"result\.json.*rada did not write"):
                write("result.json", b"{}")
        with pytest.raises(OutputError, match="rada did not write"):
            out.take("training/")
    with pytest.raises(OutputError, match="rada did not write"):
        save(folder, result_json="{}", config_json="4")
    assert (folder / "config.json").read_text() == "3"
    assert (folder / "result.json").read_text() == "mine"


def test_another_kind_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "out", config_json="1")
    with pytest.raises(OutputError, match="a model of rada's, not a report"):
        claim(tmp_path / "out", "report").__enter__()


@pytest.mark.parametrize("place", ["same", "inside", "around", "link", "file"])
def test_output_and_data_are_apart(tmp_path: Path, place: str) -> None:
    data = tmp_path / "photos"
    (data / "train").mkdir(parents=True)
    (tmp_path / "link").symlink_to(data)
    (data / "a.csv").write_text("")
    out = {"same": data, "inside": data / "out", "around": tmp_path}.get(place, data)
    read = {"link": tmp_path / "link", "file": data / "a.csv"}.get(place, data)
    with pytest.raises(OutputError, match="choose a folder outside the data"):
        check_apart(out, [str(read)])
    check_apart(tmp_path / "out", [str(data), "textiles", None, "x" * 5000, object()])


def test_one_owner_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    code = (
        "import sys, time; from rada.core.output import claim\n"
        f"with claim({str(folder)!r}, 'model'): print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "mine\n"
        with pytest.raises(OutputError, match="another rada process"):
            claim(folder, "model").__enter__()
        owner.kill()
    with claim(folder, "model") as out:  # a killed owner's lock is gone with it
        with claim(folder, "model") as inner:
            assert inner is out
        messages: list[str] = []

        def other_thread() -> None:
            try:
                claim(folder, "model").__enter__()
            except OutputError as error:
                messages.append(str(error))

        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
        assert "another rada process" in messages[0]


def killed_save(folder: Path, at: int) -> int:
    """Save over `folder` in a process that is killed before its `at`-th change of the disk."""
    code = f"""
import os, pathlib
from rada.core.output import claim
left = [{at}]
def dying(real):
    def call(*args, **kwargs):
        if left[0] == 0:
            os._exit(9)
        left[0] -= 1
        return real(*args, **kwargs)
    return call
with claim({str(folder)!r}, "model") as out:
    for name in ("replace", "unlink", "rmdir"):
        setattr(pathlib.Path, name, dying(getattr(pathlib.Path, name)))
    with out.saving() as stage:
        (stage / "config.json").write_text("new")
        (stage / "head.safetensors").write_text("new")
"""
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


def test_a_save_is_one_step_wherever_it_is_killed(tmp_path: Path) -> None:
    old = {"config.json": b"old", "head.safetensors": b"old", "encoder/a.json": b"old"}
    new = {"config.json": b"new", "head.safetensors": b"new"}
    seen = set()
    for at in range(30):
        folder = tmp_path / str(at)
        save(folder, config_json="old", head_safetensors="old", encoder__a_json="old")
        code = killed_save(folder, at)
        finish_save(folder)
        assert visible(folder) in (old, new), at
        seen.add(visible(folder) == new)
        save(folder, config_json="third")
        assert visible(folder) == {"config.json": b"third"}
        assert {path.name for path in (folder / STATE_FOLDER).iterdir()} <= {
            "manifest.json",
            "lock",
        }
        if code == 0:
            break
    assert code == 0 and seen == {True, False}


def test_a_failed_save_leaves_the_old_files(tmp_path: Path) -> None:
    save(tmp_path / "out", config_json="old")
    before = tree(tmp_path)
    with (
        pytest.raises(RuntimeError),
        claim(tmp_path / "out", "model") as out,
        out.saving() as stage,
    ):
        (stage / "config.json").write_text("half")
        raise RuntimeError("power cut")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "files",
    [["../outside"], ["/etc/passwd"], [STATE_FOLDER + "/lock"], "config.json", [1], None, ["a\0b"]],
)
def test_a_hostile_list_of_files_is_refused(tmp_path: Path, files: object) -> None:
    folder = tmp_path / "out"
    save(folder, config_json="1")
    place = folder / STATE_FOLDER / "manifest.json"
    place.write_text(json.dumps({"format": "rada-output-1", "kind": "model", "files": files}))
    (tmp_path / "outside").write_text("mine")
    with pytest.raises(OutputError, match="damaged"):
        claim(folder, "model").__enter__()
    finish_save(folder)  # a reader has nothing to do with it
    assert (tmp_path / "outside").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "rada-output-1", "kind": 7}'])
def test_a_damaged_list_of_files_names_a_way_out(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "out"
    save(folder, config_json="1")
    (folder / STATE_FOLDER / "manifest.json").write_text(text)
    before = tree(tmp_path)
    way = rf"manifest\.json' is damaged.*another folder, or delete '{folder}' yourself"
    with pytest.raises(OutputError, match=way):
        claim(folder, "model").__enter__()
    assert tree(tmp_path) == before


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    folder, mine = tmp_path / "out", tmp_path / "mine"
    save(folder, encoder__a_json="1")
    mine.mkdir()
    (mine / "a.json").write_text("mine")
    (folder / "encoder" / "a.json").unlink()
    (folder / "encoder").rmdir()
    (folder / "encoder").symlink_to(mine)
    with pytest.raises(OutputError, match="leads out"):
        save(folder, encoder__a_json="2")
    assert (mine / "a.json").read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / STATE_FOLDER).symlink_to(mine)
    with pytest.raises(OutputError, match="not a folder of rada's own"):
        claim(other, "model").__enter__()
    assert tree(mine) == {"a.json": b"mine"}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_all_files_follow_the_umask(tmp_path: Path, mask: int) -> None:
    old = os.umask(mask)
    try:
        with claim(tmp_path / "out", "model") as out, out.saving() as stage:
            (stage / "encoder").mkdir(mode=0o700)
            for name in ("a", "encoder/b"):
                (stage / name).write_text("1")
                (stage / name).chmod(0o600)
    finally:
        os.umask(old)
    for path in (tmp_path / "out").rglob("*"):
        expected = (0o777 if path.is_dir() else 0o666) & ~mask
        assert path.stat().st_mode & 0o777 == expected, path


def test_a_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    check_file(path, overwrite=False)
    path.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        check_file(path, overwrite=False)
    check_file(path, overwrite=True, inputs=["-", "textiles", str(tmp_path)])
    with pytest.raises(OutputError, match="is read by this command"):
        check_file(path, overwrite=True, inputs=[str(path)])
    for other in (tmp_path, Path(os.devnull)):
        with pytest.raises(OutputError, match="not a regular file"):
            check_file(other, overwrite=True)


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    for place in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(StorageError):
            claim(place, "model").__enter__()
    assert output.__all__
    assert tree(tmp_path) == {"a": b"mine"}


def test_a_file_of_an_output_folder_is_no_place_for_another(tmp_path: Path) -> None:
    save(tmp_path / "out", config_json="1")
    with pytest.raises(OutputError, match="part of a model"):
        check_file(tmp_path / "out" / "config.json", overwrite=True)


def test_of_two_that_write_a_new_file_the_second_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with (
        pytest.raises(OutputError, match="exists by now"),
        atomic_path(path, overwrite=False) as second,
    ):
        second.write_text("second")
        with atomic_path(path, overwrite=False) as first:
            first.write_text("first")
    assert tree(tmp_path) == {"a.csv": b"first"}
