"""Efficient fine-tuning (EFT): train the head on features of frozen encoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rada.core.config import Config, EFTConfig
from rada.core.errors import CheckpointError, FeatureError, TrainingDivergedError
from rada.core.progress import progress_bar
from rada.core.values import check_scale, check_seed
from rada.features import check_features
from rada.head import HeadOutput, RAdaHead
from rada.training.schedule import warmup_cosine
from rada.training.state import (
    TrainingState,
    fingerprint_tensors,
    optimizer_moments,
    restore_moments,
)
from rada.training.strength import StrengthChoice, choose_strength

__all__ = ["HeadTrainer", "TrainedHead", "TrainingInterrupted", "train_head"]

_SAME = 1e-5  # unit-norm class features that differ by less, in their product, are of one class


@dataclass
class TrainedHead:
    """What `train_head` returns: the head, the strength to use it with, and how it came about.

    Calling it applies the head with the strength that fits the candidates.

    Attributes:
        head: The trained head, in evaluation mode.
        strength: Mask strength at inference, where some candidates are new to the head.
        config: The configuration of the run: an `EFTConfig`, or that of the fine-tuning.
        seed: The seed of the run.
        history: One entry an epoch: `loss`, `cross_entropy`, `max_deviation`, `accuracy` (on the
            training images as they were seen) and `learning_rate`.
        strength_choice: How the strength was chosen; None if it was given.
        fingerprint: Hash of the features, labels, scale, configuration and seed.
        trained_strength: Mask strength where the head was trained on every candidate; None for
            `strength` there too.
        class_features: `(C, D)`, the features of the classes that had training images, by which the
            candidates are told apart; None where they are not known, as after loading.
        steps: Steps that were made: `min_steps` may ask for more than `epochs` does. 0 where that is
            not known, as after loading.
    """

    head: RAdaHead
    strength: float
    config: Config
    seed: int
    history: list[dict[str, float]] = field(default_factory=list)
    strength_choice: StrengthChoice | None = None
    fingerprint: str = ""
    trained_strength: float | None = None
    class_features: Tensor | None = None
    steps: int = 0

    def strength_for(self, text_features: Tensor) -> float:
        """Return the mask strength for candidates `(K, D)`."""
        known = self.class_features
        if (
            self.trained_strength is None
            or known is None
            or known.shape[1] != text_features.shape[1]
        ):
            return self.strength
        nearest = (text_features @ known.to(text_features).T).amax(1)
        return self.trained_strength if bool((nearest > 1 - _SAME).all()) else self.strength

    @torch.no_grad()
    def __call__(
        self,
        image_features: Tensor,
        text_features: Tensor,
        scale: float | Tensor,
        strength: float | None = None,
    ) -> HeadOutput:
        """Apply the head to `(B, D)` and `(K, D)` features, without gradients.

        Strength None is `strength_for(text_features)`.
        """
        chosen = self.strength_for(text_features) if strength is None else strength
        output: HeadOutput = self.head(image_features, text_features, scale, chosen)
        return output


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training; `trained` holds the head as it was after the last whole epoch."""

    def __init__(self, trained: TrainedHead) -> None:
        super().__init__(f"interrupted after {len(trained.history)} epochs")
        self.trained = trained


