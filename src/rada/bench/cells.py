"""One cell of a benchmark: what it is, and its result on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rada._version import __version__
from rada.core.errors import CheckpointError, ConfigError
from rada.core.output import claim, training_folder
from rada.core.records import BenchRecord, CellRecord, FailureRecord, check_record
from rada.core.storage import read_json, write_json
from rada.methods import get_method
from rada.test_time import get_test_time_method

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = [
    "FORMAT",
    "MEAN",
    "SOURCE",
    "TRANSFER",
    "Cell",
    "Folder",
    "data_name",
    "subject",
    "told_apart",
]

FORMAT = "rada-bench-1"
TRANSFER = ("cross-dataset", "domain")
"""The protocols whose cells are tested on what they learned from, and on every target."""
SOURCE, MEAN = "source", "mean of the targets"
"""What tables of several test sets call what was learned from, and the mean of the others."""
_DELETE = "delete it, and its cell is run again"
WAIT = 60.0
"""Seconds to wait for another process that opens the folder or writes its tables."""


def data_name(spec: str) -> str:
    """Return a short name for a data set's specification.

    Example:
        >>> data_name("data/pacs/photo"), data_name("dtd?root=/data")
        ('photo', 'dtd')
    """
    bare = spec.split("?")[0].rstrip("/").rsplit("/", 1)[-1].rsplit(":", 1)[-1]
    return re.sub(r"\.(safetensors|npz|csv|tsv|jsonl|ndjson)$", "", bare) or spec


def told_apart(names: Mapping[str, str]) -> dict[str, str]:
    """Return a name for each specification: its short one, or all of it where that would mean two things.

    Example:
        >>> told_apart({"pacs/photo": "photo", "a/test": "test", "b/test": "test", "c/source": "source"})
        {'pacs/photo': 'photo', 'a/test': 'a/test', 'b/test': 'b/test', 'c/source': 'c/source'}
    """
    taken = [*names.values(), SOURCE, MEAN]
    return {spec: name if taken.count(name) == 1 else spec for spec, name in names.items()}


def subject(cell: Mapping[str, Any]) -> str:
    """Return the specification that tables name a cell by: what it learns from, or is tested on for "shift".

    Example:
        >>> cell = Cell("shift", "coop", "coop", "imagenet", 16, 1, targets=("imagenet_a",))
        >>> subject(cell.to_dict())
        'imagenet_a'
    """
    spec: str = cell["targets"][0] if cell["protocol"] == "shift" else cell["dataset"]
    return spec


@dataclass(frozen=True)
class Cell:
    """One run of a benchmark.

    Attributes:
        protocol: Name of the protocol.
        label: Name of the row; the method's own, or a variant's.
        method: The method.
        options: Fields of its configuration that differ from the defaults, as sorted pairs.
        test_time: The test-time method that predicts; "" for none.
        test_time_options: Fields of its configuration that differ from the defaults.
        dataset: Specification of the data set to learn from.
        targets: Specifications of further data sets to test on.
        shots: Images a class; 0 for methods that learn nothing.
        seed: Its seed; 0 for methods that learn nothing.
        model: The encoder.
    """

    protocol: str
    label: str
    method: str
    dataset: str
    shots: int
    seed: int
    model: str = "embedded"
    targets: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    allow_fewer: bool = False
    test_time: str = ""
    test_time_options: tuple[tuple[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON, as JSON would give it back."""
        values = dataclasses.asdict(self) | {
            "options": dict(self.options),
            "test_time_options": dict(self.test_time_options),
        }
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain

    @property
    def path(self) -> str:
        """Path of the result within the benchmark's folder.

        Example:
            >>> Cell("few-shot", "rada", "rada", "textiles", 4, 1).path
            'few-shot/textiles-38c908/rada/4-shots-seed-1.json'
        """
        digest = hashlib.blake2b(f"{self.dataset}{self.targets}".encode(), digest_size=3)
        data = f"{_safe(data_name(self.dataset))}-{digest.hexdigest()}"
        return (
            f"{self.protocol}/{data}/{_safe(self.label)}/{self.shots}-shots-seed-{self.seed}.json"
        )

    def __str__(self) -> str:
        what = f"{self.protocol}, {self.label} on {data_name(subject(self.to_dict()))}"
        return what if not self.shots else f"{what}, {self.shots} shots, seed {self.seed}"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60] or "-"


