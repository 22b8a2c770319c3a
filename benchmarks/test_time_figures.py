"""Test-time methods on shifted and corrupted images: JSON, two tables and a figure.

    python benchmarks/test_time_views.py out/views --minutes 60   # encodes, once
    python benchmarks/test_time_figures.py out/views              # the figures, on test images
    python benchmarks/test_time_figures.py out/views --tune       # TTTConfig's defaults, on training images

The conditions are those of `test_time_views.py`, and noisy views around CLIP features of ImageNet images.
Everything is measured against doing nothing, on the same images: the change of accuracy with its 95 %
interval (bootstrap over images, an image being drawn with all its seeds and corruptions). The second table has
side by side what TTA-VLM (arXiv 2506.24000) asks for: accuracy, calibration error, detection of images that belong
to none of the candidates (AUROC of the largest probability, against images of other data), and stability, the
spread of accuracy over orders of the images (nothing for methods that start anew with each) and over seeds of the views.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score
from test_time_views import DATA, encoded
from torch import Tensor
from torch.nn.functional import normalize

from rada.core.storage import write_json
from rada.encoders import DualEncoder, load_encoder
from rada.evaluation import environment, evaluate_logits
from rada.features import ClassSet, Features
from rada.methods import AdaptedModel, Facts, get_method
from rada.methods.base import NoConfig
from rada.test_time import TTTConfig, ViewConfig, adapt_views, get_test_time_method
from rada.test_time.base import ViewPredictor
from rada.test_time.selection import (
    gather_views,
    keep_confident,
    mean_log_probability,
    view_entropies,
)

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ORDERS = 5
GROUP = "CLIP, made views"
NOTHING = "zero_shot"
ONLINE = ("tda", "rada_online")
CLIP_NOISE = {"little": 0.4, "much": 0.8}
CLIP_CLASSES, CLIP_TASKS, CLIP_SCALE = 50, 4, 100.0
OPTIONS: dict[str, dict[str, Any]] = {
    "selection 0.3": {"selection": 0.3},
    "selection 1": {"selection": 1.0},
    "3 steps": {"steps": 3},
    "kept views": {"predict_with": "kept"},
    "online": {"episodic": False},
}
"""What else `--tune` tries, with the default step and gate."""


def rows() -> dict[str, tuple[str, ViewConfig]]:
    """Return what is compared with doing nothing: test-time method and configuration, by row."""
    names = ("mean_of_views", "confident_views", "tpt", "zero", "mta", "tda")
    found = {name: (name, get_test_time_method(name).config()) for name in names}
    found["rada"] = ("rada", TTTConfig())
    found["rada_ungated"] = ("rada", TTTConfig(agreement=0.0))
    found["rada_online"] = ("rada", TTTConfig(episodic=False))
    return found


def variants(features: Features) -> dict[str, Tensor]:
    """Return the logits of what `--tune` compares: lengths of a step and gates, and other options."""
    views, text, scale = features.image_features, features.text_features, features.scale
    assert text is not None and scale is not None
    logits = scale * views @ text.T
    kept = keep_confident(view_entropies(logits), TTTConfig().kept(views.shape[1]))
    mean = mean_log_probability(gather_views(logits, kept))
    share = (logits.argmax(-1) == mean.argmax(-1, keepdim=True)).double().mean(1, keepdim=True)
    found = {"mean of views": mean_log_probability(logits), "confident views": mean}
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4):
        free = TTTConfig(max_step=step, agreement=0.0)
        adapted = adapt_views(views, text, scale, None, free)
        for agreement in (0.0, 0.3, 0.5, 0.7, 0.9):
            gated = torch.where(share >= agreement, adapted, logits[:, 0])
            found[f"step {step:g}, agreement {agreement:g}"] = gated
    for name, options in OPTIONS.items():
        found[name] = adapt_views(views, text, scale, None, TTTConfig(**options))
    return found


@dataclass(eq=False)
class Condition:
    """One condition: features of its images by seed of the views, and the rows' logits.

    Attributes:
        name: Conditions of one name, which differ in their classes, are one.
        group: Conditions that are summed up together.
        image: What an image is known by: the corruptions of CIFAR-10 share their images.
        features: By seed; later seeds may have fewer images.
        files: Where the features are, by seed; none for CLIP's.
        logits: By row and seed.
        outside: Views of images of none of the classes, by seed.
        detection: AUROC of the largest probability, its images against those outside, by row and seed.
    """

    name: str
    group: str
    image: str
    features: dict[int, Features]
    files: dict[int, list[Path]] = field(default_factory=dict)
    logits: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    outside: dict[int, Tensor] = field(default_factory=dict)
    detection: dict[str, dict[int, float]] = field(default_factory=dict)


def encoded_conditions(
    options: argparse.Namespace, encoder: DualEncoder, part: str
) -> dict[str, Condition]:
    """Return the conditions that `test_time_views.py` has encoded."""
    found = {}
    for name, by_seed in encoded(options.folder, part, options.views, options.seeds).items():
        group, features = "PACS", {}
        if name.startswith("cifar10"):
            group = "CIFAR-10" if name == "cifar10 clean" else "CIFAR-10 corrupted"
        for seed, paths in by_seed.items():
            parts = [Features.load(path) for path in paths]
            features[seed] = Features(
                torch.cat([part.image_features for part in parts]),
                torch.cat([part.labels for part in parts]),
                parts[0].classes,
                text_features=encoder.encode_classes(parts[0].classes),
                scale=encoder.scale,
            )
        image = "cifar10" if name.startswith("cifar10") else name
        found[name] = Condition(name, group, image, features, by_seed)
    return found


def clip_conditions(options: argparse.Namespace, part: str) -> dict[str, Condition]:
    """Return noisy views around CLIP ViT-B/32 features of ImageNet images.

    The noise is that of images: a multiple of the difference of two others, of another length for each
    view; the original has half as much as a view has in the mean, for it is the better view as a rule.
    """
    with np.load(options.data / "clip_vitb32_imagenet.npz", allow_pickle=False) as stored:
        text, images = (
            normalize(torch.tensor(stored[key].astype("f4")), dim=-1)
            for key in ("text", "two_shot")
        )
        labels = torch.tensor(stored["two_shot_labels"].astype("i8"))
    # The classes of training and test cases are others.
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    order = order if part == "train" else order.flip(0)
    found = {}
    for place, (name, noise) in enumerate(CLIP_NOISE.items()):
        for task, classes in enumerate(order.split(CLIP_CLASSES)[:CLIP_TASKS]):
            chosen = (labels[:, None] == classes).nonzero()
            base, true = images[chosen[:, 0]], chosen[:, 1]
            names = tuple(str(number) for number in classes.tolist())
            features = {}
            for seed in options.seeds:
                generator = torch.Generator().manual_seed(10_000 * seed + 100 * place + task)
                shape = (len(base), options.views)
                first, second = (
                    images[torch.randint(len(images), shape, generator=generator)] for _ in range(2)
                )
                amount = 2 * noise * torch.rand(*shape, 1, generator=generator)
                amount[:, 0] = noise / 2
                views = normalize(base[:, None] + amount * (first - second), dim=-1)
                features[seed] = Features(
                    views, true, names, text_features=text[classes], scale=CLIP_SCALE
                )
            image = f"clip {task}"
            found[f"clip {name} {task}"] = Condition(f"clip {name}", GROUP, image, features)
    return found


def set_outside(found: dict[str, Condition]) -> None:
    """Give every condition images of none of its classes: CIFAR-10's to PACS, PACS's to CIFAR-10, others' to CLIP.

    Images of a class that both know are left out, and no more are taken than the condition has.
    """
    for condition in found.values():
        other = partner(condition, list(found.values()))
        if other is None:
            continue
        for seed, features in condition.features.items():
            views = other.features.get(seed, next(iter(other.features.values())))
            strange = [
                views.classes[label] not in features.classes for label in views.labels.tolist()
            ]
            condition.outside[seed] = views.image_features[strange][: len(features)]


def partner(condition: Condition, found: list[Condition]) -> Condition | None:
    """Return the condition whose images are outside of another one's classes."""
    if condition.files:
        pacs = condition.group == "PACS"
        return next((one for one in found if one.files and (one.group == "PACS") != pacs), None)
    alike = [one for one in found if one.name == condition.name]
    other = alike[(alike.index(condition) + 1) % len(alike)]
    return None if other is condition else other