def train_head(
    image_features: Tensor,
    labels: Tensor,
    text_features: Tensor,
    scale: float,
    config: EFTConfig | None = None,
    seed: int = 0,
    *,
    checkpoint_dir: str | Path | None = None,
    progress: bool | None = None,
) -> TrainedHead:
    """Train a RAda head on features of frozen encoders.

    Minimises `cross_entropy(logits, y) + alpha * mean_b max_{k,d} |M - 1|` ("One Last Attention for
    Your Vision-Language Model", ICCV 2025, EFT) with AdamW, a linear warm-up and a cosine decay, and
    chooses the mask strength on the same images by cross-validation over classes.

    Args:
        image_features: Unit-norm features `(N, D)`, or `(N, V, D)` with V views of each image, of
            which a step takes one at random.
        labels: Class indices `(N,)` in `[0, K)`.
        text_features: Unit-norm class features `(K, D)`.
        scale: The exponentiated logit scale.
        config: Hyper-parameters; the defaults of `EFTConfig` when None.
        seed: Seed of the initialisation, the order of images, classes and views. The same seed,
            machine and thread count give the same weights, bit for bit.
        checkpoint_dir: Folder for the state after an epoch (not every one where epochs are so short
            that writing would take its share of the time). The same call goes on from there, bit for
            bit; a state of another run is ignored and replaced.
        progress: Show a bar; None shows it on a terminal only.

    Returns:
        The trained head with its strength and its history.

    Raises:
        FeatureError: If features or labels cannot be used (shape, NaN, zero rows, label range, one
            class only).
        CheckpointError: If the state in `checkpoint_dir` is damaged.
        TrainingDivergedError: If the loss or the logits become NaN or infinite.
        TrainingInterrupted: On Ctrl-C, with the head so far.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> generator = torch.Generator().manual_seed(0)
        >>> text = normalize(torch.randn(4, 16, generator=generator), dim=-1)
        >>> labels = torch.arange(4).repeat(4)
        >>> images = normalize(text[labels] + torch.randn(16, 16, generator=generator) / 4, dim=-1)
        >>> trained = train_head(images, labels, text, 20.0, EFTConfig(epochs=2), progress=False)
        >>> trained(images, text, 20.0).logits.shape
        torch.Size([16, 4])
    """
    config = config or EFTConfig()
    checked = check_features(image_features, text_features, labels)
    if checked.text_features is None or checked.labels is None:
        raise FeatureError("training needs text_features and labels")
    trainer = HeadTrainer(
        checked.image_features, checked.labels, checked.text_features, scale, config, seed
    )
    folder = None if checkpoint_dir is None else Path(checkpoint_dir)
    return trainer.train(folder, progress=progress)


