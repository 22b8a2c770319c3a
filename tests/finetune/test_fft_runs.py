"""Runs that stop and go on, in processes of their own: kill, SIGTERM, several processes, full disks."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cli.test_cli import ok
from finetune.conftest import lines, write_pictures
from rada import Classifier, EFTConfig, FFTConfig, FineTuner
from rada.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    StorageError,
    TrainingDivergedError,
)
from rada.data import ImageSplit
from rada.encoders import load_encoder
from rada.evaluation.sets import shared_classes
from rada.methods import get_method
from rada.training.checkpoints import Checkpoints, RunState, differences
from rada.training.encoder_loop import FineTuningStopped

OPTIONS = ["--seed", "1", "--workers", "0"]
for _setting in ("epochs=6", "batch_size=8", "learning_rate=1e-3", "evaluate_every=0"):
    OPTIONS += ["--set", _setting]
HEAD = ["--set", "head_epochs=2", "--set", "strength=1"]


def command(data, model, out, *more, method="rada-ft"):
    own = HEAD if method == "rada-ft" else []
    words = ("finetune", data, "--model", model, "--method", method, "--out", out)
    return [str(word) for word in (*words, *OPTIONS, *own, *more)]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


TWO = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
TWO += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
FOUR = ["4" if word == "2" else word for word in TWO]


def stopped(
    words, log: Path, steps: int, number: int, launcher: Sequence[str] = (), **variables: str
) -> subprocess.Popen:
    """Start a run, send it a signal after some steps, and wait for its end."""
    process = subprocess.Popen(
        [sys.executable, *launcher, "-m", "rada", *words],
        env=environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    limit = time.monotonic() + 240
    while time.monotonic() < limit and process.poll() is None:
        if (
            log.exists()
            and sum('"gradient_norm"' in x for x in log.read_text().splitlines()) >= steps
        ):
            process.send_signal(number)
            break
        time.sleep(0.005)
    process.communicate(timeout=120)
    return process


def weights(out: Path) -> dict[str, bytes]:
    names = ["encoder/model.safetensors", "model.safetensors"]
    return {name: (out / name).read_bytes() for name in names}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes of their own, so that weights can be equal to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def reference(data, model_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "out"
    ok(*command(data, model_folder, out), environment={})
    return out


def test_killed_and_terminated_runs_end_like_one_that_was_not(
    reference, data, model_folder, tmp_path
):
    out = tmp_path / "out"
    words = command(data, model_folder, out, "--set", "checkpoint_every=2")
    killed = stopped(words, out / "log.jsonl", 4, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL and not (out / "result.json").exists()
    terminated = stopped(words, out / "log.jsonl", 9, signal.SIGTERM)
    assert terminated.returncode == 143
    assert not (out / "result.json").exists()
    told = ok(*words, environment={})
    assert weights(out) == weights(reference)
    steps = [entry["step"] for entry in lines(out / "log.jsonl") if "gradient_norm" in entry]
    assert steps == list(range(1, 19))  # 20 pictures, 8 a step, 6 epochs; each step logged once
    assert not (out / ".rada-state" / "training").exists() and "tuned" in told
    assert [path for path in out.rglob("*") if path.name.startswith(".")] == [out / ".rada-state"]


def in_processes(
    words: list[str], launcher: Sequence[str] = TWO, **variables: str
) -> subprocess.CompletedProcess:
    """Run a command in processes that know of each other."""
    return subprocess.run(
        [sys.executable, *launcher, "-m", "rada", *words],
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("method", ["rada-ft", "flyp"])
def test_two_processes_learn_what_one_does(method, data, dark, model_folder, tmp_path):
    """A method whose loss is a sum over images, and one whose loss compares all images of a batch."""
    more = ["--ood", f"dark={dark}", "--json"]
    more += ["--set", "batch_size=7"]  # uneven shares, a last batch of 6
    words = [
        command(data, model_folder, tmp_path / count, *more, method=method)
        for count in ("one", "two")
    ]
    ok(*words[0], environment={})
    found = in_processes(words[1])
    assert found.returncode == 0, found.stderr[-3000:]
    assert json.loads(found.stdout)["processes"] == 2  # one object: one process prints
    one, two = (lines(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        if "gradient_norm" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-5, abs=1e-5)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    for part in ("in_distribution", "out_of_distribution"):
        a, b = (result["tuned"][part] for result in results)
        assert json.dumps(a)[:40] == json.dumps(b)[:40]
    images = [r["tuned"]["out_of_distribution"]["dark"]["images"] for r in results]
    assert images == [12, 12]


def fit(data, model_folder, out, **changes):
    options = {"batch_size": 8, "learning_rate": 1e-3, "head_epochs": 2, "evaluate_every": 0}
    options["strength"] = 1.0
    config = FFTConfig(**{"epochs": 2, **options, **changes})
    tuner = FineTuner(load_encoder(model_folder), "rada-ft", config, progress=False, workers=0)
    return tuner, lambda **more: tuner.fit(data, seed=1, output_dir=out, **more)


def stop_after_two_steps(run):
    """Run until Ctrl-C, which comes after the second step."""
    from rada.training.encoder_loop import EncoderLoop

    step = EncoderLoop._step

    def interrupting(self, at, batches, state):
        values = step(self, at, batches, state)
        if state.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return values

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncoderLoop, "_step", interrupting)
        with pytest.raises(FineTuningStopped, match="stopped after step 2") as caught:
            run()
    assert caught.value.signal == signal.SIGINT


def test_stop_in_the_library_and_go_on(data, model_folder, tmp_path):
    tuner, run = fit(data, model_folder, tmp_path / "out")
    whole = fit(data, model_folder, tmp_path / "whole")
    whole[1]()
    stop_after_two_steps(run)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run()
    for key, value in tuner.model.tuned().items():
        assert torch.equal(value, whole[0].model.tuned()[key])


def test_a_gradient_scaler_goes_on_where_it_was(data, model_folder, tmp_path, monkeypatch):
    scalers = []
    from rada.training import encoder_training

    make = encoder_training.make_accelerator

    def with_scaler(*arguments, **options):  # as fp16 brings it, which a CPU does not have
        accelerator = make(*arguments, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        accelerator.scaler = scaler
        scalers.append(scaler)
        return accelerator

    monkeypatch.setattr(encoder_training, "make_accelerator", with_scaler)
    _, run = fit(data, model_folder, tmp_path / "out", max_grad_norm=0.0)
    stop_after_two_steps(run)
    run()
    assert len(scalers) == 2
    assert scalers[-1].get_scale() == 1024.0 * 2**3  # 6 steps, doubled after every second


def test_another_run_is_not_overwritten(data, model_folder, tmp_path):
    _, run = fit(data, model_folder, tmp_path / "out")
    result = run()
    assert run()["tuned"] == result["tuned"]  # the same call: its result
    _, other = fit(data, model_folder, tmp_path / "out", learning_rate=2e-3)
    with pytest.raises(
        CheckpointError, match=r"config.learning_rate is 0.001 there and 0.002 here"
    ):
        other()
    assert json.loads((tmp_path / "out" / "result.json").read_text())["seed"] == 1
    assert other(overwrite=True)["config"]["learning_rate"] == 2e-3


def test_the_figure_shows_the_line_to_the_pretrained_model(data, dark, model_folder, tmp_path):
    _, run = fit(data, model_folder, tmp_path / "out", epochs=1)
    run(ood={"dark": dark}, wise=(0, 0.5, 1))
    drawn = (tmp_path / "out" / "robustness.svg").read_text()
    assert "RAda-FT" in drawn and "zero-shot" in drawn


def test_a_checkpoint_of_another_config_names_the_difference(tmp_path):
    first = Checkpoints(tmp_path / "c", {"config": {"epochs": 2}, "seed": 1}, 2)
    first.claim(overwrite=False)
    second = Checkpoints(tmp_path / "c", {"config": {"epochs": 3}, "seed": 1}, 2)
    with pytest.raises(CheckpointError, match=r"config.epochs is 2 there and 3 here"):
        second.claim(overwrite=False)
    assert differences({"a": 1}, {"a": 1, "b": None}) == []


def test_checkpoints_keep_the_last_and_survive_a_full_disk(tmp_path):
    store = Checkpoints(tmp_path / "c", {}, 2)
    store.claim(overwrite=False)
    tensors = {"w": torch.arange(30_000.0)}
    for step in (1, 2, 3):
        store.save(RunState(step=step), tensors, tensors)
    assert [path.name for path in store.all()] == ["step-00000002", "step-00000003"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        with pytest.raises(StorageError, match="cannot write"):
            store.save(RunState(step=4), tensors, tensors)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    state, found, _ = store.load()
    assert state.step == 3 and torch.equal(found["w"], tensors["w"])
    assert not list((tmp_path / "c").glob(".step-*"))


def test_a_damaged_checkpoint_is_named(tmp_path):
    store = Checkpoints(tmp_path / "c", {}, 2)
    store.claim(overwrite=False)
    store.save(RunState(step=1), {"w": torch.ones(2)}, {})
    path = tmp_path / "c" / "step-00000001" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="step-00000001"):
        store.load()


def test_a_loss_that_is_not_finite_stops_the_run(data, model_folder, tmp_path):
    tuner, run = fit(data, model_folder, tmp_path / "out", epochs=6, checkpoint_every=1)
    from rada.methods.finetune.rada_ft import RAdaFT

    loss = RAdaFT.loss
    calls = []

    def breaking(self, model, batch):
        if torch.is_grad_enabled():  # a step, not the check before a checkpoint
            calls.append(1)
        found = loss(self, model, batch)
        return found | {"loss": found["loss"] * float("nan")} if len(calls) == 5 else found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RAdaFT, "loss", breaking)
        with pytest.raises(TrainingDivergedError, match=r"nan at step 5 \(epoch 2, learning rate"):
            run()
    newest = sorted((tmp_path / "out" / ".rada-state" / "training").rglob("step-*"))[-1]
    assert newest.name == "step-00000004"
    assert tuner.model is None  # a fit that fails changes nothing


def test_pictures_that_cannot_be_read(data, model_folder, tmp_path):
    folder = write_pictures(tmp_path / "bad" / "train", 3, 0).parent
    (folder / "train" / "red" / "1.png").write_bytes(b"no picture")
    (folder / "train" / "red" / "link.png").symlink_to(tmp_path / "nowhere.png")
    encoder = load_encoder(model_folder)
    config = FFTConfig(epochs=1, batch_size=4, head_first=False, evaluate_every=0, strength=1)
    with pytest.raises(DataError, match=r"red/link.png"):
        FineTuner(encoder, "rada-ft", config, workers=0, progress=False).fit(folder)
    tuner = FineTuner(encoder, "rada-ft", config, workers=0, progress=False, skip_bad=True)
    with (
        pytest.warns(UserWarning, match="no test split"),
        pytest.warns(UserWarning, match=r"2 of the training images were .*link\.png.*1\.png"),
    ):
        result = tuner.fit(folder)
    assert result["tuned"]["in_distribution"] is None
    assert [key for key, _ in result["skipped"]] == ["red/link.png", "red/1.png"]
    record = tuner.fitted.record
    assert len(record.skipped) == 2 and record.images == 11
    write_pictures(tmp_path / "bad" / "test", 3, 0)
    (folder / "test" / "red" / "1.png").write_bytes(b"no picture")
    (folder / "test" / "red" / "link.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning) as told:
        result = tuner.fit(folder, shots=2, seed=1)
    said = [str(entry.message) for entry in told]
    assert any("1 of the test images was" in one and "link.png" in one for one in said)
    assert "1 of the images of the test set left out as unreadable" in said
    assert result["tuned"]["in_distribution"]["left_out"] == 1


def test_shifted_sets_with_other_classes(data, model_folder, tmp_path):
    write_pictures(tmp_path / "few" / "test", 3, 0, names=["RED", "gre_en", "blue"])
    encoder = load_encoder(model_folder)
    config = EFTConfig(epochs=1, min_steps=0, strength=1.0)
    tuner = FineTuner(encoder, "rada", config, progress=False, workers=0)
    with pytest.warns(UserWarning, match=r"few: evaluated among 2 shared classes; it lacks"):
        result = tuner.fit(data, {"few": tmp_path / "few"})
    found = result["tuned"]["out_of_distribution"]["few"]
    assert (found["images"], found["classes"]) == (6, 2)
    assert "'gre en' was not trained" in found["note"].replace("_", " ")
    write_pictures(tmp_path / "twice" / "test", 1, 0, names=["red", "RED", "blue"])
    with pytest.raises(DataError, match="differ in spelling only"):
        tuner.fit(data, {"twice": tmp_path / "twice"})
    split = ImageSplit.from_files(tmp_path, ["a", "b"], labels=[0, 1], classes=["re_d", "RE D"])
    with pytest.raises(DataError, match="case or underscores alone"):
        shared_classes("twice", split, ("red", "blue"))
    with pytest.raises(ConfigError, match="cannot be called 'mean'"):
        tuner.fit(data, {"mean": data})


def test_wrong_options_end_with_code_2(data, model_folder, tmp_path):
    from typer.testing import CliRunner

    from rada.cli.app import app
    from rada.core.errors import RadaError

    base = ["finetune", str(data), "--model", str(model_folder), "--out", str(tmp_path / "out")]
    for more, told in (
        (["--method", "rada-fft"], "there is no method"),
        (["--ood", "dark"], "NAME=DATA"),
        (["--wise", "0,2"], "in [0, 1]"),
        (["--set", "epoch=3"], "there is no field 'epoch': did you mean 'epochs'?"),
        (["--set", "train=all"], "train should be"),
        (["--method", "rada", "--set", "train=image"], "there is no field 'train'"),
    ):
        found = CliRunner().invoke(app, base + more)
        assert isinstance(found.exception, RadaError) and told in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_set_reads_numbers_as_the_benchmark_does():
    from rada.cli.options import configured

    def config(name, *settings):
        return configured(get_method(name).config, None, list(settings))

    found = config("rada-ft", "head_learning_rate=1e-3", "head_first=false", "epochs=3")
    assert (found.head_learning_rate, found.head_first, found.epochs) == (1e-3, False, 3)
    assert config("ft", "select=best").select == "best"


def test_tensorboard(data, model_folder, tmp_path):
    pytest.importorskip("tensorboard")
    config = FFTConfig(epochs=1, batch_size=8, head_epochs=1, strength=1.0)
    tuner = FineTuner(
        load_encoder(model_folder), "rada-ft", config, trackers=["tensorboard"], progress=False
    )
    tuner.fit(data, output_dir=tmp_path / "out")
    assert list((tmp_path / "out").rglob("events.out.tfevents*"))


@pytest.mark.parametrize("method", ["rada", "linear_probe"])
def test_a_fit_does_not_throw_an_unfinished_run_away(data, model_folder, tmp_path, method):
    out = tmp_path / "out"
    _, run = fit(data, model_folder, out, epochs=4)
    stop_after_two_steps(run)
    kept = {path: path.read_bytes() for path in out.rglob("*.safetensors")}
    assert kept
    clf = Classifier(str(model_folder), method, cache=False, workers=0, progress=False)
    with pytest.raises(CheckpointError, match=r"not finished.*--overwrite"):
        clf.fit(data, seed=1, output_dir=out)
    assert {path: path.read_bytes() for path in out.rglob("*.safetensors")} == kept
    clf.fit(data, seed=1, output_dir=out, overwrite=True)
    assert Classifier.from_pretrained(out, encoder=str(model_folder)).method == method
