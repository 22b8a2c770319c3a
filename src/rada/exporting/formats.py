"""The files: a traced graph written for onnxruntime or for torch, and run again to be checked."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rada.core.errors import EncoderError, one_line
from rada.core.extras import needed_for

__all__ = ["FORMATS", "OUTPUTS", "Run", "trace"]

OUTPUTS = ("probabilities", "logits")
_OPSET = 18
_LARGEST = 2_000_000_000  # bytes in one file of the format that ONNX is written in

Run = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


def trace(graph: nn.Module, inputs: dict[str, Tensor]) -> Any:
    """Return the graph as torch exports it; the first axis of every input may have any length.

    Raises:
        EncoderError: If torch cannot; the message gives its reason.
    """
    shapes = tuple({0: torch.export.Dim(f"{name}_rows")} for name in inputs)
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(
                graph.eval(), tuple(inputs.values()), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:  # torch raises dozens of unrelated types
        raise EncoderError(
            f"torch {torch.__version__} cannot export this model from {next(iter(inputs))}: "
            f"{one_line(error, 300)}"
        ) from error


def _write_onnx(program: Any, names: tuple[str, ...], folder: Path, facts: dict[str, Any]) -> str:
    """Write `model.onnx` with the facts in its metadata; return its name."""
    with needed_for("an export to ONNX"):
        import onnx
        import onnxscript  # noqa: F401  torch needs it for what follows
    try:
        with _quiet():
            found = torch.onnx.export(
                program,
                (),
                dynamo=True,
                opset_version=_OPSET,
                input_names=list(names),
                output_names=list(OUTPUTS),
            )
    except Exception as error:  # of onnxscript and of torch, without a common base
        raise EncoderError(
            f"torch {torch.__version__} cannot write this model in ONNX: {one_line(error, 300)}; "
            "a newer one may, or --format torch"
        ) from error
    assert found is not None
    name, model = "model.onnx", found.model_proto
    _name_axes(model)
    entry = model.metadata_props.add()
    entry.key, entry.value = "rada", json.dumps(facts)
    large = model.ByteSize() > _LARGEST
    onnx.save_model(model, str(folder / name), save_as_external_data=large, location=f"{name}.data")
    return name


def _name_axes(model: Any) -> None:
    """Leave the weights' names alone, but drop what says in which file of ours each node was made."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""


def _run_onnx(path: Path) -> Run | None:
    """Return what runs a file, None where onnxruntime is not installed."""
    with needed_for("an export to ONNX"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(found) for found in session.run(list(OUTPUTS), given))

    return run


def _write_torch(program: Any, names: tuple[str, ...], folder: Path, facts: dict[str, Any]) -> str:
    """Write `model.pt2`, which `torch.export.load` reads; return its name."""
    torch.export.save(program, folder / "model.pt2", extra_files={"export.json": json.dumps(facts)})
    return "model.pt2"


def _run_torch(path: Path) -> Run:
    module = torch.export.load(path).module()

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = module(*inputs)
        return found

    return run


FORMATS: dict[str, tuple[Callable[..., str], Callable[[Path], Any]]] = {
    "onnx": (_write_onnx, _run_onnx),
    "torch": (_write_torch, _run_torch),
}
"""By name: what writes a file, and what runs it again."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch prints of its own steps, and keep to operations that ONNX has.

    The fast path of `nn.MultiheadAttention` is one operation that only torch knows.
    """
    fast, level = torch.backends.mha.get_fastpath_enabled(), logging.root.manager.disable
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        torch.backends.mha.set_fastpath_enabled(fast)