class HeadTrainer:
    """One training run of a head on checked features; `run` does it, from a saved state if any.

    Args:
        images: Unit-norm `(N, D)` or `(N, V, D)`.
        labels: `(N,)`.
        text: `(K, D)`.
        scale: The exponentiated logit scale.
        config: Hyper-parameters.
        seed: Seed of everything random.
        steps: Number of steps, if not the configuration's.

    Attributes:
        steps: Steps of the run, the larger of what `epochs` and `min_steps` ask for.
        epochs: Passes over the images that these steps make; the last one may be a part.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        text: Tensor,
        scale: float,
        config: EFTConfig,
        seed: int,
        steps: int | None = None,
    ) -> None:
        scale, seed = check_scale(scale, error=FeatureError), check_seed(seed)
        if len(text) < 2 or len(labels.unique()) < 2:
            raise FeatureError(
                f"training needs images of at least 2 classes, but there are {len(text)} classes and "
                f"{len(labels.unique())} with images"
            )
        self.images = images if images.ndim == 3 else images[:, None]
        self.labels, self.text = labels, text
        self.scale, self.config, self.seed = scale, config, seed
        # The strength is chosen after training, so it does not make another run of it.
        settings = replace(config, strength=1.0, strength_folds=2).to_dict()
        told = [scale, settings, seed] + ([] if steps is None else [steps])
        self.key = fingerprint_tensors(images, labels, text, extra=told)
        self.steps_per_epoch = math.ceil(len(images) / config.batch_size)
        epochs = max(config.epochs, math.ceil(config.min_steps / self.steps_per_epoch))
        self.steps = steps or epochs * self.steps_per_epoch
        self.epochs = math.ceil(self.steps / self.steps_per_epoch)

    def on_classes(self, classes: Tensor, keep: Tensor | None = None) -> HeadTrainer:
        """Return the run on some of the classes, relabelled in their order, of as many steps.

        Args:
            classes: Class indices, `(C,)`.
            keep: Mask `(N,)` of images that may be used; None for all.
        """
        position = torch.full((len(self.text),), -1, dtype=torch.long)
        position[classes] = torch.arange(len(classes))
        labels = position[self.labels]
        chosen = labels >= 0 if keep is None else (labels >= 0) & keep
        return HeadTrainer(
            self.images[chosen],
            labels[chosen],
            self.text[classes],
            self.scale,
            self.config,
            self.seed,
            self.steps,
        )

    def train(self, folder: Path | None = None, *, progress: bool | None = None) -> TrainedHead:
        """Train the head and choose its strength; `folder` keeps the state of both."""
        head, history = self.run(folder and folder / "head.safetensors", progress=progress)
        trained = TrainedHead(head, 1.0, self.config, self.seed, history, fingerprint=self.key)
        trained.class_features = self.text[self.labels.unique()]
        trained.steps = self.steps
        if isinstance(self.config.strength, int | float):
            trained.strength = float(self.config.strength)
        else:
            trained.strength_choice = choose_strength(self, folder, progress=progress)
            trained.strength = trained.strength_choice.strength
            trained.trained_strength = trained.strength_choice.trained_strength
        return trained

    def run(
        self,
        state_path: Path | None = None,
        *,
        progress: bool | None = None,
        description: str = "Training the head",
    ) -> tuple[RAdaHead, list[dict[str, float]]]:
        """Train and return the head and the curve.

        Raises:
            TrainingDivergedError: If the loss or the logits become NaN or infinite.
            TrainingInterrupted: On Ctrl-C.
        """
        head = self._initial_head()
        optimizer = torch.optim.AdamW(
            head.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )
        state = self._restore(state_path, head, optimizer)
        try:
            with progress_bar(description, self.steps, enabled=progress, unit="step") as advance:
                advance(state.epoch * self.steps_per_epoch)
                for epoch in range(state.epoch, self.epochs):
                    entry = self._epoch(head, optimizer, epoch, advance)
                    state.history.append(entry)
                    state.epoch = epoch + 1
                    state.weights = {k: v.detach().clone() for k, v in head.state_dict().items()}
                    last = state.epoch == self.epochs
                    due = state_path is not None and (last or state.due())
                    if due or last:
                        self._check_weights(head, state.epoch)
                    if state_path is not None and due:
                        state.moments = optimizer_moments(head, optimizer)
                        state.save(state_path)
        except KeyboardInterrupt as error:
            if state.weights:
                head.load_state_dict(state.weights)
            trained = TrainedHead(
                head.eval(), 1.0, self.config, self.seed, state.history, fingerprint=self.key
            )
            raise TrainingInterrupted(trained) from error
        return head.eval(), state.history

    def _initial_head(self) -> RAdaHead:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head = RAdaHead(
                self.images.shape[-1],
                num_heads=self.config.num_heads,
                temperature=self.config.temperature,
            )
        return head.to(device=self.images.device, dtype=self.images.dtype).train()

    def _restore(
        self, path: Path | None, head: RAdaHead, optimizer: torch.optim.Optimizer
    ) -> TrainingState:
        if path is not None and path.exists():
            state = TrainingState.load(path)
            if state.key == self.key:
                try:
                    head.load_state_dict(state.weights)
                    restore_moments(head, optimizer, state.moments)
                except RuntimeError as error:  # shapes of another head
                    raise CheckpointError(
                        f"the training state {str(path)!r} is damaged ({error}): delete it to start afresh"
                    ) from error
                return state
        return TrainingState(self.key)

    def _learning_rate(self, step: int) -> float:
        return warmup_cosine(self.config.learning_rate, step, self.steps, self.config.warmup)

    def _epoch(
        self,
        head: RAdaHead,
        optimizer: torch.optim.Optimizer,
        epoch: int,
        advance: Callable[[int], None],
    ) -> dict[str, float]:
        totals: dict[str, float] = {"loss": 0.0, "cross_entropy": 0.0, "max_deviation": 0.0}
        correct, seen, rate = 0, 0, 0.0
        for step, images, labels, text in self._batches(epoch):
            rate = self._learning_rate(epoch * self.steps_per_epoch + step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            output = head(images, text, self.scale)
            entropy = cross_entropy(output.logits, labels)
            deviation = output.max_deviation.mean()
            loss = entropy + self.config.alpha * deviation
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if not math.isfinite(float(loss.detach())):
                at = epoch * self.steps_per_epoch + step + 1
                raise self._diverged(
                    f"the loss is {float(loss.detach())} at step {at}", epoch, rate
                )
            for name, value in zip(totals, (loss, entropy, deviation), strict=True):
                totals[name] += float(value.detach()) * len(images)
            correct += int((output.logits.argmax(1) == labels).sum())
            seen += len(images)
            advance(1)
        entry = {name: value / seen for name, value in totals.items()}
        return entry | {"accuracy": correct / seen, "learning_rate": rate}

    @torch.no_grad()
    def _check_weights(self, head: RAdaHead, epochs: int) -> None:
        """Check the weights that the last step made, before they are kept."""
        output = head(self.images[: self.config.batch_size, 0], self.text, self.scale)
        if not bool(output.logits.isfinite().all() and output.max_deviation.isfinite().all()):
            step = epochs * self.steps_per_epoch
            rate = self._learning_rate(step - 1)
            raise self._diverged(f"the logits are not finite after step {step}", epochs - 1, rate)

    def _diverged(self, what: str, epoch: int, rate: float) -> TrainingDivergedError:
        return TrainingDivergedError(
            f"{what} (epoch {epoch + 1}, learning rate {rate:.3g}, scale {self.scale:g}, alpha "
            f"{self.config.alpha:g}): nothing of this is kept; lower the learning rate, which was at "
            f"most {self.config.learning_rate:g}"
        )

    def _batches(self, epoch: int) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield the steps of an epoch, a pure function of the seed and the epoch."""
        # One generator an epoch, on the CPU: a resumed run and another device draw the same numbers.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.images), generator=generator)
        left = self.steps - epoch * self.steps_per_epoch
        for step, batch in enumerate(order.split(self.config.batch_size)[:left]):
            views = torch.randint(self.images.shape[1], (len(batch),), generator=generator)
            images, labels, text = self.images[batch, views], self.labels[batch], self.text
            classes = draw_classes(labels.cpu(), len(text), self._subset_size(), generator)
            if classes is not None:
                position = torch.full((len(text),), -1)
                position[classes] = torch.arange(len(classes))
                relabelled = position[labels.cpu()]
                kept = (relabelled >= 0).nonzero().squeeze(1)
                images, labels = images[kept], relabelled[kept].to(labels.device)
                text = text[classes]
            yield step, images, labels, text

    def _subset_size(self) -> int:
        size = self.config.classes_per_step
        if size is None:
            return default_subset(len(self.text))
        return size or len(self.text)


