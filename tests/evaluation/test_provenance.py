"""What a result says about where it comes from."""

import json
import sys
import time

import torch

from rada.evaluation import Timer, command_line, environment


def test_environment_names_versions_and_machine():
    values = json.loads(json.dumps(environment()))
    assert (
        values["versions"]["torch"] == torch.__version__.split("+")[0]
        or values["versions"]["torch"]
    )
    assert {"rada", "torchvision", "transformers", "open_clip", "timm", "numpy"} <= set(
        values["versions"]
    )
    assert values["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert values["threads"] >= 1
    assert values["cpus"] >= 1
    assert values["processor"]


def test_command_is_quoted(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/rada", "fit", "my photos", "--shots", "4"])
    assert command_line() == "rada fit 'my photos' --shots 4"


def test_timer_measures_a_block():
    with Timer() as timer:
        time.sleep(0.02)
        assert timer.seconds > 0
    measured = timer.seconds
    time.sleep(0.01)
    assert timer.seconds == measured >= 0.02
    assert timer.to_dict()["peak_memory_bytes"] > 10_000_000