def model_of(features: Features, encoder: DualEncoder | None) -> tuple[AdaptedModel, ClassSet]:
    """Return the zero-shot model on the classes of features."""
    classes = features.class_set()
    assert features.scale is not None
    facts = Facts(features.dim, features.scale, classes.names)
    return get_method("zero_shot").build(facts, NoConfig(), {}, encoder), classes


def predict(condition: Condition, encoder: DualEncoder | None, tune: bool) -> None:
    """Fill in the logits and the detection of every row; those of TPT are kept beside the features."""
    for seed, features in condition.features.items():
        model, classes = model_of(features, encoder)
        found = {NOTHING: model.logits(features.plain(), classes)}
        outside = condition.outside.get(seed)
        strange: dict[str, Tensor] = {}
        if outside is not None:
            strange[NOTHING] = model.logits(outside[:, 0], classes)
        if tune:
            found |= variants(features)
        for row, (name, config) in ({} if tune else rows()).items():
            method = get_test_time_method(name)
            if method.needs and not condition.files:
                continue  # CLIP's features come without an encoder
            predictor = method.predictor(model, classes, config, progress=False)
            if name == "tpt":
                found[row] = torch.cat(
                    [
                        kept(
                            path.with_suffix(".tpt.safetensors"),
                            predictor,
                            Features.load(path).image_features,
                        )
                        for path in condition.files[seed]
                    ]
                )
                if outside is not None:
                    path = condition.files[seed][0].with_suffix(".tpt-outside.safetensors")
                    strange[row] = kept(path, predictor, outside)
                continue
            found[row] = predictor(features.image_features)
            if (
                outside is not None
            ):  # those that go on from image to image go on from the condition's own
                strange[row] = predictor(outside)
        for row, logits in found.items():
            condition.logits.setdefault(row, {})[seed] = logits
            if row in strange:
                condition.detection.setdefault(row, {})[seed] = detected(logits, strange[row])


