"""RAda: the head on frozen encoders, with this library's defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.head import RAdaHead, shortlist_size
from rada.methods.base import AdaptedModel, Facts, Method, Run
from rada.methods.registry import register_method
from rada.methods.terms import Terms, masked_terms
from rada.training.feature_loop import Losses, Recipe, class_logits_loss, default_subset
from rada.training.strength import Strength

__all__ = ["SOURCE", "EFTConfig", "HeadModel", "RAda", "train_head"]

_MOST_PAIRS = 1024
"""Images times classes of a step up to which threads of torch are better shared by several heads
(`benchmarks/train_time.py --side-by-side`)."""

SOURCE = "One Last Attention for Your Vision-Language Model, ICCV 2025, arXiv 2507.15480"


@dataclass(frozen=True)
class EFTConfig(Config):
    """Training of the head with frozen encoders (efficient fine-tuning).

    The paper publishes no hyper-parameters; these defaults are ours, chosen by few-shot validation
    (`benchmarks/eft_defaults.py`).

    Attributes:
        epochs: Passes over the training images.
        min_steps: Least number of steps; few images get more epochs until there are so many.
        batch_size: Images a step.
        learning_rate: Peak learning rate of AdamW.
        weight_decay: Decoupled weight decay of AdamW.
        warmup: Part of all steps during which the learning rate rises linearly, in [0, 1); a cosine
            to zero follows.
        alpha: Weight of the smoothness term `mean_b max |M - 1|` (paper, the regulariser).
        num_heads: Attention heads; must divide the width of the features.
        temperature: Temperature of the joint softmax, above 0.
        views: Cached random views of each training image; 1 means the plain image alone.
        classes_per_step: Classes drawn for a step (they hold the batch's labels as far as they go; images
            of other classes are skipped in this step); None for a half of them, at least 2 and at
            most 64, 0 for all of them.
        shortlist: How many classes of each image, those with the highest zero-shot logits, get a mask,
            with 64 landmarks that stand for all classes; for all others the mask is one and the logit
            zero-shot. "auto" for all up to 256 classes and 64 of more; None for all, as in the paper (a
            shortlist is ours).
        hard_classes: Draw a step's classes from the shortlists of its images (of `shortlist` or else 64
            classes) instead of from all.
        strength: Mask strength at inference in [0, 1], or "auto" to choose it on the training shots
            by cross-validation (`rada.training.strength`).
        strength_folds: Folds of that cross-validation, at least 2.

    Example:
        >>> EFTConfig(epochs=3).to_dict()["epochs"]
        3
    """

    epochs: int = 10
    min_steps: int = 300
    batch_size: int = 32
    learning_rate: float = 3.5e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    alpha: float = 1.0
    num_heads: int = 8
    temperature: float = 1.0
    views: int = 1
    classes_per_step: int | None = None
    shortlist: int | Literal["auto"] | None = None
    hard_classes: bool = False
    strength: float | Literal["auto"] = "auto"
    strength_folds: int = 2

    def validate(self) -> None:
        """Check that every field is in its range."""
        for name in ("epochs", "batch_size", "num_heads", "views"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        self.require(self.min_steps >= 0, "min_steps", "0 or more")
        self.require(self.learning_rate > 0, "learning_rate", "above 0")
        self.require(self.weight_decay >= 0, "weight_decay", "0 or more")
        self.require(0 <= self.warmup < 1, "warmup", "in [0, 1)")
        self.require(self.alpha >= 0, "alpha", "0 or more")
        self.require(self.temperature > 0, "temperature", "above 0")
        subset = self.classes_per_step
        self.require(
            subset is None or subset == 0 or subset > 1, "classes_per_step", "None, 0 or at least 2"
        )
        listed = self.shortlist
        self.require(
            listed is None or listed == "auto" or int(listed) >= 2,
            "shortlist",
            "None, 'auto' or at least 2",
        )
        self.require(
            self.strength == "auto" or 0 <= float(self.strength) <= 1,
            "strength",
            "'auto' or in [0, 1]",
        )
        self.require(self.strength_folds >= 2, "strength_folds", "at least 2")

    def steps(self, images: int) -> int:
        """Return the steps of a run on so many images."""
        per_epoch = -(-images // self.batch_size)
        return max(self.epochs, -(-self.min_steps // per_epoch)) * per_epoch

    def recipe(self) -> Recipe:
        """Return how to optimise; `steps` says for how long."""
        return Recipe(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer="adamw",
            weight_decay=self.weight_decay,
            schedule="steps",
            warmup=self.warmup,
        )

    def hard(self, classes: int) -> int:
        """Return of how many likely classes of each image a step draws its own; 0 for all."""
        if not self.hard_classes:
            return 0
        return shortlist_size(self.shortlist, classes) or shortlist_size(64, classes) or classes

    def subset(self, classes: int) -> int:
        """Return how many of the classes a step draws, 0 for all."""
        if self.classes_per_step is None:
            return default_subset(classes)
        return self.classes_per_step


class HeadModel(AdaptedModel):
    """A RAda head on features as they are.

    Attributes:
        head: The head.
        alpha: Weight of the smoothness term in the loss.
        image_adapter: What image features go through before the head; None for nothing.
        text_adapter: The same for class features.
        shortlist: As in `EFTConfig`.
    """

    by_class_features = True
    head: RAdaHead
    image_adapter: nn.Module | None
    text_adapter: nn.Module | None

    def __init__(self, method: Method, facts: Facts, config: Any, *_: object) -> None:
        super().__init__(method, facts, config)
        heads, temperature = getattr(config, "num_heads", 8), getattr(config, "temperature", 1.0)
        self.head = RAdaHead(facts.dim, heads, temperature)
        self.alpha = float(getattr(config, "alpha", 0.0))
        self.image_adapter = self.text_adapter = None
        self.shortlist: int | str | None = getattr(config, "shortlist", None)

    def listed(self, classes: int) -> int | None:
        """Return how many of so many candidates get a mask of each image, None for all.

        Callers pass a shape, not a length: an export with a free number of classes has no length.
        """
        return shortlist_size(self.shortlist, classes)

    def adapted_images(self, images: Tensor) -> Tensor:
        """Return what the head gets of image features `(B, D)`."""
        return images if self.image_adapter is None else self.image_adapter(images)

    def adapted_text(self, text: Tensor) -> Tensor:
        """Return what the head gets of class features `(K, D)`."""
        return text if self.text_adapter is None else self.text_adapter(text)

    def head_logits(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the logits of the head alone; the head sees exactly these classes."""
        text = self.adapted_text(classes.text_features)
        logits: Tensor = self.head(
            self.adapted_images(images),
            text,
            self.facts.scale,
            shortlist=self.listed(text.shape[0]),
        ).logits
        return logits

    def terms(self, images: Tensor, classes: ClassSet) -> Terms:
        """Return the entries of the rational matrix, each times its mask."""
        text = self.adapted_text(classes.text_features)
        images, scale = self.adapted_images(images), self.facts.scale
        return masked_terms(self.head, images, text, scale, self.listed(text.shape[0]))

    def with_head(
        self, images: Tensor, head_logits: Tensor, classes: ClassSet, strength: float = 1.0
    ) -> Tensor:
        """Return the model's logits, given those of its head at a strength, as it is or adapted further.

        Args:
            images: Features `(N, D)`.
            head_logits: `(N, K)`.
            classes: The candidates.
            strength: At which the head answered.
        """
        return head_logits

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the model's logits."""
        return self.with_head(images, self.head_logits(images, classes), classes)

    def loss(self, images: Tensor, labels: Tensor, classes: ClassSet) -> Losses:
        """Return cross-entropy plus `alpha * mean_b max |M - 1|`, at full strength."""
        text = self.adapted_text(classes.text_features)
        output = self.head(
            self.adapted_images(images),
            text,
            self.facts.scale,
            shortlist=self.listed(text.shape[0]),
        )
        deviation = output.max_deviation.mean()
        found = class_logits_loss(output.logits, labels, smoothness=self.alpha * deviation)
        return found | {"max_deviation": deviation.detach()}


