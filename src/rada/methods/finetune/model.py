"""The model of a method that trains an encoder: the encoder, and what the method added to it."""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from rada.core.processes import process_count
from rada.encoders.tokens import Tokens
from rada.features import ClassSet, Features, extract_features
from rada.head import RAdaHead
from rada.methods.base import AdaptedModel, Facts, Method
from rada.methods.terms import Terms, masked_terms
from rada.training.batches import Batch
from rada.training.encoder_config import EncoderConfig
from rada.training.feature_loop import Losses
from rada.training.wise_ft import interpolate

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["EncoderTraining", "TunedModel"]

_ENCODER = "encoder_module."


@dataclass(frozen=True)
class EncoderTraining(Method, ABC):
    """What a model asks of the method that trains it: which parts it has, and their loss.

    Attributes:
        has_head: Whether it has a RAda head; its configuration then has `strength` and `strength_folds`.
        has_class_weights: Whether it learns one vector and one bias for each class instead of asking
            the text encoder.
        learns_scale: Whether the logit scale learns.
        shards: Whether the model can learn in shards (FSDP): its losses read no weights of the layers.
    """

    shards: ClassVar[bool] = False
    has_head: bool = False
    has_class_weights: bool = False
    learns_scale: bool = False

    @abstractmethod
    def loss(self, model: TunedModel, batch: Batch) -> Losses:
        """Return `loss` (this batch's share of the step's mean) and sums to report."""

    @abstractmethod
    def penalty(self, model: TunedModel) -> Tensor | None:
        """Return what is added to the loss of a step whatever its images, or None."""


