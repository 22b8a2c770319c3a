"""The paper's three tables: what to run for each, and its printed values beside what was measured.

The printed values are those of "One Last Attention for Your Vision-Language Model" (ICCV 2025). Which methods
are run is read from the registries: a row whose method is not there keeps its printed values alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rada.bench.plan import Options, Plan
from rada.bench.recipes import CLIP_B16, COOP_SETS
from rada.core.errors import ConfigError, DataError
from rada.data import open_dataset
from rada.methods import get_method, list_methods
from rada.test_time import list_test_time_methods
from rada.test_time.prompt_align import aligned_methods
from rada.test_time.tpt import prompt_methods

__all__ = ["ALL_IMAGES", "PAPER", "PaperTable", "paper_plan", "present", "without"]

ALL_IMAGES = 1300
"""Shots of full fine-tuning: no class of ImageNet has more training images."""


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        name: How to ask for it.
        title: What it shows.
        plan: What to run, without methods; data sets without their folder.
        columns: Headings of the printed values, as keys of `rows`.
        rows: The printed values by the paper's names, in per cent.
        labels: What to run for a row whose name is no method's title; "" for a row that nothing can run.
        note: What the table does not say.
        options: Fields of the methods' configurations that differ from their defaults, by label.
    """

    name: str
    title: str
    plan: Plan
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, float]]
    labels: Mapping[str, tuple[str, ...]]
    note: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def labels_of(self, row: str) -> tuple[str, ...]:
        """Return the methods of a row that the registries have, as labels of a plan."""
        if row in self.labels:
            return tuple(label for label in self.labels[row] if self._method(label) in _names())
        below, plus, above = row.rpartition(" + ")
        ways = {method.title: method.name for method in list_test_time_methods()}
        if self.name == "ttt" and plus and above in ways:
            return tuple(
                f"{name}+{ways[above]}" for name in _titled(below) if name in prompt_methods()
            )
        return _titled(row)

    def _method(self, label: str) -> str:
        """Return the method of a label, which may be a name for another one with options."""
        named = str(self.options.get(label, {}).get("method", label))
        return named.partition("+")[0]

    def methods(self) -> tuple[str, ...]:
        """Return the labels of all rows, in order."""
        return _unique(label for row in self.rows for label in self.labels_of(row))

    def others(self) -> tuple[str, ...]:
        """Return what else the registries have that fits the table."""
        encoders = _unique(
            label for row in PAPER["fft"].rows for label in PAPER["fft"].labels_of(row)
        )
        tuned = {name for name in encoders if get_method(name).train_encoder} | {"prolip"}
        names = [method.name for method in list_methods() if method.new_classes]
        if self.name == "eft":
            found = [name for name in names if name not in tuned]
        elif self.name == "fft":
            found = [name for name in names if get_method(name).train_encoder]
        else:
            starts = ("zero_shot", *prompt_methods())
            ways = [m.name for m in list_test_time_methods() if m.name != "prompt_align"]
            found = [f"zero_shot+{name}" for name in ways]
            found += [f"{name}+tpt" for name in starts]
            found += [f"{name}+prompt_align" for name in aligned_methods()]
        return tuple(label for label in _unique(found) if label not in self.methods())


def _names() -> set[str]:
    return {method.name for method in list_methods()}


def _titled(title: str) -> tuple[str, ...]:
    """Return the methods of a title, and those that have it with a remark: `RAda + Prompt (CoOp)`."""
    return tuple(
        method.name
        for method in list_methods()
        if method.title == title or method.title.startswith(f"{title} (")
    )


def _unique(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(values))


_TUNED = {"batch_size": 512, "warmup": 0.02}
"""As FLYP and FT publish for ImageNet; of 25,000 steps 500 are warm-up."""

_ALIGNED = {"depth": 3, "epochs": 2, "learning_rate": 2.6e-3, "test_time.learning_rate": 0.04}
"""As PromptAlign's code has it for variants of ImageNet."""