@dataclass(frozen=True)
class RAda(Method):
    """Starts as zero-shot; the strength is chosen on the shots."""

    config: ClassVar[type[Config]] = EFTConfig
    model = HeadModel

    def train(
        self, model: AdaptedModel, data: Features, config: EFTConfig, run: Run
    ) -> AdaptedModel:
        """Train the model, then choose its strength."""
        steps = config.steps(len(data))  # the folds stand for this model, so they learn for as many

        def learned(model: AdaptedModel, part: Features, path: Path | None) -> AdaptedModel:
            model = self.learn(
                model,
                part,
                config.recipe(),
                run,
                classes_per_step=config.subset(len(part.classes)),
                steps=steps,
                state_path=path,
                hard_classes=config.hard(len(part.classes)),
            )
            return self.beside_head(model, part, config)

        def fit_part(part: Features, path: Path | None) -> AdaptedModel:
            fold = self.started(part, config, run)
            return learned(fold, part, path)

        def final() -> AdaptedModel:
            return learned(model, data, None)

        if config.strength == "auto":
            workers = self._workers(data, config)
            self.choose_strength(model, data, run, fit_part, config.strength_folds, final, workers)
        else:
            final()
            model.strength = Strength(float(config.strength), classes=model.strength.classes)
        return model

    def _workers(self, data: Features, config: EFTConfig) -> int:
        """Return how many heads learn side by side: all of them, on a CPU, where the steps are small."""
        classes = config.subset(len(data.classes)) or len(data.classes)
        pairs = min(config.batch_size, len(data)) * min(classes, len(data.classes))
        small = data.image_features.device.type == "cpu" and pairs <= _MOST_PAIRS
        alone = small and self.cost == "features"  # an encoder in the loop is one for all
        return min(torch.get_num_threads(), 1 + config.strength_folds) if alone else 1

    def beside_head(self, model: AdaptedModel, data: Features, config: Any) -> AdaptedModel:
        """Learn what a variant has beside the head; nothing here."""
        return model


