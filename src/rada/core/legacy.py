"""What rada 0.1 wrote before there was a list of its own files, told by the content alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["is_page", "written_before"]

_LARGEST = 64 << 20
_ENCODER_FILES = (".json", ".jsonl", ".safetensors", ".txt", ".model")
_HEAD_FIELDS = {"dim", "num_heads", "scale", "strength", "classes", "templates", "training"}
_HEAD_LAYERS = {"query_image", "query_text", "query_rational", "key", "value", "out"}


def written_before(folder: Path, kind: str) -> set[str]:
    """Return the names of the files in a folder that rada 0.1 wrote; empty where none is proven.

    Args:
        folder: The folder.
        kind: What is expected in it, as for `rada.core.output.claim`.
    """
    return set(_READERS[kind](folder)) if kind in _READERS else set()


def _json(path: Path) -> Any:
    """Return the content of a JSON file, None where there is none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if path.is_file() and path.stat().st_size <= _LARGEST:
            return json.loads(path.read_text(encoding="utf-8"))
    return None


def _has(path: Path, *keys: str) -> bool:
    found = _json(path)
    return isinstance(found, dict) and set(keys) <= found.keys()


def _header(path: Path) -> tuple[set[str], dict[str, str]]:
    """Return the names of the tensors and the metadata of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    with contextlib.suppress(SafetensorError, OSError, ValueError):
        if path.is_file():
            with safe_open(path, framework="pt") as stream:
                return set(stream.keys()), stream.metadata() or {}
    return set(), {}


def _model(folder: Path) -> Iterator[str]:
    """Yield the files of a fitted head or a tuned model, finished or not."""
    config = _has(folder / "config.json", *_HEAD_FIELDS)
    layers = {name.partition(".")[0] for name in _header(folder / "head.safetensors")[0]}
    head = layers == _HEAD_LAYERS
    if head:
        yield "head.safetensors"
    # Beside a head of rada's, what is called config.json is the head's, be it damaged or not.
    if (config or head) and (folder / "config.json").is_file():
        yield "config.json"
    if _header(folder / "classes.safetensors")[0] == {"vectors"}:
        yield "classes.safetensors"
    if config and "encoder" in (_json(folder / "config.json").get("parts") or ()):
        for path in sorted((folder / "encoder").glob("*")):
            if path.suffix in _ENCODER_FILES and path.is_file():
                yield f"encoder/{path.name}"
    if _has(folder / "result.json", "environment", "command"):
        yield "result.json"
        for name in ("training_images.json", "robustness.svg"):
            if (config or head) and (folder / name).is_file():
                yield name
    yield from _states(folder)


def _states(folder: Path) -> Iterator[str]:
    """Yield the states of training and the checkpoints of a model."""
    for path in sorted((folder / "training").glob("*")):
        record = path.name.startswith("strength-") and _has(path, "key", "counts")
        if record or "rada_training" in _header(path)[1]:
            yield f"training/{path.name}"
    checkpoints = folder / "checkpoints"
    if _json_value(checkpoints / "run.json", "setting") != "fft":
        return
    yield "checkpoints/run.json"
    for path in sorted(checkpoints.glob("step-*/*")):
        own = _header(path)[1].get("format") == "rada-fft-1"
        if own or (path.name == "state.json" and _has(path, "step", "history")):
            yield f"checkpoints/{path.parent.name}/{path.name}"
    log = folder / "log.jsonl"
    with contextlib.suppress(OSError, ValueError):
        with log.open(encoding="utf-8") as stream:
            first = json.loads(stream.readline(1 << 20) or "null")
        if isinstance(first, dict) and "step" in first:
            yield "log.jsonl"


def _json_value(path: Path, key: str) -> Any:
    found = _json(path)
    return found.get(key) if isinstance(found, dict) else None


def is_page(path: Path, eyebrow: str = "") -> bool:
    """Whether a page carries the line that rada puts over its title."""
    with contextlib.suppress(OSError, ValueError):
        return f'<p class="eyebrow">{eyebrow}' in path.read_text(encoding="utf-8")
    return False


def _report(folder: Path) -> Iterator[str]:
    if is_page(folder / "index.html", "rada report"):
        yield "index.html"
        if _has(folder / "result.json", "zero_shot", "adapted"):
            yield "result.json"


def _bench(folder: Path) -> Iterator[str]:
    if not str(_json_value(folder / "bench.json", "format")).startswith("rada-bench-"):
        return
    yield from ("bench.json", "cells/", "failed/")
    if is_page(folder / "index.html", "rada bench"):
        yield "index.html"
        for name in ("results.csv", "results.md", "results.tex"):
            if (folder / name).is_file():
                yield name


def _demo(folder: Path) -> Iterator[str]:
    for path in sorted((folder / "runs").glob("*-shots-seed-*.json")):
        if _has(path, "method", "shots", "seed", "accuracy"):
            yield f"runs/{path.name}"
    if _has(folder / "result.json", "runs", "seeds", "environment"):
        yield "result.json"


_READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    "model": _model,
    "report": _report,
    "bench": _bench,
    "demo": _demo,
}
