"""What the first argument of predict, evaluate, explain, export and serve is taken for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cli.test_cli import QUICK, environment, features, ok, pictures, refused  # noqa: F401 - fixtures

MEND = "copy the folder again from where it is whole, or fit again with --overwrite"


@pytest.fixture(scope="module")
def model(
    tmp_path_factory: pytest.TempPathFactory,
    features: dict[str, Path],  # noqa: F811
    environment: dict[str, str],  # noqa: F811
) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    ok("fit", features["train"], "--out", out, *QUICK, environment=environment)
    return out


def commands(first: Path, image: Path, data: Path, out: Path) -> list[list[str | Path]]:
    return [
        ["predict", first, image],
        ["evaluate", first, data],
        ["explain", first, image, "--json"],
        ["export", first, "--out", out],
        ["serve", first],
    ]


@pytest.mark.parametrize("damage", [None, b"", b"half"])
def test_a_damaged_configuration(
    environment: dict[str, str],  # noqa: F811
    model: Path,
    pictures: Path,  # noqa: F811
    tmp_path: Path,
    damage: bytes | None,
) -> None:
    copy, image = tmp_path / "copy", pictures / "test" / "blue_sky" / "0.png"
    shutil.copytree(model, copy)
    config = copy / "config.json"
    if damage is None:
        config.unlink()
        expected = f"error: {str(copy)!r} is damaged (it has no config.json): {MEND}"
    else:
        config.write_bytes(config.read_bytes()[:3000] if damage else damage)
        expected = f"error: {str(config)!r} is damaged ("
    for words in commands(copy, image, pictures, tmp_path / "out"):
        told = refused(*words, environment=environment)
        assert expected in told and MEND in told and "--class" not in told


def test_a_folder_that_is_no_model(
    environment: dict[str, str],  # noqa: F811
    pictures: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    image = pictures / "test" / "blue_sky" / "0.png"
    for words in commands(pictures, image, pictures, tmp_path / "out"):
        told = refused(*words, environment=environment)
        assert f"error: {str(pictures)!r} is not a saved model (it has no config.json)" in told


def test_folders_of_encoders_stay_encoders(tmp_path: Path) -> None:
    from rada.cli.opening import _names_model

    assert not _names_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert _names_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "clip", "rada_version": "1"}')
    assert not _names_model(str(tmp_path))
    (tmp_path / "config.json").unlink()
    (tmp_path / "open_clip_config.json").write_text("{}")
    assert _names_model(str(tmp_path))
