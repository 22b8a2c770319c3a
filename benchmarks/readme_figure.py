"""Draw the README's figure from a demo's result.

rada demo --out rada-demo && python benchmarks/readme_figure.py rada-demo/result.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from rada.evaluation import aggregate_runs

OUT = Path(__file__).parents[1] / "docs" / "figures" / "demo.svg"
LOOKS = {
    "rada_probe": ("RAda + probe (default)", "#0b5d93", "o"),
    "rada": ("RAda, the head alone", "#5a9a3c", "^"),
    "linear_probe": ("linear probe", "#b26a00", "s"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    result = json.loads(options.result.read_text())
    rows = aggregate_runs(result["runs"])
    plt.rcParams["svg.hashsalt"] = "rada"
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.1), sharey=True)
    for axes, metric in zip(panels, ("accuracy", "balanced_accuracy"), strict=True):
        for method, (label, colour, marker) in LOOKS.items():
            mine = [row for row in rows if row["method"] == method]
            shots = [row["shots"] for row in mine]
            mean = [100 * row[metric]["mean"] for row in mine]
            std = [100 * (row[metric]["std"] or 0) for row in mine]
            axes.plot(shots, mean, color=colour, marker=marker, label=label)
            low, high = zip(*((m - s, m + s) for m, s in zip(mean, std, strict=True)), strict=True)
            axes.fill_between(shots, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.axhline(
            100 * result["zero_shot"][metric], color="#555", linestyle="--", label="zero-shot"
        )
        axes.axhline(100 * result["chance"], color="#999", linestyle=":", label="chance")
        axes.set_xscale("log", base=2)
        axes.set_xticks(shots, [str(value) for value in shots])
        axes.set_xlabel("labelled images a class")
        axes.set_title(metric.replace("_", " ") + ", %", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, edgecolor="none", fontsize=8, loc="lower center", ncols=len(names))
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, metadata={"Date": None})
    print(options.out)


if __name__ == "__main__":
    main()
