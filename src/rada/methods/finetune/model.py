"""The model that learns: towers, and a head or vectors of classes, in one module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from rada.core.errors import DataError
from rada.encoders.tokens import Tokens
from rada.head import RAdaHead
from rada.methods.finetune.config import FFTConfig
from rada.training.distributed import process_count
from rada.training.strength import StrengthChoice

if TYPE_CHECKING:
    from rada.encoders import DualEncoder
    from rada.encoders.base import Part
    from rada.methods.finetune.base import FFTMethod, Losses

__all__ = ["Batch", "Candidates", "TunedModel"]


@dataclass
class Batch:
    """This process's share of one part of a step.

    Attributes:
        pixels: `(n, 3, H, W)`.
        labels: `(n,)` among `classes`.
        weights: `(n,)`; 0 for pictures that fill the share up to the size of the others.
        count: Pictures of the whole step, over all processes and parts.
        parts: Parts of the step.
        classes: Indices `(C,)` of the classes that were drawn; None for all.
        template: Number of the prompt template of this step.
        captions: A caption of each picture, where the method wants them.
    """

    pixels: Tensor
    labels: Tensor
    weights: Tensor
    count: int
    parts: int = 1
    classes: Tensor | None = None
    template: int = 0
    captions: tuple[str, ...] = ()


class Candidates(NamedTuple):
    """Classes to choose among.

    Attributes:
        text: Their features `(C, D)`.
        biases: What is added to their logits, `(C,)`, or None.
        strength: Mask strength for these classes, where there is a head.
    """

    text: Tensor
    biases: Tensor | None = None
    strength: float = 1.0


class TunedModel(nn.Module):
    """An encoder, and what a method adds to it.

    It starts as the zero-shot model, with any method.

    Args:
        encoder: The encoder; its weights are trained in place.
        method: The method.
        config: A configuration that `method.resolve` returned.
        classes: Names of the K classes.
        templates: Their prompt templates.
        text: Zero-shot class features `(K, D)`.
        seed: Seed of the head's initial weights.

    Attributes:
        towers: The encoder's module.
        head: The RAda head, or None.
        vectors: `(K, D)`, one learned vector a class (text features times the scale), or None.
        biases: `(K,)`, one learned bias for each of these, zero at the start; None without vectors.
        strength: How the mask strength was chosen, or the one that was given; full strength before.
        learned: The classes that had training images, as far as they matter for the strength.
        effective: Epochs and steps that were made, once they were.
        start: The pretrained weights by name, on the CPU, with the head whose mask is one.
    """

    text: Tensor

    def __init__(
        self,
        encoder: DualEncoder,
        method: FFTMethod,
        config: FFTConfig,
        classes: Sequence[str],
        templates: Sequence[str],
        text: Tensor,
        seed: int,
    ) -> None:
        super().__init__()
        self.encoder, self.method, self.config = encoder, method, config
        self.classes, self.templates = tuple(classes), tuple(templates)
        self.towers = encoder.model
        self.register_buffer("text", text.to(encoder.device), persistent=False)
        self.head: RAdaHead | None = None
        if method.has_head:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.head = RAdaHead(
                    encoder.dim, num_heads=config.num_heads, temperature=config.temperature
                )
        self.vectors: nn.Parameter | None = None
        self.biases: nn.Parameter | None = None
        if method.has_vectors:
            self.vectors = nn.Parameter(self.text * encoder.scale)
            self.biases = nn.Parameter(torch.zeros_like(self.vectors[:, 0]))
        given = 1.0 if config.strength == "auto" else float(config.strength)
        self.strength = StrengthChoice(given, "none")
        self.learned: tuple[str, ...] = ()
        self.effective: dict[str, int] = {}
        self._tokens: dict[int, Tokens] = {}
        self._choose_parameters()
        self._learning = {name for name, p in self.named_parameters() if p.requires_grad}
        # A tower that stays as it is needs no copy.
        self.start = {
            name: value.detach().cpu().clone()
            for name, value in self.state_dict().items()
            if self.changes(name)
        }

    def _choose_parameters(self) -> None:
        """Turn on the gradients of what learns while the towers do."""
        self.encoder.freeze()
        for part in self.trained_towers:
            self.encoder.unfreeze(part)
        learns = bool(self.trained_towers) and self.method.learns_scale
        for parameter in self.encoder.scale_parameters():
            parameter.requires_grad_(learns)
        for parameter in self.own_parameters():
            parameter.requires_grad_(bool(self.trained_towers))

    @property
    def trained_towers(self) -> tuple[Part, ...]:
        """Names of the towers that learn."""
        if self.config.train is None:
            return ()
        return ("image", "text") if self.config.train == "both" else (self.config.train,)

    def own_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the method added."""
        head = [] if self.head is None else list(self.head.parameters())
        return head + [p for p in (self.vectors, self.biases) if p is not None]

    def changes(self, name: str) -> bool:
        """Whether an entry of the state dict can differ from the pretrained one."""
        if not name.startswith("towers."):
            return True
        if self.config.train_mode and self.trained_towers:  # statistics of batch norms
            return True
        return name in self._learning

    def train_towers(self) -> None:
        """Set the modes of training: the towers' own only where the configuration says so."""
        self.train()
        self.towers.train(self.config.train_mode and bool(self.trained_towers))

    # -- what losses are made of -----------------------------------------------------------------

    def forward(self, batch: Batch) -> Losses:
        """Return this process's share of the step's loss, and sums to report."""
        found = self.method.loss(self, batch)
        penalty = self.method.penalty(self)
        if penalty is not None:  # once a step, however many processes and parts there are
            share = penalty / (process_count() * batch.parts)
            found = found | {"loss": found["loss"] + share, "penalty": share.detach()}
        return found

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return `(n, D)`, with gradients if the image tower learns."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "image" in self.trained_towers):
            return self.encoder.forward_images(pixels)

    def class_features(self, classes: Tensor | None, template: int = 0) -> Tensor:
        """Return `(C, D)` of the classes at `classes`, so that logits are scale times cosine."""
        if self.vectors is not None:
            vectors = self.vectors / self.scale().detach()
            return vectors if classes is None else vectors[classes]
        if "text" not in self.trained_towers:
            return self.text if classes is None else self.text[classes]
        tokens = self._class_tokens(template)
        if classes is not None:
            tokens = {name: rows[classes.to(rows.device)] for name, rows in tokens.items()}
        return self.encoder.forward_texts_chunked(tokens, chunk_size=self.config.text_chunk)

    def class_biases(self, classes: Tensor | None) -> Tensor | None:
        """Return `(C,)`, what is added to the logits of the classes at `classes`; None for nothing."""
        if self.biases is None or classes is None:
            return self.biases
        return self.biases[classes]

    def _class_tokens(self, template: int) -> Tokens:
        if template not in self._tokens:
            words = self.templates[template]
            self._tokens[template] = self.encoder.tokenize([words.format(c) for c in self.classes])
        return self._tokens[template]

    def caption_features(self, captions: Sequence[str]) -> Tensor:
        """Return `(n, D)`, with gradients if the text tower learns."""
        tokens = self.encoder.tokenize(captions)
        with torch.set_grad_enabled(torch.is_grad_enabled() and "text" in self.trained_towers):
            return self.encoder.forward_texts_chunked(tokens, chunk_size=self.config.text_chunk)

    def scale(self) -> Tensor:
        """Return the scale, with gradients if it learns."""
        scale = self.encoder.forward_scale()
        return scale if self.method.learns_scale else scale.detach()

    # -- answers -----------------------------------------------------------------------------------

    @torch.no_grad()
    def candidates(self, names: Sequence[str]) -> Candidates:
        """Return classes for evaluation; features from the text tower are the mean over the templates.

        Raises:
            DataError: If the method learned one vector a class and a name is none of the classes.
        """
        if self.vectors is not None:
            place = {name: index for index, name in enumerate(self.classes)}
            strangers = [name for name in names if name not in place]
            if strangers:
                raise DataError(
                    f"{self.method.name} knows its {len(place)} training classes alone, "
                    f"not {strangers[0]!r}"
                )
            rows = torch.tensor([place[name] for name in names])
            biases = self.class_biases(rows)
            return Candidates(
                self.class_features(rows).cpu(), None if biases is None else biases.cpu()
            )
        strength = self.strength_for(names)
        if "text" not in self.trained_towers and tuple(names) == self.classes:
            return Candidates(self.text.cpu(), None, strength)
        return Candidates(self.encoder.encode_classes(names, self.templates), None, strength)

    def strength_for(self, names: Sequence[str]) -> float:
        """Return the mask strength for candidates: another where all of them had training images."""
        trained = self.strength.trained_strength
        if trained is None or not set(names) <= set(self.learned):
            return self.strength.strength
        return trained

    @torch.no_grad()
    def logits(
        self, image_features: Tensor, candidates: Candidates, *, batch_size: int = 256
    ) -> Tensor:
        """Return `(N, C)` on the CPU of features `(N, D)`; the head sees these candidates."""
        device = self.text.device
        text, scale = candidates.text.to(device), self.scale()
        parts = []
        for images in image_features.split(batch_size):
            images = images.to(device)
            if self.head is None:
                parts.append(scale * images @ text.T)
            else:
                parts.append(self.head(images, text, scale, candidates.strength).logits)
        logits = torch.cat(parts).float().cpu()
        return logits if candidates.biases is None else logits + candidates.biases.float()

    def set_vectors(self, vectors: Tensor, biases: Tensor) -> None:
        """Replace the vectors of the classes, `(K, D)`, scale included, and their biases `(K,)`."""
        assert self.vectors is not None and self.biases is not None
        with torch.no_grad():
            self.vectors.copy_(vectors)
            self.biases.copy_(biases)

    # -- weights -----------------------------------------------------------------------------------

    def tuned(self) -> dict[str, Tensor]:
        """Return copies on the CPU of all that can differ from the pretrained model."""
        state = self.state_dict()
        return {name: state[name].detach().cpu().clone() for name in self.start}

    def load_tuned(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights back that `tuned` returned."""
        state = self.state_dict()
        with torch.no_grad():
            for name, value in weights.items():
                state[name].copy_(value)

    @contextlib.contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """While the block runs, the model has other weights."""
        own = self.tuned()
        self.load_tuned(weights)
        try:
            yield
        finally:
            self.load_tuned(own)
