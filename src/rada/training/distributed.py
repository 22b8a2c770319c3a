"""Devices, processes and precision, by Accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rada.core.errors import ConfigError
from rada.core.extras import needed_for
from rada.core.processes import leave_at_exit
from rada.training.sharding import wants_shards

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["make_accelerator"]

# How Accelerate may share the work. Models are cut by `rada.training.sharding`, where it says FSDP.
_KINDS = (
    "NO",
    "MULTI_CPU",
    "MULTI_GPU",
    "MULTI_XPU",
    "MULTI_NPU",
    "MULTI_MLU",
    "MULTI_HPU",
    "FSDP",
)


def make_accelerator(
    device: str | torch.device | None,
    precision: str | None = None,
    *,
    trackers: tuple[str, ...] = (),
    folder: Path | None = None,
) -> Accelerator:
    """Return Accelerate's view of the processes that the launcher started.

    Args:
        device: "cpu", or None for what Accelerate finds.
        precision: "bf16", "fp16" or "no"; None for what the launcher says.
        trackers: Names of trackers.
        folder: Where they write.

    Raises:
        ConfigError: If the launcher wants the model itself cut in a way that cannot be.
    """
    with needed_for("training an encoder"):
        from accelerate import Accelerator, DistributedDataParallelKwargs

    accelerator = Accelerator(
        # Without a GPU Accelerate must be told, or it takes each process for the only one.
        cpu=str(device) == "cpu" or not torch.accelerator.is_available(),
        mixed_precision=precision,
        log_with=list(trackers) or None,
        project_dir=folder,
        # Encoders have parts that no loss reaches, such as a pooler.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    leave_at_exit()
    wants_shards(accelerator)  # says what of FSDP cannot be
    if accelerator.distributed_type not in _KINDS:
        raise ConfigError(
            f"{accelerator.distributed_type.value} cannot be used: models are evaluated whole. Cut them by "
            "--use_fsdp --fsdp_version 2, or use one process a GPU with --set precision=bf16 and "
            "--set accumulate=N"
        )
    return accelerator
