"""Plans that are ready to run; `paper.py` has those of the paper's tables."""

from __future__ import annotations

from dataclasses import replace

from rada.bench.plan import Options, Plan

__all__ = ["CLIP_B16", "COOP_SETS", "recipe"]

FEATURE_METHODS = (
    "zero_shot",
    "zero_shot_ensemble",
    "linear_probe",
    "svm_probe",
    "cross_modal_probe",
    "lp_plus_plus",
    "clap",
    "taskres",
    "gda",
    "prior_probe",
    "clip_adapter",
    "rla",
    "tip_adapter",
    "tip_adapter_f",
    "rada_released",
    "rada",
    "rada_adapter",
    "rada_probe",
)
PROMPT_METHODS = ("coop", "cocoop", "kgcoop", "prograd", "rada_coop", "rada_kgcoop")
COOP_SETS = (
    "imagenet",
    "caltech101",
    "oxford_pets",
    "stanford_cars",
    "oxford_flowers",
    "food101",
    "fgvc_aircraft",
    "sun397",
    "dtd",
    "eurosat",
    "ucf101",
)
IMAGENET_SHIFTS = ("imagenet_v2", "imagenet_r", "imagenet_a", "imagenet_sketch", "objectnet")
CLIP_B16 = "open_clip:ViT-B-16/openai"


def recipe(name: str, root: str = "data") -> Plan:
    """Return a plan that is ready to run.

    Args:
        name: "demo", "quick", "paper-cross" or "paper-dg".
        root: Folder of the real data sets.

    Example:
        >>> recipe("quick").datasets
        ('textiles',)
    """
    plan = _RECIPES[name]
    return replace(
        plan,
        recipe=name,
        datasets=_placed(plan.datasets, root),
        targets=_placed(plan.targets, root),
    )


def _placed(specs: tuple[str, ...], root: str) -> tuple[str, ...]:
    known = (*COOP_SETS, *IMAGENET_SHIFTS)
    return tuple(f"{spec}?root={root}" if spec in known else spec for spec in specs)


_PAPER = Options(
    {
        "tip_adapter": {"views": 10},
        "tip_adapter_f": {"views": 10},
        "gda": {"views": 10},
        "clap": {"views": 20},
    }
)
_RECIPES = {
    "demo": Plan(
        methods=("rada_probe", "rada", "linear_probe", "zero_shot"),
        datasets=("textiles",),
        shots=(1, 2, 4, 8, 16),
    ),
    "quick": Plan(
        methods=FEATURE_METHODS, datasets=("textiles",), shots=(1, 4, 16), allow_fewer=False
    ),
    "paper-cross": Plan(
        protocols=("cross-dataset",),
        methods=(
            *("zero_shot", *PROMPT_METHODS, "clip_adapter", "rada_released"),
            *("rada", "rada_adapter", "rada_probe"),
        ),
        datasets=COOP_SETS[:1],
        targets=COOP_SETS[1:],
        model=CLIP_B16,
    ),
    "paper-dg": Plan(
        protocols=("domain",),
        methods=(*FEATURE_METHODS, *PROMPT_METHODS),
        datasets=COOP_SETS[:1],
        targets=IMAGENET_SHIFTS,
        model=CLIP_B16,
        options=_PAPER,
    ),
}