PAPER = {
    "eft": PaperTable(
        "eft",
        "Efficient fine-tuning: base to new classes",
        Plan(
            protocols=("base-to-new",),
            methods=("zero_shot",),
            datasets=COOP_SETS,
            shots=(16,),
            seeds=(1, 2, 3),
            model=CLIP_B16,
            allow_fewer=True,
        ),
        ("Base", "New", "HM"),
        {
            "CLIP": {"Base": 69.34, "New": 74.22, "HM": 71.70},
            "CoOp": {"Base": 82.69, "New": 63.22, "HM": 71.66},
            "CoCoOp": {"Base": 80.47, "New": 71.69, "HM": 75.83},
            "ProGrad": {"Base": 82.48, "New": 70.75, "HM": 76.16},
            "CLIP-Adapter": {"Base": 80.83, "New": 72.93, "HM": 76.67},
            "KgCoOp": {"Base": 80.73, "New": 73.60, "HM": 77.00},
            "MaPLe": {"Base": 82.28, "New": 75.14, "HM": 78.55},
            "DePT + MaPLe": {"Base": 84.85, "New": 74.82, "HM": 79.52},
            "MMA": {"Base": 83.20, "New": 76.80, "HM": 79.87},
            "RAda": {"Base": 82.16, "New": 74.14, "HM": 77.94},
            "RAda + Prompt": {"Base": 84.18, "New": 75.61, "HM": 79.67},
            "RAda + Adapter": {"Base": 84.32, "New": 76.25, "HM": 80.08},
        },
        {"CLIP": ("zero_shot",), "RAda": ("rada", "rada_released")},
        "Printed values are averages of 11 sets. The paper publishes no hyper-parameters; those of "
        "`rada_released` are of its released code.",
    ),
    "fft": PaperTable(
        "fft",
        "Full fine-tuning on ImageNet",
        Plan(
            protocols=("domain",),
            methods=("zero_shot",),
            datasets=("imagenet",),
            targets=("imagenet_v2", "imagenet_r", "imagenet_a", "imagenet_sketch", "objectnet"),
            shots=(ALL_IMAGES,),
            seeds=(1,),
            model=CLIP_B16,
            allow_fewer=True,
        ),
        ("ImageNet", "Mean of the shifts"),
        {
            "CLIP": {"ImageNet": 68.3, "Mean of the shifts": 58.4},
            "LP": {"ImageNet": 79.9, "Mean of the shifts": 57.2},
            "FT": {"ImageNet": 81.3, "Mean of the shifts": 53.8},
            "L2-SP": {"ImageNet": 81.7, "Mean of the shifts": 57.8},
            "LP-FT": {"ImageNet": 81.7, "Mean of the shifts": 60.3},
            "FLYP": {"ImageNet": 82.6, "Mean of the shifts": 59.5},
            "RAda (head alone)": {"ImageNet": 78.1, "Mean of the shifts": 57.8},
            "RAda-FT": {"ImageNet": 81.4, "Mean of the shifts": 61.3},
        },
        {"CLIP": ("zero_shot",), "LP": ("linear_probe",), "RAda (head alone)": ("rada",)},
        "The printed values are of encoders tuned on all training images; their mean is over V2, R, A, "
        "Sketch and ObjectNet.",
        {name: _TUNED | {"accumulate": 16} for name in ("ft", "l2_sp", "lp_ft", "rada_ft")}
        | {"flyp": _TUNED},
    ),
    "ttt": PaperTable(
        "ttt",
        "Test-time training",
        Plan(
            protocols=("shift",),
            methods=("zero_shot",),
            datasets=("imagenet",),
            targets=("imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
            shots=(16,),
            seeds=(1,),
            model=CLIP_B16,
        ),
        ("Mean",),
        {
            "CLIP": {"Mean": 57.20},
            "TPT": {"Mean": 60.81},
            "CoOp + TPT": {"Mean": 62.84},
            "CoCoOp + TPT": {"Mean": 62.61},
            "MaPLe + TPT": {"Mean": 62.31},
            "PromptAlign": {"Mean": 63.55},
            "RAda": {"Mean": 63.50},
            "RAda from 16-shot ImageNet": {"Mean": 64.26},
        },
        {
            "CLIP": ("zero_shot",),
            "TPT": ("zero_shot+tpt",),
            "MaPLe + TPT": ("maple-tpt",),
            "PromptAlign": ("maple+prompt_align",),
            "RAda": ("zero_shot+rada",),
            "RAda from 16-shot ImageNet": ("rada+rada",),
        },
        "The paper publishes no hyper-parameters of RAda at test time. PromptAlign compares tokens with "
        "those of the 16 shots of ImageNet that its prompts learn from; as published, with those of all.",
        {
            "maple+prompt_align": _ALIGNED,
            "maple-tpt": _ALIGNED | {"method": "maple+prompt_align", "test_time.weight": 0.0},
        },
    ),
}
"""The paper's tables by name."""


def present(specs: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Tell which data sets can be opened, and of each other one what belongs where.

    Example:
        >>> there, missing = present(("dtd?root=/nowhere",))
        >>> there, "/nowhere/dtd" in missing["dtd?root=/nowhere"]
        ((), True)
    """
    missing: dict[str, str] = {}
    for spec in specs:
        try:
            open_dataset(spec)
        except DataError as error:
            missing[spec] = str(error).partition(". In torchvision's layout")[0]
    return tuple(spec for spec in specs if spec not in missing), missing


def paper_plan(
    name: str,
    root: str = "data",
    *,
    methods: Sequence[str] = (),
    datasets: Sequence[str] = (),
    **changes: Any,
) -> Plan:
    """Return the plan of one of the paper's tables.

    Args:
        name: "eft", "fft" or "ttt".
        root: Folder of the data sets.
        methods: Labels instead of those of the table; "all" stands for the table's and all others that
            fit it. Zero-shot is always among them, for differences are taken against it.
        datasets: Some of the table's data sets that vary (for "fft" and "ttt" the shifted ones); all of
            them when empty.
        changes: Other fields of the plan; `options` join those of the table.

    Raises:
        ConfigError: If there is no such table, data set or method, or a field cannot be used.

    Example:
        >>> plan = paper_plan("eft", "/data", datasets=["dtd"], seeds=(1,))
        >>> plan.datasets, plan.methods[:3]
        (('dtd?root=/data',), ('zero_shot', 'coop', 'cocoop'))
    """
    if name not in PAPER:
        raise ConfigError(f"the paper has no table {name!r}: there are {', '.join(PAPER)}")
    table = PAPER[name]
    labels = _unique(["zero_shot", *(methods or table.methods())])
    if "all" in labels:
        kept = [label for label in labels if label != "all"]
        labels = _unique([*kept, *table.methods(), *table.others()])
    key = "targets" if table.plan.targets else "datasets"
    chosen = getattr(table.plan, key)
    strange = [one for one in datasets if one not in chosen]
    if strange:
        raise ConfigError(
            f"{strange[0]!r} is none of the data sets of the table {name}: {', '.join(chosen)}"
        )
    fields = table.plan.to_dict() | {key: tuple(datasets) or chosen} | changes
    for place in ("datasets", "targets"):
        fields[place] = tuple(f"{spec}?root={root}" for spec in fields[place])
    given = changes.get("options", {})
    own = table.options
    options = {
        label: {**own.get(label, {}), **given.get(label, {})}
        for label in _unique([*labels, *given])  # the plan refuses options of what is not run
        if label in own or label in given
    }
    fields |= {"methods": labels, "options": options, "recipe": f"paper-{name}"}
    return Plan.from_dict(fields)


def without(plan: Plan, missing: Collection[str]) -> Plan | None:
    """Return what of a plan can be run without some data sets; None for nothing.

    Where nothing but the set to learn from is missing, methods that learn nothing still run under the
    protocol "shift".
    """
    datasets = tuple(spec for spec in plan.datasets if spec not in missing)
    targets = tuple(spec for spec in plan.targets if spec not in missing)
    if plan.targets and not targets:
        return None
    if datasets:
        return dataclasses.replace(plan, datasets=datasets, targets=targets)
    if plan.protocols != ("shift",):
        return None
    labels = tuple(name for name in plan.methods if not get_method(plan.method(name)).learns)
    options = Options({key: values for key, values in plan.options.items() if key in labels})
    return dataclasses.replace(plan, methods=labels, targets=targets, options=options)
