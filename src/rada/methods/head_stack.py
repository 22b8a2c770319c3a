"""The final model and those of the folds, trained in one loop.

Each step takes the batch of every member (its own images, classes and seed, as if it learned alone) and does
the work of all in one pass (`rada.head.stack`), with one optimiser over their stacked weights. The members do
not touch each other: the loss is the sum of theirs, Adam works number by number, and the rate depends on the
step alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rada.features import Features
from rada.head.stack import StackLayout, StackWeights, stacked_attention
from rada.methods.base import AdaptedModel, Run
from rada.training.feature_loop import Losses, Step, TrainingInterrupted, endless_steps, train

__all__ = ["HeadStack", "StackStep", "learn_stack"]

_MOST_ROWS = 256
"""Images times classes of a step up to which a stack was faster (`benchmarks/train_time.py --stack`)."""
_INNER = ("query_rational", "key", "value")


class StackStep(NamedTuple):
    """A step of every member.

    Attributes:
        steps: One for each.
    """

    steps: tuple[Step, ...]

    @property
    def labels(self) -> Tensor:
        """Labels of the first, whose curve is kept."""
        return self.steps[0].labels


class HeadStack(nn.Module):
    """The weights of several models of one kind and size, stacked; changes none of them until `unstack`.

    Args:
        models: RAda heads, with or without adapters before them.
    """

    def __init__(self, models: Sequence[Any]) -> None:
        super().__init__()
        self._models = tuple(
            models
        )  # a tuple is not registered: their weights are not this module's
        heads = [model.head for model in models]
        self.inner = _stacked([_joined(head, "weight") for head in heads])
        self.inner_bias = _stacked([_joined(head, "bias") for head in heads])
        self.layers = nn.ParameterDict()
        for name in ("query_image", "query_text", "out"):
            for kind in ("weight", "bias"):
                own = [getattr(getattr(head, name), kind).detach() for head in heads]
                self.layers[f"{name}_{kind}"] = _stacked(own)
        self.adapters = nn.ModuleDict()
        for name in ("image_adapter", "text_adapter"):
            found = [getattr(model, name) for model in models]
            if found[0] is not None:
                self.adapters[name] = _AdapterStack(found)

    @staticmethod
    def pays(data: Features, config: Any) -> bool:
        """Whether steps are small, on a CPU; elsewhere it was not measured."""
        classes = config.subset(len(data.classes)) or len(data.classes)
        rows = min(config.batch_size, len(data)) * min(classes, len(data.classes))
        return data.image_features.device.type == "cpu" and rows <= _MOST_ROWS

    @torch.no_grad()
    def unstack(self) -> None:
        """Give the models their weights."""
        for number, model in enumerate(self._models):
            parts = zip(
                _INNER, self.inner[number].chunk(3), self.inner_bias[number].chunk(3), strict=True
            )
            for name, weight, bias in parts:
                getattr(model.head, name).weight.copy_(weight)
                getattr(model.head, name).bias.copy_(bias)
            for key, value in self.layers.items():
                name, _, kind = key.rpartition("_")
                getattr(getattr(model.head, name), kind).copy_(value[number])
            for name, stack in self.adapters.items():
                assert isinstance(stack, _AdapterStack)
                stack.give(getattr(model, name), number)
            model.eval()

    def losses(self, step: StackStep) -> Losses:
        """Return the sum of the members' losses as `total`, and what the first member reports."""
        steps, model = step.steps, self._models[0]
        dtype = torch.promote_types(self.inner.dtype, torch.float32)
        images = _padded([one.images for one in steps]).to(dtype)
        text = _padded([one.classes.text_features for one in steps]).to(dtype)
        labels = _padded([one.labels for one in steps])
        layout = StackLayout(
            tuple(len(one.labels) for one in steps),
            tuple(len(one.classes) for one in steps),
            images,
        )
        if "image_adapter" in self.adapters:
            images = self.adapters["image_adapter"](images)
        if "text_adapter" in self.adapters:
            text = self.adapters["text_adapter"](text)
        shift, peak = self._attention(images, text, layout)
        logits = model.facts.scale * (images @ text.mT) + shift
        logits = logits.masked_fill(~layout.is_class[:, None], -math.inf)
        entropy = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        counts = layout.is_image.sum(1)
        entropy = (entropy.view_as(labels) * layout.is_image).sum(1) / counts
        deviation = peak.sum(1) / counts
        smoothness = model.alpha * deviation
        right = (logits[0].detach().argmax(1) == labels[0]) & layout.is_image[0]
        return {
            "total": (entropy + smoothness).sum(),
            "loss": (entropy + smoothness)[0],
            "cross_entropy": entropy[0],
            "smoothness": smoothness[0],
            "accuracy": right.sum() / counts[0],
            "max_deviation": deviation[0],
        }

    def _attention(
        self, images: Tensor, text: Tensor, layout: StackLayout
    ) -> tuple[Tensor, Tensor]:
        head, layers = self._models[0].head, self.layers
        root = math.sqrt(self._models[0].facts.scale)
        images, text = images * root, text * root
        image_query, text_query = (
            torch.baddbmm(layers[f"{name}_bias"][:, None], rows, layers[f"{name}_weight"].mT)
            for name, rows in (("query_image", images), ("query_text", text))
        )
        weights = StackWeights(
            self.inner, self.inner_bias, layers["out_weight"], layers["out_bias"]
        )
        return stacked_attention(
            images,
            text,
            image_query,
            text_query,
            weights,
            layout,
            num_heads=head.num_heads,
            temperature=head.temperature,
        )


