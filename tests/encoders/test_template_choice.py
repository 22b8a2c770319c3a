"""Templates are chosen with every family of encoders."""

from __future__ import annotations

import torch

from rada.encoders import DualEncoder
from rada.features import Features
from rada.features.template_choice import choose_templates


def test_every_family_chooses(encoder: DualEncoder) -> None:
    names, own = ("red", "dog"), ("{} blue",)
    seen = encoder.encode_classes(names, ("the {}.",))
    features = Features(
        seen.repeat(3, 1),
        torch.arange(2).repeat(3),
        names,
        text_features=encoder.encode_classes(names, own),
        scale=float(encoder.scale),
        templates=own,
    )
    found, choice = choose_templates(features, encoder)
    assert len(choice.log_likelihoods) == 87
    assert choice.own == own
    expected = encoder.encode_classes(names, choice.templates)
    torch.testing.assert_close(found.text_features, expected)
    assert choice.changed == (choice.gain > choice.standard_error)
