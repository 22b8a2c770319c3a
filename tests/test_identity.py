"""Data is what the images show: the same names with other images are other data."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.conftest import write_pictures
from rada import FineTuner
from rada.bench import Plan, run_plan
from rada.core.errors import CheckpointError, ConfigError
from rada.data import ImageSplit, data_identity
from rada.encoders import load_encoder
from rada.methods.finetune.ft import FineTuningConfig

pytest_plugins = ["finetune.conftest"]


def replace_images(root: Path) -> None:
    """Give every image other pixels under the same name."""
    generator = np.random.default_rng(99)
    for path in root.rglob("*.png"):
        Image.fromarray(generator.integers(0, 255, (36, 36, 3), dtype=np.uint8)).save(path)


def test_the_identity_is_of_contents_names_and_order(tmp_path: Path) -> None:
    write_pictures(tmp_path / "a", 2, 0)
    ids = [f"{name}/{n}.png" for name in ("red", "blue") for n in (0, 1)]

    def split(root: str = "a", keys: list[str] = ids, classes: tuple[str, ...] = ("x", "y")) -> str:
        labels = [0, 0, 1, 1]
        return data_identity(
            ImageSplit.from_files(tmp_path / root, keys, labels=labels, classes=classes)
        )

    first = split()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert split("b") == first  # wherever it lies
    assert split(keys=ids[::-1]) != first != split(classes=("x", "z"))
    Image.new("RGB", (36, 36)).save(tmp_path / "b" / ids[3])
    other = split("b")
    assert other != first
    (tmp_path / "b" / ids[3]).unlink()
    assert split("b") not in (first, other)


@pytest.mark.parametrize("part", ["train", "test", "val"])
def test_finetune_does_not_return_the_result_of_other_images(
    part: str, data: Path, model_folder: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(data, tmp_path / "data"))
    config = FineTuningConfig(
        epochs=1, batch_size=8, learning_rate=1e-3, evaluate_every=0, select="best"
    )

    def run(out: str, **options: object) -> dict:
        tuner = FineTuner(
            load_encoder(model_folder), "ft", config, progress=False, workers=0, cache=False
        )
        return tuner.fit(root, seed=1, output_dir=tmp_path / out, **options)

    first = run("out")
    assert run("out") == first
    replace_images(root / part)
    with pytest.raises(CheckpointError, match="fingerprint"):
        run("out")
    fresh, replaced = run("fresh"), run("out", overwrite=True)
    assert replaced["tuned"] == fresh["tuned"]


def test_a_checkpoint_does_not_go_on_with_other_images(
    data: Path, model_folder: Path, tmp_path: Path
) -> None:
    from finetune.test_fft_runs import stop_after_two_steps

    root = Path(shutil.copytree(data, tmp_path / "data"))
    config = FineTuningConfig(epochs=2, batch_size=8, learning_rate=1e-3, evaluate_every=0)
    tuner = FineTuner(load_encoder(model_folder), "ft", config, progress=False, workers=0)
    stop_after_two_steps(lambda: tuner.fit(root, seed=1, output_dir=tmp_path / "out"))
    replace_images(root / "train")
    with pytest.raises(CheckpointError, match="data_fingerprint"):
        tuner.fit(root, seed=1, output_dir=tmp_path / "out")


@pytest.mark.parametrize("change", [{"templates": "{}"}, {"wise": (0.5,)}])
def test_finetune_with_other_templates_or_points_is_another_run(
    change: dict, data: Path, model_folder: Path, tmp_path: Path
) -> None:
    config = FineTuningConfig(epochs=1, batch_size=8, learning_rate=1e-3, evaluate_every=0)

    def run(wise: tuple[float, ...] = (), **options: object) -> dict:
        tuner = FineTuner(
            load_encoder(model_folder), "ft", config, progress=False, workers=0, **options
        )
        return tuner.fit(data, seed=1, wise=wise, output_dir=tmp_path / "out")

    run()
    with pytest.raises(CheckpointError, match=next(iter(change))):
        run(**change)


@pytest.mark.parametrize("what", ["train", "test", "encoder"])
def test_a_benchmark_does_not_return_the_result_of_other_data(
    what: str, data: Path, model_folder: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(data, tmp_path / "data"))
    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    plan = Plan(
        methods=("zero_shot", "tip_adapter"),
        datasets=(str(root),),
        shots=(2,),
        seeds=(1,),
        model=str(model),
    )
    assert run_plan(plan, tmp_path / "out", progress=False).done == 2
    again = run_plan(plan, tmp_path / "out", progress=False)
    assert (again.done, again.skipped) == (0, 2)
    if what == "encoder":
        encoder = load_encoder(model)
        encoder.model.logit_scale.data -= 1.0
        encoder.model.save_pretrained(model)
    else:
        replace_images(root / what)
    with pytest.raises(ConfigError, match="other images, labels, templates or encoder weights"):
        run_plan(plan, tmp_path / "out", progress=False)
    assert run_plan(plan, tmp_path / "fresh", progress=False).done == 2
    shutil.rmtree(root)  # without the data there is nothing that the results could contradict
    assert run_plan(plan, tmp_path / "fresh", progress=False).skipped == 2
