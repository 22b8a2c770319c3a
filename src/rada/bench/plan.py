"""What to run: a plan, from options or from a file, and the cells that it comes to."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rada.bench.cells import MEAN, SOURCE, TRANSFER, Cell
from rada.core.config import Config, parse_value
from rada.core.errors import ConfigError
from rada.core.extras import needed_for
from rada.core.values import check_seed
from rada.data.templates import asks_for_choice
from rada.methods import get_method
from rada.test_time import get_test_time_method

__all__ = ["PROTOCOLS", "Plan", "load_plan", "parse_setting"]

PROTOCOLS = ("few-shot", "base-to-new", *TRANSFER, "shift")


class Options(dict[str, Any]):
    """Configuration by method or variant: `{"rada": {"epochs": 10}}`."""


@dataclass(frozen=True)
class Plan(Config):
    """A benchmark.

    Attributes:
        protocols: "few-shot", "base-to-new", "cross-dataset", "domain" or "shift".
        methods: Names of methods or of variants in `options`; `METHOD+TEST_TIME` predicts with a
            test-time method, such as `zero_shot+tpt`.
        datasets: What to learn from: specifications as for `rada fit`, or features files.
        targets: What else to test on, for "cross-dataset" and "domain"; what to test on, for "shift".
        shots: Images a class.
        seeds: Seeds of the shots and of training.
        model: The encoder for images.
        options: Fields of the configuration by method or variant; a variant has an entry "method". Fields
            of a test-time method's are written `test_time.FIELD`.
        templates: Prompt templates instead of the data sets' own; "auto" chooses them on the shots of every
            cell, and zero-shot then has cells of its own for shots and seeds.
        class_names: Class names of every data set, as JSON or a file with it; see `rada.data.Naming`.
        allow_fewer: Go on where a class has fewer images than `shots`.
        recipe: Name of the recipe that the plan came from.

    Example:
        >>> plan = Plan(methods=("zero_shot", "rada"), datasets=("textiles",), shots=(1, 4))
        >>> len(plan.cells())  # zero-shot does not depend on shots and seeds
        7
    """

    methods: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    protocols: tuple[str, ...] = ("few-shot",)
    targets: tuple[str, ...] = ()
    shots: tuple[int, ...] = (16,)
    seeds: tuple[int, ...] = (1, 2, 3)
    model: str = "embedded"
    options: Options = dataclasses.field(default_factory=lambda: Options())
    templates: tuple[str, ...] = ()
    class_names: str = ""
    allow_fewer: bool = False
    recipe: str = ""

    def __post_init__(self) -> None:
        if type(self.options) is dict:
            object.__setattr__(self, "options", Options(self.options))
        super().__post_init__()

    def validate(self) -> None:
        """Check names and numbers, and the configuration of every method."""
        for name in ("methods", "datasets", "protocols", "shots", "seeds", "targets"):
            values = getattr(self, name)
            self.require(bool(values) or name == "targets", name, "at least one entry long")
            self.require(len(set(values)) == len(values), name, "free of repetitions")
        for protocol in self.protocols:
            if protocol not in PROTOCOLS:
                near = difflib.get_close_matches(protocol, PROTOCOLS, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(PROTOCOLS)}"
                raise ConfigError(f"there is no protocol {protocol!r}: {hint}")
        self.require(all(shots >= 1 for shots in self.shots), "shots", "numbers from 1 on")
        for seed in self.seeds:
            check_seed(seed, "every one of the seeds")
        for protocol in ("cross-dataset", "shift"):
            if protocol in self.protocols and not self.targets:
                raise ConfigError(f"the protocol {protocol} needs --targets: data sets to test on")
        if self.targets and not {*TRANSFER, "shift"} & set(self.protocols):
            raise ConfigError(
                f"the target {self.targets[0]!r} would not be tested on by {' and '.join(self.protocols)}: "
                f"leave --targets out, or choose a --protocol that takes them: {', '.join(TRANSFER)} or shift"
            )
        for label in self.methods:
            self.method(label)
        unknown = [label for label in self.options if label not in self.methods]
        if unknown:
            raise ConfigError(
                f"there are options for {unknown[0]!r}, which is none of the methods "
                f"{', '.join(self.methods)}"
            )
        for label in self.methods:
            self.configs(label)

    def method(self, label: str) -> str:
        """Return the method behind a label.

        Raises:
            ConfigError: If there is none.
        """
        return get_method(self._named(label).partition("+")[0]).name

    def test_time(self, label: str) -> str:
        """Return the test-time method behind a label, or "" for none.

        Raises:
            ConfigError: If there is no such test-time method.
        """
        name = self._named(label).partition("+")[2]
        return get_test_time_method(name).name if name else ""

    def _named(self, label: str) -> str:
        values = self.options.get(label, {})
        if not isinstance(values, dict):
            raise ConfigError(f"the options of {label!r} should be a table, not {values!r}")
        return str(values.get("method", label))

    def fields(self, label: str, *, test_time: bool) -> dict[str, Any]:
        """Return the fields that differ from the defaults, of the method or of its test-time method."""
        start = "test_time."
        values = {k: v for k, v in self.options.get(label, {}).items() if k != "method"}
        if test_time:
            return {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}
        return {k: v for k, v in values.items() if not k.startswith(start)}

    def configs(self, label: str) -> list[Config]:
        """Return the configuration of a label, and that of its test-time method if it has one.

        Raises:
            ConfigError: If there is no such method, or a field is unknown or out of range.
        """
        found = [
            get_method(self.method(label)).config.from_dict(self.fields(label, test_time=False))
        ]
        fields, name = self._test_time_fields(label), self.test_time(label)
        if name:
            found.append(get_test_time_method(name).config.from_dict(fields))
        elif fields:
            raise ConfigError(f"{label!r} has no test-time method for {sorted(fields)[0]!r}")
        return found

    def cells(self) -> list[Cell]:
        """Return every cell, data set by data set, so that features are used while they are there.

        Raises:
            ConfigError: If a target has a name that the tables use.
            DataError: If a folder of domains is none.
        """
        from rada.bench.sources import domain_folders

        cells: dict[Cell, None] = {}
        for protocol in self.protocols:
            for spec in self.datasets:
                pairs = [(spec, self.targets if protocol in TRANSFER else ())]
                if protocol == "shift":  # a cell for each: views of large test sets take hours
                    pairs = [(spec, (target,)) for target in self.targets]
                if protocol == "domain" and not self.targets:
                    domains = domain_folders(spec)
                    pairs = [(one, tuple(o for o in domains if o != one)) for one in domains]
                for dataset, targets in pairs:
                    if protocol in TRANSFER:
                        _check_targets(targets)
                    for cell in self._cells(protocol, dataset, targets):
                        cells[cell] = None
        return list(cells)

    def _cells(self, protocol: str, dataset: str, targets: tuple[str, ...]) -> Iterable[Cell]:
        runs = [(shots, seed) for shots in self.shots for seed in self.seeds]
        # Zero-shot first: it shows at once whether the test set can be read.
        learners = [
            label
            for label in self.methods
            if asks_for_choice(self.templates) or get_method(self.method(label)).learns
        ]
        others = [label for label in self.methods if label not in learners]
        for shots, seed in [(0, 0), *runs]:
            for label in learners if shots else others:
                alone = protocol == "shift" and not shots  # needs nothing but what it is tested on
                yield Cell(
                    protocol=protocol,
                    label=label,
                    method=self.method(label),
                    dataset=targets[0] if alone else dataset,
                    shots=shots,
                    seed=seed,
                    model=self.model,
                    targets=targets,
                    options=_pairs(self.fields(label, test_time=False)),
                    allow_fewer=self.allow_fewer,
                    test_time=self.test_time(label),
                    test_time_options=_pairs(self._test_time_fields(label)),
                )

    def _test_time_fields(self, label: str) -> dict[str, Any]:
        """Return the fields of a label's test-time method, with the words of the plan's templates."""
        fields, name = self.fields(label, test_time=True), self.test_time(label)
        if not name or not self.templates or get_method(self.method(label)).learns:
            return fields
        method = get_test_time_method(name)
        config = method.config.from_dict(fields)
        before, used = config.to_dict(), method.from_templates(config, self.templates).to_dict()
        return fields | {key: value for key, value in used.items() if value != before[key]}


def _check_targets(targets: tuple[str, ...]) -> None:
    for spec in targets:
        if spec in (SOURCE, MEAN):
            raise ConfigError(
                f"a target cannot be called {spec!r}: the tables use the word; give it a longer path, as "
                f"{f'./{spec}'!r}"
            )


def _pairs(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return fields as sorted pairs that can be hashed."""
    return tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in values.items()))