def kept(path: Path, predictor: ViewPredictor, views: Tensor) -> Tensor:
    """Return a predictor's logits, from a file if it has those of as many images."""
    if path.exists() and len(known := load_file(path)["logits"]) == len(views):
        return known
    logits = predictor(views)
    save_file({"logits": logits.contiguous()}, path)
    return logits


def detected(own: Tensor, outside: Tensor) -> float:
    """Return the AUROC of the largest probability, of images of the classes against others."""
    scores = torch.cat([own, outside]).double().softmax(-1).amax(-1)
    truth = torch.cat([torch.ones(len(own)), torch.zeros(len(outside))])
    return float(roc_auc_score(truth.numpy(), scores.numpy()))


def orders(condition: Condition, encoder: DualEncoder | None) -> dict[str, list[float]]:
    """Return the accuracy of the online rows over orders of the images of one seed."""
    features = next(iter(condition.features.values()))
    found: dict[str, list[float]] = {}
    for row in ONLINE:
        name, config = rows()[row]
        for order in range(ORDERS):
            chosen = np.random.default_rng(order).permutation(len(features))
            model, classes = model_of(features, encoder)
            predictor = get_test_time_method(name).predictor(model, classes, config, progress=False)
            logits = predictor(features.image_features[chosen])
            right = (logits.argmax(-1) == features.labels[chosen]).double().mean()
            found.setdefault(row, []).append(float(right))
    return found


def summary(found: list[Condition]) -> dict[str, Any]:
    """Return accuracy, its change with the interval, and calibration of some conditions together."""
    table = {}
    names = [row for row in found[0].logits if all(row in part.logits for part in found)]
    for row in names:
        gains: dict[tuple[str, int], list[float]] = {}
        errors, accuracies, detections = [], [], []
        for condition in found:
            detections += condition.detection.get(row, {}).values()
            for seed, features in condition.features.items():
                logits, nothing = (condition.logits[name][seed] for name in (row, NOTHING))
                right, before = (
                    (part.argmax(-1) == features.labels).double() for part in (logits, nothing)
                )
                errors.append(evaluate_logits(logits, features.labels, features.classes).ece)
                accuracies.append(right)
                for index, gain in enumerate((right - before).tolist()):
                    gains.setdefault((condition.image, index), []).append(gain)
        table[row] = {
            "accuracy": float(torch.cat(accuracies).mean()),
            "gain": sum(map(sum, gains.values())) / sum(map(len, gains.values())),
            "gain_interval": bootstrap(list(gains.values())),
            "calibration_error": sum(errors) / len(errors),
            "detection": sum(detections) / len(detections) if detections else None,
            "seed_spread": spread_over_seeds(found, row),
        }
    return table


