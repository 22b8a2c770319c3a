"""The dual encoder that every vision-language model is wrapped in."""

from __future__ import annotations

from rada.encoders.attention import AttentionAccess
from rada.encoders.batching import Batching
from rada.encoders.projection import ProjectionAccess
from rada.encoders.prompt_learning import PromptLearning
from rada.encoders.protocol import CAPABILITIES, Transform, TruncationWarning, evaluating
from rada.encoders.weights import Weights

__all__ = ["CAPABILITIES", "DualEncoder", "Transform", "TruncationWarning", "evaluating"]


class DualEncoder(Batching, PromptLearning, AttentionAccess, ProjectionAccess, Weights):
    """An image encoder and a text encoder that embed into one space.

    A family subclasses this, implements the abstract methods and registers itself with
    `rada.encoders.register_family`. Features are unit-norm float32, whatever the precision of the
    weights.

    Args:
        model: Everything that has weights.
        name: What `load_encoder` was asked for.
        dim: Width D of the features.
        preprocess: PIL image to float32 pixels `(3, H, W)`, for evaluation. Picklable.
        train_transform: The same at random, drawing from torch's global generator. Picklable.
        scale: Overrides the model's own scale of the logits; None keeps it.

    Attributes:
        family: Name of the family.
        capabilities: What it can do beyond the protocol; the keys of `CAPABILITIES`.
        default_scale: Scale where the model learns none.
    """