def load_plan(path: str | Path, changes: Mapping[str, Any] | None = None) -> Plan:
    """Read a plan from a TOML or YAML file.

    Args:
        path: The file; `.toml`, `.yaml` or `.yml`.
        changes: Fields that go before those of the file.

    Raises:
        ConfigError: If the file cannot be read or a field cannot be used.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if path.suffix.lower() == ".toml":
            values: Any = tomllib.loads(content.decode())
        elif path.suffix.lower() in (".yaml", ".yml"):
            with needed_for("a plan in YAML"):
                import yaml  # type: ignore[import-untyped,unused-ignore]

            try:
                values = yaml.safe_load(content)
            except yaml.YAMLError as error:
                raise ConfigError(f"the plan {str(path)!r} is not YAML: {error}") from error
        else:
            raise ConfigError(f"a plan ends in .toml, .yaml or .yml, not {path.name!r}")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the plan {str(path)!r} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"the plan {str(path)!r} should be a table of fields")
    return Plan.from_dict(values | dict(changes or {}))


def parse_setting(text: str) -> tuple[str, str, Any]:
    """Read `LABEL.FIELD=VALUE`; the value is JSON, or else a word.

    Raises:
        ConfigError: If it has another form.

    Example:
        >>> parse_setting("rada.epochs=10"), parse_setting("mild.method=rada")
        (('rada', 'epochs', 10), ('mild', 'method', 'rada'))
    """
    name, equals, value = text.partition("=")
    label, dot, field = name.partition(".")
    if not (equals and dot and label and field):
        raise ConfigError(f"a setting reads METHOD.FIELD=VALUE, not {text!r}")
    return label, field, parse_value(value)
