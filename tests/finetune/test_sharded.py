"""Encoders that learn in shards (FSDP2): two processes on the CPU against one that learns the whole."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from cli.test_cli import ok
from finetune.conftest import lines
from finetune.test_fft_runs import FOUR, TWO, command, environment, in_processes, stopped
from rada.core.errors import ConfigError
from rada.methods import get_method, list_methods
from rada.training import encoder_training, sharding

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
# AdamW makes a step of full length of a gradient that is rounding alone, such as that of the keys' biases.
PLAIN = ["--set", "optimizer=sgd", "--set", "learning_rate=0.05", "--set", "epochs=3"]

NEW_ENOUGH = pytest.mark.skipif(not sharding._leaves_scalars(), reason="torch 2.7 or later")


def learned(folder: Path) -> dict[str, torch.Tensor]:
    encoder = next(path for path in (folder / "encoder").glob("*.safetensors"))
    return load_file(encoder) | load_file(folder / "model.safetensors")


def assert_same(one: Path, two: Path, start: Path) -> None:
    """Compare what two runs learned, and make sure that they learned something."""
    found, expected = learned(two), learned(one)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5, msg=name)
    begun = load_file(next(start.glob("*.safetensors")))
    moved = max(float((expected[name] - begun[name]).abs().max()) for name in begun)
    assert moved > 1e-3


@NEW_ENOUGH
@pytest.mark.parametrize(
    ("family", "method", "launcher", "more"),
    [
        ("clip", "ft", TWO, ["batch_size=7"]),
        ("clip", "rada-ft", TWO, ["accumulate=2"]),
        ("open_clip", "flyp", FOUR, ["text_chunk=2"]),
    ],
)
def test_shards_learn_what_one_process_does(
    family, method, launcher, more, data, model_folder, open_clip_folder, tmp_path
):
    model = {"clip": model_folder, "open_clip": open_clip_folder}[family]
    settings = PLAIN + [word for setting in more for word in ("--set", setting)]
    one, two = (
        command(data, model, tmp_path / name, "--json", *settings, method=method)
        for name in ("one", "two")
    )
    ok(*one, environment={})
    found = in_processes(two, launcher, **SHARDED)
    assert found.returncode == 0, found.stderr[-3000:]
    assert json.loads(found.stdout)["processes"] == (4 if launcher is FOUR else 2)
    assert_same(tmp_path / "one", tmp_path / "two", model)
    logs = [lines(tmp_path / name / "log.jsonl") for name in ("one", "two")]
    steps = [[entry for entry in log if "gradient_norm" in entry] for log in logs]
    assert len(steps[0]) == len(steps[1]) > 0
    for a, b in zip(*steps, strict=True):
        for name in ("loss", "gradient_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-5)


@NEW_ENOUGH
@pytest.mark.parametrize("first", ["whole", "shards"])
def test_a_run_goes_on_in_the_other_way(first, data, open_clip_folder, tmp_path):
    """FLYP learns the scale, which is no shard: its moments must find their way, too."""
    more = [*PLAIN, "--set", "checkpoint_every=2", "--set", "epochs=6"]
    reference, words = (
        command(data, open_clip_folder, tmp_path / name, *more, method="flyp")
        for name in ("reference", "out")
    )
    ok(*reference, environment={})
    log = tmp_path / "out" / "log.jsonl"
    launcher, variables = (TWO, SHARDED) if first == "shards" else ((), {})
    stopped(words, log, 4, signal.SIGTERM, launcher, **variables)
    assert not (tmp_path / "out" / "result.json").exists()
    if first == "shards":
        ok(*words, environment={})
    else:
        found = in_processes(words, **SHARDED)
        assert found.returncode == 0, found.stderr[-3000:]
    steps = [entry["step"] for entry in lines(log) if "gradient_norm" in entry]
    assert steps == list(range(1, 19))
    assert_same(tmp_path / "reference", tmp_path / "out", open_clip_folder)


WORKER = """
import sys, torch
from torch import distributed
from torch.distributed.tensor import DTensor
from rada.encoders import load_encoder
from rada.methods import get_method
from rada.methods.base import Facts
from rada.training.sharding import ShardedLearner

distributed.init_process_group("gloo")
encoder, flyp = load_encoder(sys.argv[1]), get_method("flyp")
facts = Facts(encoder.dim, encoder.scale, ("a", "b"), ("a {}.",))
model = flyp._tuned(facts, flyp.config(), encoder, torch.zeros(2, encoder.dim))
model.keep_pretrained()
learner = ShardedLearner(model, torch.device("cpu"), half=False)
parts = [(p.to_local() if isinstance(p, DTensor) else p).numel() for p in learner.module.parameters()]
scalars = [name for name, p in learner.module.named_parameters() if not isinstance(p, DTensor)]
cut = sum(type(m).__name__.startswith("FSDP") for m in learner.module.modules())
rows = [None, None]
distributed.all_gather_object(rows, sum(parts))
if distributed.get_rank() == 0:
    print("found", rows, encoder.parameter_count, cut, *scalars)
distributed.barrier()
distributed.destroy_process_group()
"""


@NEW_ENOUGH
def test_each_process_has_half_of_the_weights(model_folder, open_clip_folder, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    for folder in (model_folder, open_clip_folder):
        told = subprocess.run(
            [sys.executable, *TWO, str(script), str(folder)],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment(),
            check=True,
        ).stdout
        _, first, second, whole, cut, *scalars = told.replace("[", "").replace("]", "").split()
        sizes = [int(first.rstrip(",")), int(second)]
        assert sum(sizes) == int(whole) + 1  # the scale is in both
        assert max(sizes) < 0.53 * int(whole)
        assert int(cut) == 5  # two layers each, and what is around them
        assert scalars == ["encoder_module.logit_scale"]


def asked(monkeypatch, precision="no", **variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return sharding.wants_shards(SimpleNamespace(mixed_precision=precision))


def test_what_cannot_be_is_said(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    monkeypatch.setattr(sharding, "_leaves_scalars", lambda: True)
    assert not asked(monkeypatch)
    with pytest.raises(ConfigError, match="second version"):
        asked(monkeypatch, ACCELERATE_USE_FSDP="true")
    assert not asked(monkeypatch, FSDP_VERSION="2")  # one process has nobody to share with
    with pytest.raises(ConfigError, match="precision=bf16"):
        asked(monkeypatch, "fp16")
    monkeypatch.setattr(encoder_training, "wants_shards", lambda accelerator: True)
    told = SimpleNamespace(mixed_precision="no", device="cpu")
    job = SimpleNamespace(shards=get_method("l2_sp").shards, title="L2-SP")
    with pytest.raises(ConfigError, match="L2-SP cannot learn in shards"):
        encoder_training._shards(None, job, told)
    own = SimpleNamespace(encoder=SimpleNamespace(family="custom"))
    with pytest.raises(ConfigError, match="functions of your own"):
        encoder_training._shards(own, SimpleNamespace(shards=True), told)
    monkeypatch.setattr(sharding, "_leaves_scalars", lambda: False)
    with pytest.raises(ConfigError, match=r"torch 2\.7 or later"):
        asked(monkeypatch)
    sharded = {found.name for found in list_methods() if getattr(found, "shards", False)}
    assert sharded == {"ft", "lp_ft", "flyp", "rada_ft"}  # as the message says