class _AdapterStack(nn.Module):
    """Small modules of one kind, applied in one pass."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self._kind = (modules[0],)  # what is computed; its own weights are not used
        named = [dict(module.named_parameters()) for module in modules]
        self.own = nn.ParameterDict(
            {
                name.replace(".", "/"): _stacked([one[name].detach() for one in named])
                for name in named[0]
            }
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return features `(S, N, D)` behind each member's module."""

        def one(weights: dict[str, Tensor], rows: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(self._kind[0], weights, (rows,))
            return found

        weights = {name.replace("/", "."): value for name, value in self.own.items()}
        found: Tensor = torch.func.vmap(one)(weights, features)
        return found

    def give(self, module: nn.Module, number: int) -> None:
        """Give a module its weights."""
        for name, parameter in module.named_parameters():
            parameter.copy_(self.own[name.replace(".", "/")][number])


def _joined(head: nn.Module, kind: str) -> Tensor:
    return torch.cat([getattr(getattr(head, name), kind).detach() for name in _INNER])


def _stacked(tensors: Sequence[Tensor]) -> nn.Parameter:
    return nn.Parameter(torch.stack(list(tensors)))


def _padded(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors of different lengths; the first row fills up, a zero would have no direction."""
    size = max(map(len, tensors))
    found = tensors[0].new_empty(len(tensors), size, *tensors[0].shape[1:])
    for own, tensor in zip(found, tensors, strict=True):
        own[: len(tensor)] = tensor
        own[len(tensor) :] = tensor[:1]
    return found


def learn_stack(
    models: Sequence[AdaptedModel],
    parts: Sequence[Features],
    config: Any,
    run: Run,
    steps: int,
    description: str,
) -> None:
    """Train models, each on its part of the data; the first is the one that is kept.

    Raises:
        TrainingDivergedError: If a loss or a weight of any is not finite.
        TrainingInterrupted: On Ctrl-C, with the first as it was after its last whole epoch.
    """
    model, stack, recipe = models[0], HeadStack(models), config.recipe()
    sizes = [config.subset(len(part.classes)) for part in parts]
    per_epoch = -(-len(parts[0]) // recipe.batch_size)

    def endless(first: int) -> Iterator[StackStep]:
        members = [
            endless_steps(part, recipe, run.seed, size, first)
            for part, size in zip(parts, sizes, strict=True)
        ]
        return map(StackStep, zip(*members, strict=True))

    running: dict[int, Iterator[StackStep]] = {}

    def batches(epoch: int) -> Iterator[StackStep]:
        # one epoch follows the other but in a run that goes on from a state
        source = running.pop(epoch, None) or endless(epoch * per_epoch)
        running[epoch + 1] = source
        return itertools.islice(source, per_epoch)

    try:
        history = train(
            stack,
            stack.losses,
            parts[0],
            recipe,
            run.seed,
            steps=steps,
            key=[
                "stack",
                [part.fingerprint for part in parts],
                sizes,
                [model.method.name, model.facts.to_dict(), model.config.to_dict()],
            ],
            state_path=run.state_file("state.safetensors"),
            progress=run.progress,
            description=description,
            batches=batches,
        )
    except TrainingInterrupted as stopped:
        stack.unstack()
        raise TrainingInterrupted(model, stopped.history) from stopped
    stack.unstack()
    model.record |= {"history": history, "effective": {"epochs": len(history), "steps": steps}}