def default_subset(classes: int) -> int:
    """Return how many of the classes a step draws by default.

    Example:
        >>> default_subset(3), default_subset(24), default_subset(1000)
        (2, 12, 64)
    """
    return min(64, max(2, math.ceil(classes / 2)))


def draw_classes(
    labels: Tensor, count: int, size: int, generator: torch.Generator
) -> Tensor | None:
    """Draw the classes of one step: the batch's own first, then others at random.

    Args:
        labels: Labels of the batch, `(B,)`.
        count: Number of classes, K.
        size: Classes to draw.
        generator: Source of randomness.

    Returns:
        Sorted class indices `(size,)`, or None when all K are used.

    Example:
        >>> import torch
        >>> draw_classes(torch.tensor([3, 3]), 4, 2, torch.Generator().manual_seed(0)).tolist()
        [1, 3]
    """
    if size >= count:
        return None
    priority = torch.rand(count, generator=generator)
    priority[labels] += 1.0
    return priority.topk(size).indices.sort().values


def describe(trained: TrainedHead) -> dict[str, Any]:
    """Return everything about a run but its weights, as plain JSON."""
    choice = trained.strength_choice
    return {
        "config": trained.config.to_dict(),
        "seed": trained.seed,
        "strength": trained.strength,
        "trained_strength": trained.trained_strength,
        "strength_choice": None if choice is None else choice.to_dict(),
        "effective": {"epochs": len(trained.history), "steps": trained.steps},
        "history": trained.history,
        "fingerprint": trained.fingerprint,
    }