def spread_over_seeds(found: list[Condition], row: str) -> float | None:
    """Return the mean range of accuracy over seeds of the views, on the images that all seeds have."""
    ranges = []
    for condition in found:
        if len(condition.features) > 1:
            count = min(map(len, condition.features.values()))
            values = [
                float(
                    (condition.logits[row][seed][:count].argmax(-1) == own.labels[:count])
                    .double()
                    .mean()
                )
                for seed, own in condition.features.items()
            ]
            ranges.append(max(values) - min(values))
    return sum(ranges) / len(ranges) if ranges else None


def bootstrap(gains: list[list[float]], draws: int = 4000) -> list[float]:
    """95 % interval of the mean gain; whole images are drawn."""
    sums, counts = (np.array([of(own) for own in gains]) for of in (sum, len))
    chosen = np.random.default_rng(0).integers(len(gains), size=(draws, len(gains)))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)
    return [float(bound) for bound in np.quantile(means, [0.025, 0.975])]


def grouped(found: dict[str, Condition]) -> dict[str, list[Condition]]:
    """Return the conditions of each group, of all images and of everything."""
    groups: dict[str, list[Condition]] = {}
    for condition in found.values():
        groups.setdefault(condition.group, []).append(condition)
    images = [condition for condition in found.values() if condition.files]
    if images:
        groups["all images"] = images
    return groups | {"all": list(found.values())}


