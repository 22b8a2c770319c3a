"""`rada encode` in two real processes: the same file as from one, and an end for all on an error."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli.test_cli import ok
from encoders.tiny_models import clip
from rada.features import Features
from rada.features.processes import ProcessGroup, part_of

TIMEOUT = 240


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    clip(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Seven images, one of them bad, which lies in the second half."""
    random = np.random.default_rng(0)
    for number in range(7):
        folder = tmp_path / "photos" / ("red", "blue")[number // 4]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "photos" / "blue" / "5.png").rename(tmp_path / "photos" / "red" / "5.png")
    (tmp_path / "photos" / "blue" / "6.png").write_bytes(b"no image")
    return tmp_path / "photos"


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | more


def two(*arguments: str | Path) -> list[subprocess.CompletedProcess[str]]:
    """Start the processes as a launcher does, which would hide their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "rada", *map(str, arguments)],
            env=environment(
                WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank, LOCAL_WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    try:
        return [subprocess.CompletedProcess(each.args, *_ended(each)) for each in running]
    finally:
        for each in running:
            each.kill()


def _ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=TIMEOUT)
    return process.returncode, out, err


def test_two_processes_write_what_one_does(model: Path, photos: Path, tmp_path: Path) -> None:
    words = [
        "encode",
        photos,
        "--model",
        model,
        "--views",
        "2",
        "--skip-bad",
        "--no-cache",
        "--json",
    ]
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    alone = ok(*words, "--out", files[0], environment={})
    launched = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         "-m", "rada", *map(str, words), "--out", files[1]],
        env=environment(), capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stderr
    expected, found = map(Features.load, files)
    assert found.ids == expected.ids and len(found) == 6
    assert found.skipped == expected.skipped and "6.png" in found.skipped[0][0]
    assert torch.equal(found.labels, expected.labels) and found.classes == expected.classes
    torch.testing.assert_close(found.image_features, expected.image_features, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.text_features, expected.text_features, rtol=0, atol=1e-5)
    facts = [json.loads(told) for told in (alone, launched.stdout)]  # one object: printed once
    assert facts[0]["encoder"] == facts[1]["encoder"] and facts[1]["images"] == 6
    assert not list(tmp_path.glob(".two*"))


def test_a_bad_image_in_one_process_ends_both(model: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.safetensors"
    ends = two("encode", photos, "--model", model, "--no-cache", "--out", out)
    assert [end.returncode for end in ends] == [2, 2], [end.stderr for end in ends]
    messages = "".join(end.stderr for end in ends)
    assert messages.count("error: ") == 1 and "6.png" in messages and "Traceback" not in messages
    assert all(end.stdout == "" for end in ends)
    assert not list(tmp_path.glob("*f.safetensors*"))


def test_bad_input_is_told_once(model: Path, tmp_path: Path) -> None:
    ends = two("encode", tmp_path / "none", "--model", model, "--out", tmp_path / "f.safetensors")
    assert [end.returncode for end in ends] == [2, 2]
    assert sum("'" + str(tmp_path / "none") in end.stderr for end in ends) == 1


@pytest.mark.parametrize("total", [0, 1, 7, 63, 64, 65, 1000])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_parts_cover_all_images_once(total: int, count: int) -> None:
    parts = [part_of(total, rank, count) for rank in range(count)]
    assert [k for start, stop in parts for k in range(start, stop)] == list(range(total))
    sizes = [stop - start for start, stop in parts]
    assert max(sizes) - min(sizes) <= (32 if total >= 32 * count else 1)


def test_one_process_is_a_team(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    group = ProcessGroup()
    with group.main_first(), group.together():
        pass
    with pytest.raises(KeyError), group.main_first():
        raise KeyError("own")
