"""Keep what the documentation shows of a benchmark: its cells as one JSON file, its figures as SVG, its tables.

    rada bench ... --out DIR
    python benchmarks/keep_bench.py DIR NAME "rada bench ... --out DIR"

With --busy the seconds are left out: on a machine with other work they would say little.
Writes benchmarks/results/bench_NAME.json and docs/figures/bench_NAME_*.svg, and prints the tables as Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rada.bench.figures import base_new_figure, shots_figure
from rada.bench.page import markdown
from rada.bench.tables import load_runs, result_tables
from rada.core.storage import write_bytes, write_json

ROOT = Path(__file__).parents[1]
_KEPT = (
    "parts",
    "harmonic_mean",
    "config",
    "trainable_parameters",
    "fit_seconds",
    "predict_seconds",
    "memory",
)


_SECONDS = ("fit_seconds", "predict_seconds")


def condensed(result: dict[str, Any], busy: bool) -> dict[str, Any]:
    """Return what is kept of one cell: no paths, no training curve, no seconds of a busy machine."""
    cell = result["cell"]
    found = {key: cell[key] for key in ("protocol", "label", "method", "shots", "seed")}
    found["data"] = result["data"]
    kept = [key for key in _KEPT if key in result and not (busy and key in _SECONDS)]
    found |= {key: result[key] for key in kept}
    for key in ("strength", "strength_choice", "effective"):
        if key in result["record"]:
            found[key] = result["record"][key]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("name")
    parser.add_argument("command")
    parser.add_argument("--busy", action="store_true", help="leave out seconds")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    options = parser.parse_args()
    runs = load_runs(options.directory)
    write_json(
        options.out / f"bench_{options.name}.json",
        {
            "command": options.command,
            "environment": runs.results[0]["environment"],
            "results": [condensed(result, options.busy) for result in runs.results],
        },
    )
    for protocol in sorted({result["cell"]["protocol"] for result in runs.results}):
        figure = None
        if protocol == "few-shot":
            figure = shots_figure(runs, runs.datas(protocol), "mean of the data sets")
        elif protocol == "base-to-new":
            figure = base_new_figure(runs, runs.shots(protocol)[-1])
        if figure is not None:
            kind = protocol.replace("-", "_")
            path = options.figures / f"bench_{options.name}_{kind}.svg"
            write_bytes(path, figure.wide.svg.encode())
            print(path)
    print("\n".join(map(markdown, result_tables(runs, "zero_shot"))))


if __name__ == "__main__":
    main()