class Folder:
    """The folder of a benchmark: `bench.json`, `cells/`, `failed/` and the state of training.

    Args:
        root: The folder.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def result_path(self, cell: Cell) -> Path:
        """Return where the result of a cell stands."""
        return self.root / "cells" / cell.path

    def training_path(self, cell: Cell) -> Path:
        """Return the folder of a cell's training state, which is there until the cell is finished."""
        return training_folder(self.root) / cell.path.removesuffix(".json")

    def failure_path(self, cell: Cell) -> Path:
        """Return where the failure of a cell stands."""
        return self.root / "failed" / cell.path

    def open(self, facts: dict[str, Any]) -> None:
        """Take the folder into use.

        Args:
            facts: What all its cells share, such as the model.

        Raises:
            ConfigError: If it holds results of another version or model; nothing is changed then.
            OutputError: If it holds what rada did not write as a benchmark.
            StorageError: If it cannot be written.
        """
        facts = {"format": FORMAT, "rada_version": __version__} | facts
        # Several processes share the folder, so it is owned for a moment only.
        with claim(self.root, "bench", wait=WAIT) as folder:
            if (self.root / "bench.json").exists():
                self._agree(facts)
                return
            folder.take("bench.json", "cells/", "failed/")
            folder.write_json("bench.json", facts)

    def _agree(self, facts: dict[str, Any]) -> None:
        found = self.facts()
        for key, value in facts.items():
            if key in found and found[key] != value and key != "recipe":
                raise ConfigError(
                    f"{str(self.root)!r} holds results with {key} {found[key]!r}, this run has "
                    f"{value!r}: choose another --out"
                )

    def facts(self) -> dict[str, Any]:
        """Return what `bench.json` says.

        Raises:
            CheckpointError: If the folder holds no benchmark, or the file is damaged.
        """
        path = self.root / "bench.json"
        what = "the description of a benchmark"
        if not path.exists():  # there is nothing to delete
            raise CheckpointError(
                f"{what} {str(path)!r} does not exist: name the folder of a benchmark"
            )
        return _record(BenchRecord, path, what, "delete it, and run the same benchmark again")

    def finished(self, cell: Cell, identities: Mapping[str, Any] | None = None) -> bool:
        """Whether a cell has its result.

        Args:
            cell: The cell.
            identities: The identity that each of its data sets has now; None leaves that open.

        Raises:
            ConfigError: If there is a result of other configuration or other data under the same name.
            CheckpointError: If the result is damaged.
        """
        path = self.result_path(cell)
        if not path.exists():
            return False
        found = _read(path)
        if found["cell"] != cell.to_dict() or found["rada_version"] != __version__:
            differ = [
                f"{key} {found['cell'].get(key)!r} instead of {value!r}"
                for key, value in cell.to_dict().items()
                if found["cell"].get(key) != value
            ]
            differ = differ or [f"rada {found['rada_version']} instead of {__version__}"]
            raise ConfigError(
                f"{str(path)!r} is the result of another run ({'; '.join(differ)}): "
                "choose another --out, or another name for the variant"
            )
        known = found.get("identities", {})
        changed = [spec for spec, value in (identities or {}).items() if known.get(spec) != value]
        if changed:
            raise ConfigError(
                f"{str(path)!r} is the result of other images, labels, templates or encoder weights "
                f"than {changed[0]!r} gives now: choose another --out"
            )
        return True

    def write(self, cell: Cell, result: dict[str, Any]) -> None:
        """Write the result of a cell in one step and forget its failure."""
        head = {"format": FORMAT, "rada_version": __version__, "cell": cell.to_dict()}
        write_json(self.result_path(cell), head | result)
        self.failure_path(cell).unlink(missing_ok=True)

    def write_failure(self, cell: Cell, error: BaseException, trace: str) -> None:
        """Write why a cell failed."""
        facts = {"cell": cell.to_dict(), "type": type(error).__name__, "error": str(error)}
        write_json(self.failure_path(cell), facts | {"traceback": trace})

    def results(self) -> Iterator[dict[str, Any]]:
        """Yield all results in the order of their paths.

        Raises:
            CheckpointError: If one is damaged, of another version, or of a method that is not there.
        """
        version = self.facts().get("rada_version")
        for path in sorted((self.root / "cells").glob("**/*.json")):
            found = _read(path)
            if found["rada_version"] != version:
                raise CheckpointError(
                    f"{str(path)!r} was made by rada {found['rada_version']}, the benchmark by "
                    f"{version}: take it out of the folder"
                )
            try:
                get_method(found["cell"]["method"])
                if found["cell"].get("test_time"):
                    get_test_time_method(found["cell"]["test_time"])
            except ConfigError as error:
                raise CheckpointError(
                    f"{str(path)!r} cannot be shown: {error}; import what registers the method, or take the "
                    "file out of the folder"
                ) from error
            yield found

    def failures(self) -> list[dict[str, Any]]:
        """Return all failures.

        Raises:
            CheckpointError: If the file of one is damaged.
        """
        paths = sorted((self.root / "failed").glob("**/*.json"))
        return [_record(FailureRecord, path, "the failure of a cell", _DELETE) for path in paths]


def _record(
    kind: type[BaseModel], path: Path, what: str, advice: str, format: str | None = None
) -> dict[str, Any]:
    """Read a file of a benchmark; whatever damaged it, the message has the advice."""
    try:
        found: dict[str, Any] = read_json(path, error=CheckpointError, what=what)
    except CheckpointError as error:
        raise CheckpointError(f"{error}: {advice}") from error
    if format and isinstance(found, dict) and found.get("format", format) != format:
        raise CheckpointError(
            f"{str(path)!r} has the format {str(found['format'])[:40]!r}, this version reads {format!r}: "
            "choose another folder"
        )
    what = f"{str(path)!r} is not {what} ({advice}): it"
    check_record(kind, found, error=CheckpointError, what=what)
    return found


def _read(path: Path) -> dict[str, Any]:
    return _record(CellRecord, path, "a result of a benchmark", _DELETE, FORMAT)