def extremes(tables: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return of each row its worst condition, and the conditions that are surely better or worse."""
    found: dict[str, dict[str, Any]] = {}
    for row in dict.fromkeys(row for table in tables.values() for row in table):
        if row == NOTHING:
            continue
        own = {name: table[row] for name, table in tables.items() if row in table}
        worst = min(own, key=lambda name: own[name]["gain"])
        found[row] = {
            "mean_gain": sum(entry["gain"] for entry in own.values()) / len(own),
            "worst": worst,
            "worst_gain": own[worst]["gain"],
            "worse": [name for name, entry in own.items() if entry["gain_interval"][1] < 0],
            "better": [name for name, entry in own.items() if entry["gain_interval"][0] > 0],
        }
    return found


def draw(groups: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the gain over zero-shot of every row, by group."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    names = [name for name in groups["all images"] if name != NOTHING]
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for place, name in enumerate(names):
        own = {group: table[name] for group, table in groups.items() if name in table}
        gains = [100 * entry["gain"] for entry in own.values()]
        bounds = [[100 * bound for bound in entry["gain_interval"]] for entry in own.values()]
        errors = [
            [gain - low for gain, (low, _) in zip(gains, bounds, strict=True)],
            [high - gain for gain, (_, high) in zip(gains, bounds, strict=True)],
        ]
        shift = (place - (len(names) - 1) / 2) * 0.08
        places = [list(groups).index(group) + shift for group in own]
        axes.errorbar(places, gains, errors, fmt="o", markersize=3, label=name.replace("_", " "))
    axes.axhline(0, color="grey", linewidth=1)
    axes.set_xticks(
        range(len(groups)),
        [f"{group}\nzero-shot {100 * t[NOTHING]['accuracy']:.0f} %" for group, t in groups.items()],
    )
    axes.set_ylabel("accuracy minus zero-shot, points")
    figure.legend(ncols=5, loc="outside lower center", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="what test_time_views.py wrote")
    parser.add_argument("--views", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the views")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--conditions", nargs="+", help="only these, such as 'pacs sketch'")
    parser.add_argument("--tune", action="store_true", help="compare settings on training images")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the CLIP features")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> tuple[dict[str, Condition], dict[str, Any]]:
    """Return the conditions with every logit, and the spread over orders."""
    encoder = load_encoder(options.model)
    part = "train" if options.tune else "test"
    found = encoded_conditions(options, encoder, part) | clip_conditions(options, part)
    if options.conditions:
        found = {name: found[name] for name in options.conditions}
    if not options.tune:
        set_outside(found)
    spread: dict[str, Any] = {}
    for name, condition in found.items():
        own = encoder if condition.files else None
        predict(condition, own, options.tune)
        if own is not None and not options.tune:
            spread[name] = orders(condition, own)
        counts = {seed: len(features) for seed, features in condition.features.items()}
        print(f"{name}: images by seed {counts}", flush=True)
    return found, spread


def table(result: dict[str, Any]) -> str:
    """Return the groups, the worst condition, calibration and order as a table in Markdown."""
    groups = result["groups"]
    lines = [
        f"| | {' | '.join(groups)} | worst condition | calibration error | orders |",
        f"|---|{'---|' * (len(groups) + 3)}",
    ]
    whole = groups["all images"] if "all images" in groups else groups["all"]
    for row in dict.fromkeys(row for part in groups.values() for row in part):
        cells = []
        for part in groups.values():
            if row not in part:
                cells.append("-")
            elif row == NOTHING:
                cells.append(f"{100 * part[row]['accuracy']:.1f}")
            else:
                low, high = (f"{100 * bound:+.1f}" for bound in part[row]["gain_interval"])
                cells.append(f"{100 * part[row]['gain']:+.1f} [{low}, {high}]")
        worst = result["extremes"].get(row)
        cells.append(f"{100 * worst['worst_gain']:+.1f} {worst['worst']}" if worst else "-")
        cells.append(f"{100 * whole[row]['calibration_error']:.1f}" if row in whole else "-")
        spread = [max(own[row]) - min(own[row]) for own in result["orders"].values() if row in own]
        cells.append(f"{100 * sum(spread) / len(spread):.1f}" if spread else "-")
        lines.append(f"| {row.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines).replace("-0.0", "0.0").replace("+0.0", "0.0")


def side_by_side(result: dict[str, Any]) -> str:
    """Return accuracy, calibration, detection and stability as a table in Markdown, of all images or of all."""
    groups = result["groups"]
    whole = groups["all images"] if "all images" in groups else groups["all"]
    lines = [
        "| | accuracy | calibration error | detection, AUROC | over orders | over seeds |",
        "|---|---|---|---|---|---|",
    ]

    def shown(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    for row, entry in whole.items():
        spread = [max(own[row]) - min(own[row]) for own in result["orders"].values() if row in own]
        over = sum(spread) / len(spread) if spread else 0.0 if result["orders"] else None
        cells = [entry["accuracy"], entry["calibration_error"], entry["detection"], over]
        cells.append(entry["seed_spread"])
        lines.append(f"| {row.replace('_', ' ')} | {' | '.join(map(shown, cells))} |")
    return "\n".join(lines)


def report(result: dict[str, Any]) -> None:
    """Print the tables, and which conditions are surely better or worse."""
    print(table(result))
    print(side_by_side(result))
    for row, entry in result["extremes"].items():
        print(
            f"{row:28} mean over conditions {100 * entry['mean_gain']:+.2f}; surely worse "
            f"{entry['worse']}, surely better {entry['better']}"
        )


def main() -> None:
    options = arguments()
    found, spread = measured(options)
    tables = {
        name: summary([condition for condition in found.values() if condition.name == name])
        for name in dict.fromkeys(condition.name for condition in found.values())
    }
    result = {
        "images": {
            name: {str(seed): len(part) for seed, part in condition.features.items()}
            for name, condition in found.items()
        },
        "views": options.views,
        "encoder": options.model,
        "part": "train" if options.tune else "test",
        "configs": {row: config.to_dict() for row, (_, config) in rows().items()},
        "groups": {group: summary(own) for group, own in grouped(found).items()},
        "extremes": extremes(tables),
        "conditions": tables,
        "orders": spread,
        "environment": environment(),
    }
    write_json(options.out / f"{'test_time_tuning' if options.tune else 'test_time'}.json", result)
    if not options.tune:
        draw(result["groups"], options.figures / "test_time.svg")
    report(result)


if __name__ == "__main__":
    main()
