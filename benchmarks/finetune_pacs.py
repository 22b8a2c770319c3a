"""Full fine-tuning under domain shift: train on photos, test on art, cartoons and sketches.

python benchmarks/finetune_pacs.py PACS [--epochs 5] [--seeds 1,2,3] [--methods ...] [--work DIR]

PACS is a folder DOMAIN/{train,test}/CLASS. Each run is one `rada.FineTuner.fit` in `--work`, so that a run
that was interrupted goes on; several of these scripts may run side by side with different `--seeds`, and
`--report` makes table, figure and JSON of what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from rada import FineTuner
from rada.evaluation import environment
from rada.methods import get_method
from rada.report.robustness import accuracies, draw_robustness

ROOT = Path(__file__).resolve().parents[1]
SHIFTED = ("art_painting", "cartoon", "sketch")
# Name of a row: its method, its title, what differs from the defaults.
ORDER = ("linear_probe", "ft", "l2_sp", "lp_ft", "flyp", "rada", "rada_probe", "rada_ft")
ROWS = {name: (name, get_method(name).title, {}) for name in ORDER}
ROWS["rada_ft_image"] = ("rada_ft", "RAda-FT, image encoder alone", {"train": "image"})
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def run(data: Path, row: str, seed: int, epochs: int, work: Path) -> None:
    """Do one run unless it is done; what is kept is its result, not the model."""
    path = work / f"{row}-{seed}.json"
    if path.exists():
        return
    method, _, changes = ROWS[row]
    found = get_method(method)
    common = {"epochs": epochs, "evaluate_every": 0} if found.train_encoder else {}
    tuner = FineTuner("embedded", method, found.config(**common | changes))
    ood = {name: data / name for name in SHIFTED}
    result = tuner.fit(data / "photo", ood, seed=seed, wise=ALPHAS)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    print(row, seed, accuracies(result["tuned"]), f"{result['seconds']:.0f} s", flush=True)


def mean_point(results: list[dict], find) -> tuple[float, float]:
    points = [accuracies(find(result)) for result in results]
    return tuple(statistics.fmean(values) for values in zip(*points, strict=True))


def cell(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):.1f} ± {100 * spread:.1f}"


def report(work: Path, seeds: list[int], out: Path, figures: Path) -> None:
    rows, tuned, curves = [], {}, {}
    zero_shot = None
    for row, (_, title, _) in ROWS.items():
        paths = [work / f"{row}-{seed}.json" for seed in seeds]
        results = [json.loads(path.read_text()) for path in paths if path.exists()]
        if not results:
            continue
        zero_shot = results[0]["zero_shot"]
        inside = [r["tuned"]["in_distribution"]["accuracy"] for r in results]
        outside = {
            name: [r["tuned"]["out_of_distribution"][name]["accuracy"] for r in results]
            for name in SHIFTED
        }
        means = [r["tuned"]["out_of_distribution"]["mean"] for r in results]
        rows.append(
            {
                "method": title,
                "seeds": len(results),
                "photo": cell(inside),
                **{name: cell(values) for name, values in outside.items()},
                "mean": cell(means),
                "wise_half": mean_point(results, lambda r: r["wise"][ALPHAS.index(0.5)]),
                "seconds": statistics.fmean(r["seconds"] for r in results),
                "trainable": results[0]["trainable_parameters"],
            }
        )
        tuned[title] = mean_point(results, lambda r: r["tuned"])
        curves[title] = [
            mean_point(results, lambda r, i=i: r["wise"][i]) for i in range(len(ALPHAS))
        ]
    lines = [
        "| method | photo (ID) | art | cartoon | sketch | OOD mean | WiSE 0.5: ID / OOD | seconds |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    first = [zero_shot["out_of_distribution"][name]["accuracy"] for name in SHIFTED]
    point = accuracies(zero_shot)
    lines.append(
        f"| zero-shot | {100 * point[0]:.1f} | "
        + " | ".join(f"{100 * v:.1f}" for v in first)
        + f" | {100 * point[1]:.1f} | | |"
    )
    for row in rows:
        half = row["wise_half"]
        lines.append(
            f"| {row['method']} | {row['photo']} | "
            + " | ".join(row[name] for name in SHIFTED)
            + f" | {row['mean']} | {100 * half[0]:.1f} / {100 * half[1]:.1f} | {row['seconds']:.0f} |"
        )
    print("\n".join(lines))
    draw_robustness(figures / "finetune.svg", point, tuned, curves)
    out.mkdir(parents=True, exist_ok=True)
    record = {"command": "benchmarks/finetune_pacs.py", "zero_shot": zero_shot, "rows": rows}
    record |= {
        "curves": curves,
        "alphas": ALPHAS,
        "config": results[0]["config"] if results else None,
    }
    record |= {"environment": environment()}
    (out / "finetune.json").write_text(json.dumps(record, indent=2) + "\n")
    (out / "finetune.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--methods", default=",".join(ROWS))
    parser.add_argument("--work", type=Path, default=Path("finetune-runs"))
    parser.add_argument("--report", action="store_true", help="only report what is there")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if not options.report:
        for seed in seeds:
            for row in options.methods.split(","):
                run(options.data, row, seed, options.epochs, options.work)
    report(options.work, seeds, options.out, options.figures)


if __name__ == "__main__":
    main()
