"""PromptAlign: deep prompts that adapt to each image, its tokens pulled to those of the training images."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rada.core.errors import ConfigError
from rada.core.progress import track
from rada.encoders.inserts import layer_inputs
from rada.encoders.protocol import evaluating
from rada.features import ClassSet
from rada.methods import AdaptedModel, list_methods
from rada.methods.finetune.inserted import STATISTIC_LAYERS, InsertMethod, PromptedModel
from rada.test_time.base import PixelsOf, TestTimeMethod, ViewPredictor, check_views
from rada.test_time.config import ViewConfig
from rada.test_time.registry import register_test_time_method
from rada.test_time.selection import entropy, keep_confident, mean_log_probability, view_entropies

__all__ = ["PromptAlign", "PromptAlignConfig", "aligned_methods", "distance_of_tokens"]


@dataclass(frozen=True)
class PromptAlignConfig(ViewConfig):
    """Configuration of PromptAlign, with the published values.

    Attributes:
        steps: AdamW steps on an image.
        learning_rate: Its rate: 5e-4 was published for data sets of their own, 0.04 for variants of
            ImageNet.
        weight_decay: Its decay.
        weight: Weight of the distance of the tokens; 0 is TPT from deep prompts ("MaPLe + TPT").
        layers: First layers of the image encoder whose tokens are compared, at most 3.
    """

    steps: int = 1
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    weight: float = 100.0
    layers: int = STATISTIC_LAYERS

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.steps >= 1, "steps", "a positive integer")
        self.require(self.learning_rate > 0, "learning_rate", "above 0")
        for name in ("weight_decay", "weight"):
            self.require(getattr(self, name) >= 0, name, "0 or more")
        most = STATISTIC_LAYERS
        self.require(1 <= self.layers <= most, "layers", f"an integer from 1 to {most}")


def aligned_methods() -> tuple[str, ...]:
    """Return the names of the methods from whose prompts PromptAlign can go on.

    Example:
        >>> aligned_methods()[:2]
        ('maple', 'promptsrc')
    """
    return tuple(
        method.name
        for method in list_methods()
        if isinstance(method, InsertMethod)
        and issubclass(method.tuned_model, PromptedModel)
        and not method.has_head
    )


def distance_of_tokens(seen: list[Tensor], means: Tensor, variances: Tensor) -> Tensor:
    """Return how far tokens are from those of the training images.

    Half the mean absolute differences of means and of variances over the views, averaged over layers
    (Hassan et al., NeurIPS 2023, equations 4 to 6).

    Args:
        seen: For each layer its tokens `(m, L, W)` of m views.
        means: Those of the training images, `(l, L, W)`, l at least the number of layers.
        variances: Likewise.

    Example:
        >>> tokens = torch.tensor([[[1.0]], [[3.0]]])  # of mean 2 and variance 1
        >>> float(distance_of_tokens([tokens], torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)))
        1.5
    """
    parts = []
    for tokens, mean, variance in zip(seen, means, variances, strict=False):
        own = tokens.mean(0)
        spread = (tokens - own).square().mean(0)
        parts.append(((own - mean).abs().mean() + (spread - variance).abs().mean()) / 2)
    return torch.stack(parts).mean()


@dataclass(frozen=True)
class PromptAlign(TestTimeMethod):
    """Learns the tokens in the layers of both encoders, anew for every image, from its confident views."""

    config: ClassVar[type[ViewConfig]] = PromptAlignConfig
    reads_pixels: ClassVar[bool] = True

    def check(self, model: AdaptedModel) -> None:
        """Check that the model has deep prompts and nothing on top of them."""
        if not isinstance(model, PromptedModel) or model.head is not None:
            raise ConfigError(
                f"{self.title} goes on from prompts in the layers of both encoders "
                f"({', '.join(aligned_methods())}), not from {model.method.title}: take one of these, or "
                "another test-time method"
            )
        super().check(model)

    def predictor(
        self,
        model: AdaptedModel,
        classes: ClassSet,
        config: PromptAlignConfig,
        *,
        batch_size: int | None = None,
        progress: bool | None = False,
    ) -> ViewPredictor:
        """Return what adapts to one image at a time, and reads the pixels of its confident views."""
        assert isinstance(model, PromptedModel)  # `check` has seen to it
        if model.token_means is None and config.weight > 0:
            raise ConfigError(
                f"the model of {model.method.title} does not hold the statistics of its training images "
                f"that {self.title} needs: fit it again, or leave them out (weight=0)"
            )
        return _Aligner(model, classes, config, progress).predict


@dataclass(frozen=True)
class _Aligner:
    """What adapts deep prompts to each image.

    Attributes:
        model: The model to start from.
        classes: The candidates.
        config: How to adapt.
        progress: Show a bar.
    """

    model: PromptedModel
    classes: ClassSet
    config: PromptAlignConfig
    progress: bool | None

    def predict(self, view_features: Any, pixels: PixelsOf) -> Tensor:
        """Return logits `(N, K)` of views `(N, V, D)`, one image after the other."""
        model, config = self.model, self.config
        views = check_views(view_features, model.encoder.dim)
        count = config.kept(views.shape[1])
        answers = []
        for number, image in enumerate(track(views, "PromptAlign", enabled=self.progress)):
            before = model.logits(image, self.classes)
            kept = keep_confident(view_entropies(before)[None], count)[0].tolist()
            # The original is predicted, whether or not it is confident.
            answers.append(self._answer(pixels(number, [*kept, 0])))
        return torch.stack(answers)

    def _answer(self, pixels: Tensor) -> Tensor:
        """Return logits `(K,)` of the last of some views, the others being the confident ones."""
        config, own = self.config, pixels[:-1]
        with evaluating(self.model), self._copied() as parameters:
            optimizer = torch.optim.AdamW(
                parameters, lr=config.learning_rate, weight_decay=config.weight_decay
            )
            for _ in range(config.steps):
                optimizer.zero_grad()
                self._loss(own).backward(inputs=parameters)
                optimizer.step()
            with torch.no_grad():
                found = self._logits(self.model.encoder.forward_images(pixels[-1:]))
        return found[0].float().cpu()

    @contextmanager
    def _copied(self) -> Iterator[list[Tensor]]:
        """While the block runs, the model has a copy of its prompts, whose parameters are yielded."""
        model, trained = self.model, self.model.inserts
        model.inserts = model.encoder.inserts = copy.deepcopy(trained).requires_grad_(True)
        try:
            yield list(model.inserts.parameters())
        finally:
            model.inserts = model.encoder.inserts = trained

    def _loss(self, pixels: Tensor) -> Tensor:
        """Return the entropy of the mean prediction plus the weighted distance of the tokens."""
        model, config = self.model, self.config
        with layer_inputs(model.encoder.image_layers()[: config.layers]) as seen:
            images = model.encoder.forward_images(pixels)
        loss = entropy(mean_log_probability(self._logits(images)))
        if config.weight == 0:
            return loss
        assert model.token_means is not None and model.token_variances is not None
        means, variances = (rows.to(images) for rows in (model.token_means, model.token_variances))
        tokens = [runs[0].to(images) for runs in seen]
        return loss + config.weight * distance_of_tokens(tokens, means, variances)

    def _logits(self, images: Tensor) -> Tensor:
        """Return the model's logits `(m, K)` of features, by the prompts as they are now."""
        model, classes = self.model, self.classes
        prepared = dataclasses.replace(classes, text_features=model.prompted(classes.names))
        share = model.strength.for_classes(classes.names)
        mixed = model.mixed(images, classes, prepared, share)
        return mixed / model.strength.temperature_for(classes.names)


register_test_time_method(
    PromptAlign(
        "prompt_align",
        "PromptAlign",
        "Hassan et al., Align Your Prompts: Test-Time Prompting with Distribution Alignment for Zero-Shot "
        "Generalization, NeurIPS 2023; statistics are those of the prompts' own training images",
        needs=frozenset({"token_embeddings", "deep_text_prompts", "deep_image_prompts"}),
    )
)