class TunedModel(AdaptedModel):
    """An encoder of its own, and a head or weights of the classes; it starts as zero-shot.

    Args:
        method: The method.
        facts: What it knows of the data.
        config: The method's configuration.
        encoder: The encoder; its weights are trained in place.
        text: Zero-shot class features `(K, D)`.

    Attributes:
        encoder_module: The encoder's module.
        class_weights: `(K, D)`, one learned vector for each class (class features times the scale),
            or None.
        class_biases: `(K,)`, one learned bias for each of these, zero at the start; None without.
        pretrained: The weights before training by name, on the CPU, with the head whose mask is one;
            empty where `keep_pretrained` was not called.
        last: The weights after training, before they were averaged with the pretrained ones.
    """

    method: EncoderTraining
    config: EncoderConfig
    encoder: DualEncoder
    text: Tensor

    def __init__(
        self,
        method: EncoderTraining,
        facts: Facts,
        config: EncoderConfig,
        encoder: DualEncoder,
        text: Tensor,
    ) -> None:
        super().__init__(method, facts, config, encoder)
        self.encoder_module = encoder.model
        self.register_buffer("text", text.to(encoder.device), persistent=False)
        if method.has_head:
            heads, temperature = (
                getattr(config, "num_heads", 8),
                getattr(config, "temperature", 1.0),
            )
            self.head = RAdaHead(encoder.dim, heads, temperature)
        self.class_weights: nn.Parameter | None = None
        self.class_biases: nn.Parameter | None = None
        if method.has_class_weights:
            self.class_weights = nn.Parameter(self.text * encoder.scale)
            self.class_biases = nn.Parameter(torch.zeros_like(self.text[:, 0]))
        self._tokens: dict[int, Tokens] = {}
        self._tuned_text: tuple[object, Tensor] | None = None
        self._choose_parameters()
        self.pretrained: dict[str, Tensor] = {}
        self.last: dict[str, Tensor] | None = None

    def _choose_parameters(self) -> None:
        """Turn on the gradients of what learns."""
        self.encoder.freeze()
        for part in self.config.parts:
            self.encoder.unfreeze(part)
        for parameter in self.encoder.scale_parameters():
            parameter.requires_grad_(self.method.learns_scale)

    # -- what the loop asks of it ------------------------------------------------------------------

    @property
    def changing(self) -> Collection[str]:
        """Names of the weights and buffers that training can change."""
        return self.pretrained.keys()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups: the head at its own rate, all else at the encoder's."""
        head = set() if self.head is None else {id(p) for p in self.head.parameters()}
        learning = [p for p in self.parameters() if p.requires_grad]
        rate = self.config.learning_rate
        rates = {False: rate, True: getattr(self.config, "head_learning_rate", rate)}
        groups = [
            {"params": [p for p in learning if (id(p) in head) is mine], "lr": rates[mine]}
            for mine in (False, True)
        ]
        return [group for group in groups if group["params"]]

    def training_mode(self) -> None:
        """Set the modes of training: the encoder's own only where the configuration says so."""
        self.train()
        self.encoder_module.train(self.config.train_mode)

    def forward(self, images: Tensor | Batch, classes: ClassSet | None = None) -> Any:
        """Return logits `(B, K)` of features, or the losses of this process's share of a step."""
        if not isinstance(images, Batch):
            assert classes is not None
            return super().forward(images, classes)
        return self._losses(images)

    def _losses(self, batch: Batch) -> Losses:
        found = self.method.loss(self, batch)
        penalty = self.method.penalty(self)
        if penalty is not None:  # once a step, however many processes and parts there are
            share = penalty / (process_count() * batch.parts)
            found = found | {"loss": found["loss"] + share, "penalty": share.detach()}
        return found

    # -- what losses are made of -------------------------------------------------------------------

    def image_features(self, pixels: Tensor) -> Tensor:
        """Return `(n, D)`, with gradients if the image encoder learns."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "image" in self.config.parts):
            return self.encoder.forward_images(pixels)

    def class_features(self, classes: Tensor | None, template: int = 0) -> Tensor:
        """Return `(C, D)` of the classes at `classes`, so that logits are scale times cosine."""
        if self.class_weights is not None:
            weights = self.class_weights / self.scale().detach()
            return weights if classes is None else weights[classes]
        if "text" not in self.config.parts:
            return self.text if classes is None else self.text[classes]
        tokens = self._class_tokens(template)
        if classes is not None:
            tokens = {name: rows[classes.to(rows.device)] for name, rows in tokens.items()}
        return self.encoder.forward_texts_chunked(tokens, chunk_size=self.config.text_chunk)

    def class_biases_of(self, classes: Tensor | None) -> Tensor | None:
        """Return `(C,)`, what is added to the logits of the classes at `classes`; None for nothing."""
        if self.class_biases is None or classes is None:
            return self.class_biases
        return self.class_biases[classes]

    def _class_tokens(self, template: int) -> Tokens:
        if template not in self._tokens:
            words = self.facts.templates[template]
            prompts = [words.format(name) for name in self.facts.classes]
            self._tokens[template] = self.encoder.tokenize(prompts)
        return self._tokens[template]

    def caption_features(self, captions: Sequence[str]) -> Tensor:
        """Return `(n, D)`, with gradients if the text encoder learns."""
        tokens = self.encoder.tokenize(captions)
        with torch.set_grad_enabled(torch.is_grad_enabled() and "text" in self.config.parts):
            return self.encoder.forward_texts_chunked(tokens, chunk_size=self.config.text_chunk)

    def scale(self) -> Tensor:
        """Return the scale, with gradients if it learns."""
        scale = self.encoder.forward_scale()
        return scale if self.method.learns_scale else scale.detach()

    # -- predictions -------------------------------------------------------------------------------

    def features_of(self, data: Features) -> Tensor:
        """Return the tuned encoder's features `(N, D)` of the images behind some data."""
        found = extract_features(
            self.encoder, data.labelled_images(), cache=False, workers=0, progress=False
        )
        return found.plain()

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Return the class set with the tuned encoder's class features, or the learned ones.

        Raises:
            UnknownClassError: If one vector was learned for each class and a name is none of them.
        """
        if self.class_weights is None:
            return self._encoded(classes)
        return dataclasses.replace(classes, text_features=self.class_features(self._rows(classes)))

    def _rows(self, classes: ClassSet) -> Tensor:
        """Return the rows of candidates among the training classes."""
        self.refuse_unknown(classes.names)
        rows = [row for row in classes.rows_among(self.facts.classes) if row is not None]
        return torch.tensor(rows, device=self.text.device)

    @property
    def embeds_classes(self) -> bool:
        """Whether the text encoder learned, and no class weights did."""
        return self.class_weights is None and "text" in self.config.parts

    def embedded(self, names: tuple[str, ...], templates: tuple[str, ...]) -> Tensor | None:
        """Return the tuned text encoder's features `(K, D)` under the model's own templates."""
        known = self.embeds_classes and templates == self.facts.templates
        return self._texts(names) if known else None

    def _encoded(self, classes: ClassSet) -> ClassSet:
        """Return the class set with the tuned text encoder's features."""
        if "text" not in self.config.parts:
            return classes
        text = self._texts(classes.names)
        return dataclasses.replace(classes, text_features=text, templates=self.facts.templates)

    @torch.no_grad()
    def _texts(self, names: tuple[str, ...]) -> Tensor:
        """Return the features of names, encoded once for many calls."""
        key, known = (self.encoder.version, names), self._tuned_text
        if known is None or known[0] != key:
            known = self._tuned_text = (key, self._embed(names))
        return known[1]

    def _embed(self, names: tuple[str, ...]) -> Tensor:
        """Embed names."""
        return self.encoder.encode_classes(names, self.facts.templates)

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return logits of features of the tuned encoder, on their device."""
        if self.head is None:
            logits = self._cosines(images, classes)
            if self.class_biases is not None:
                logits = logits + self.class_biases[self._rows(classes)].to(logits)
            return logits
        here = images.to(self.text.device)
        found: Tensor = self.head(here, classes.text_features.to(here), self.scale()).logits
        return found.float().to(images.device)

    def terms(self, images: Tensor, classes: ClassSet) -> Terms:
        """Return the entries of the rational matrix times their mask, where there is a head."""
        if self.head is None:
            return super().terms(images, classes)
        here = images.to(self.text.device)
        text = classes.text_features.to(here)
        return masked_terms(self.head, here, text, self.scale()).to(images)

    def zero_shot_logits(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return logits `(N, K)` of the tuned encoder alone."""
        return self._cosines(images, self._encoded(classes))

    def _cosines(self, images: Tensor, classes: ClassSet) -> Tensor:
        here = images.to(self.text.device)
        logits = self.scale() * here @ classes.text_features.to(here).T
        return logits.float().to(images.device)

    def set_class_weights(self, weights: Tensor, biases: Tensor) -> None:
        """Replace the vectors of the classes, `(K, D)`, scale included, and their biases `(K,)`."""
        assert self.class_weights is not None and self.class_biases is not None
        with torch.no_grad():
            self.class_weights.copy_(weights)
            self.class_biases.copy_(biases)

    # -- weights -----------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Tensor]:
        """Return the weights to save beside the encoder."""
        state = self.state_dict()
        return {name: value for name, value in state.items() if not name.startswith(_ENCODER)}

    def keep_pretrained(self) -> None:
        """Keep copies of all that training can change; a model that only predicts needs none."""
        learning = {name for name, p in self.named_parameters() if p.requires_grad}
        self.pretrained = {
            name: value.detach().cpu().clone()
            for name, value in self.state_dict().items()
            if not name.startswith(_ENCODER) or self.config.train_mode or name in learning
        }

    def tuned(self) -> dict[str, Tensor]:
        """Return copies on the CPU of all that can differ from the pretrained model."""
        state = self.state_dict()
        return {name: state[name].detach().cpu().clone() for name in self.pretrained}

    def load_tuned(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights back that `tuned` returned."""
        state = self.state_dict()
        with torch.no_grad():
            for name, value in weights.items():
                state[name].copy_(value)

    def keep_average(self, alpha: float) -> None:
        """Average the weights with the pretrained ones (WiSE-FT); both ends stay at hand.

        Args:
            alpha: Weight of the tuned ones; 1 keeps them as they are.
        """
        self.last = self.tuned()
        self.load_tuned(interpolate(self.pretrained, self.last, alpha))
        self.facts = dataclasses.replace(self.facts, scale=self.encoder.scale)

    @contextlib.contextmanager
    def averaged(self, alpha: float) -> Iterator[None]:
        """While the block runs, the model is at another point of the line to the pretrained one."""
        own = self.tuned()
        self.load_tuned(interpolate(self.pretrained, self.last or own, alpha))
        try:
            yield
        finally:
            self.load_tuned(own)
