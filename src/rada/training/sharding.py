"""Learning weights, gradients and the optimiser's moments in shards, one for each process (torch's FSDP2)."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import os
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, distributed, nn

from rada.core.errors import ConfigError
from rada.core.processes import process_count
from rada.training.best_epoch import Tunable

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rada.encoders import DualEncoder

__all__ = ["ShardedLearner", "wants_shards"]


def wants_shards(accelerator: Accelerator) -> bool:
    """Whether the launcher asked for FSDP, and there are processes to share among.

    Accelerate itself knows FSDP on accelerators alone; processes on the CPU are asked for it by the same
    variables of the environment.

    Raises:
        ConfigError: If it asked for what cannot be done.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() not in ("1", "true"):
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(
            "only the second version of FSDP can be used: the first does not leave CLIP's scale, a scalar, "
            "in one piece. Give accelerate launch --use_fsdp --fsdp_version 2"
        )
    if not _leaves_scalars():
        raise ConfigError(
            f"torch {torch.__version__} cannot leave CLIP's scale out of its shards: sharded training needs "
            "torch 2.7 or later"
        )
    if accelerator.mixed_precision == "fp16":
        raise ConfigError("sharded training computes in bf16 or float32: --set precision=bf16")
    return process_count() > 1


def _leaves_scalars() -> bool:
    from torch.distributed.fsdp import fully_shard

    return "ignored_params" in inspect.signature(fully_shard).parameters


class Shardable(Tunable, Protocol):
    """A model that owns an encoder, as `ShardedLearner` takes it."""

    @property
    def encoder(self) -> DualEncoder:
        """The encoder."""

    @property
    def changing(self) -> Collection[str]:
        """Names of the weights and buffers that training can change."""


class ShardedLearner:
    """A copy of a model that learns in shards; the model itself stays whole and is given the weights.

    Each transformer layer is gathered for as long as it computes, what lies between the layers for a
    step. Scalars such as CLIP's scale cannot be cut: every process has them, and their gradients are averaged
    here.

    Args:
        whole: The model that is evaluated and saved.
        device: Where the copy learns.
        half: Compute in bfloat16 where autocast does; the weights stay as they are.

    Attributes:
        module: The copy.
    """

    def __init__(self, whole: Shardable, device: torch.device, *, half: bool) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.whole, self.device, self.half = whole, device, half
        kept = getattr(whole, "pretrained", None)  # weights that are only read: not copied
        self.module = cast("Any", copy.deepcopy(whole, {id(kept): kept}))
        self.module.to(memory_format=torch.contiguous_format)  # torch cuts no other layout
        mesh = init_device_mesh(device.type, (process_count(),))
        for layer in _layers(self.module.encoder):
            fully_shard(layer, mesh=mesh)
        scalars = {p for p in self.module.parameters() if p.ndim == 0}
        fully_shard(self.module, mesh=mesh, ignored_params=scalars)

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """Return the losses of a batch; every process must call it as often."""
        half = torch.autocast(self.device.type, torch.bfloat16) if self.half else None
        with half or contextlib.nullcontext():
            found: dict[str, Tensor] = self.module(batch)
        return {name: value.float() for name, value in found.items()}

    def groups(self, groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the optimiser's groups, weights in shards apart from whole ones: it mixes no kinds."""
        found = []
        for group in groups:
            for sharded in (True, False):
                own = [p for p in group["params"] if _is_sharded(p) is sharded]
                if own:
                    found.append({**group, "params": own})
        return found

    @torch.no_grad()
    def average_scalars(self) -> None:
        """Average over the processes the gradients that torch leaves alone."""
        for parameter in self.module.parameters():
            if parameter.grad is not None and not _is_sharded(parameter):
                distributed.all_reduce(parameter.grad)
                parameter.grad /= process_count()

    @torch.no_grad()
    def clip(self, limit: float) -> float:
        """Make the norm of all gradients at most `limit`; return what it was."""
        grads = [p.grad for p in self.module.parameters() if p.grad is not None]
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        for grad in grads:
            own = grad.to_local() if _is_sharded(grad) else grad
            # Of what every process has whole, each counts its part.
            share = 1.0 if _is_sharded(grad) else 1.0 / process_count()
            squares += own.double().square().sum() * share
        distributed.all_reduce(squares)
        norm = math.sqrt(float(squares))
        if norm > limit:
            for grad in grads:
                grad.mul_(limit / (norm + 1e-6))
        return norm

    @torch.no_grad()
    def give(self) -> None:
        """Give the weights to the whole model, one after another; every process must call it."""
        state = self.module.state_dict()
        for name in sorted(self.whole.changing):  # all processes in the same order
            value = state[name]
            self.whole.load_tuned({name: value.full_tensor() if _is_sharded(value) else value})


def _layers(encoder: DualEncoder) -> list[nn.Module]:
    """Return the transformer layers of both encoders, each once."""
    layers = [*encoder.attention_layers("text"), *encoder.attention_layers("image")]
    return list(dict.fromkeys(layers))


def _is_sharded(tensor: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