def train_head(
    image_features: Tensor,
    labels: Tensor,
    text_features: Tensor,
    scale: float,
    config: EFTConfig | None = None,
    seed: int = 0,
    *,
    classes: Sequence[str] | None = None,
    state_dir: str | Path | None = None,
    progress: bool | None = None,
) -> HeadModel:
    """Train a RAda head on features of frozen encoders.

    Minimises `cross_entropy(logits, y) + alpha * mean_b max_{k,d} |M - 1|` ("One Last Attention for
    Your Vision-Language Model", ICCV 2025, EFT) with AdamW, a linear warm-up and a cosine decay, and
    chooses the mask strength on the same images by cross-validation over classes. The same as
    `get_method("rada").fit` with `Features`.

    Args:
        image_features: Unit-norm features `(N, D)`, or `(N, V, D)` with V views of each image, of
            which a step takes one at random.
        labels: Class indices `(N,)` in `[0, K)`.
        text_features: Unit-norm class features `(K, D)`.
        scale: The exponentiated logit scale.
        config: Hyper-parameters; the defaults of `EFTConfig` when None.
        seed: Seed of the initialisation, the order of images, classes and views. The same seed,
            machine and thread count give the same weights, bit for bit.
        classes: K names, by which the model knows its classes again; None for "0", "1", ...
        state_dir: Folder for the states of training. The same call goes on from there, bit for bit; a
            state of another run is replaced.
        progress: Show a bar; None shows it on a terminal only.

    Returns:
        The trained model with its strength and its record.

    Raises:
        FeatureError: If features or labels cannot be used (shape, NaN, zero rows, label range, one
            class only).
        CheckpointError: If the state in `state_dir` is damaged.
        TrainingDivergedError: If a loss or a weight is not finite.
        TrainingInterrupted: On Ctrl-C.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> text = normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
        >>> config = EFTConfig(epochs=2, min_steps=0, strength=1.0)
        >>> model = train_head(text, torch.arange(3), text, 20.0, config, progress=False)
        >>> model.logits(text, ClassSet(("0", "1", "2"), text)).argmax(1).tolist()
        [0, 1, 2]
    """
    names = tuple(map(str, range(len(text_features)))) if classes is None else tuple(classes)
    data = Features(image_features, labels, names, text_features=text_features, scale=scale)
    folder = None if state_dir is None else Path(state_dir)
    model = RADA.fit(data, config, Run(seed=seed, state_dir=folder, progress=progress))
    assert isinstance(model, HeadModel)
    return model


RADA = register_method(RAda("rada", "RAda", SOURCE, trains="the head"))
