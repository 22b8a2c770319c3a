"""The tables of docs/which_method.md, from the committed results of the suite and of fine-tuning.

    python benchmarks/which_method.py [--write]

Prints them; with --write it puts them into the page. A test keeps the page equal to what this prints.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rada.methods import get_method
from rada.report.text import DASH

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "which_method.md"
BEGIN, END = (
    "<!-- generated: python benchmarks/which_method.py -->\n",
    "\n<!-- end of the generated tables -->",
)
DEFAULT = "rada_probe"
Part = dict[str, dict[str, Any]]


def shots(count: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda entry: entry["accuracy"][count]


def split(name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda entry: None if entry[name] is None else entry[name]["accuracy"]


SITUATIONS: list[tuple[str, str, Callable[[dict[str, Any]], float | None]]] = [
    ("1 or 2 photos a class, the classes that were learned", "base to new", split("base")),
    ("the same models, asked for other classes", "base to new", split("new")),
    ("1 photo, drawing or sketch a class, few classes", "PACS, own domain (mean of four)", shots("1")),
    ("4 of them", "PACS, own domain (mean of four)", shots("4")),
    ("16 of them", "PACS, own domain (mean of four)", shots("16")),
    ("16 of them, then images of another kind", "PACS, other domains", shots("16")),
    ("1 tiny image a class", "CIFAR-10", shots("1")),
    ("16 of them", "CIFAR-10", shots("16")),
    ("4 images a class of what no model has seen (fabric defects), each class counted alike", "textiles, balanced accuracy", shots("4")),
    ("16 of them", "textiles, balanced accuracy", shots("16")),
]  # fmt: skip


def name(key: str) -> str:
    return f"`{key}`"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def situations(parts: dict[str, Part]) -> list[str]:
    """The best three of each situation, with the default and zero-shot."""
    lines = [
        "| you have | best | second | third | the default | zero-shot |",
        "|:--|:--|:--|:--|--:|--:|",
    ]
    for title, key, take in SITUATIONS:
        found = {method: take(entry) for method, entry in parts[key].items()}
        values = {method: value for method, value in found.items() if value is not None}
        best = sorted(values, key=lambda method: (-values[method], method))[:3]
        cells = [f"{name(method)} {percent(values[method])}" for method in best]
        cells += [percent(values[DEFAULT]), percent(values["zero_shot"])]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def methods(parts: dict[str, Part]) -> list[str]:
    """What each method costs and risks."""
    lines = [
        "| method | below zero-shot, learned | below zero-shot, new | seconds to fit | calibration error | new classes |",
        "|:--|--:|--:|--:|--:|:--|",
    ]
    groups, pacs = parts["base to new"], parts["PACS, own domain (mean of four)"]
    for key in sorted(groups, key=lambda method: groups[method]["seconds"]):
        entry = groups[key]
        below = entry["below_zero_shot"]
        cells = [
            name(key),
            str(below["base"]["count"]),
            str(below["new"]["count"]) if entry["new"] is not None else DASH,
            f"{entry['seconds']:.2g}",
            f"{pacs[key]['ece']:.2f}",
            "yes" if get_method(key).new_classes else "no",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def fine_tuning(result: dict[str, Any]) -> list[str]:
    lines = [
        "| method | own domain | mean of the others | seconds |",
        "|:--|--:|--:|--:|",
    ]
    own = percent(result["zero_shot"]["in_distribution"]["accuracy"])
    others = result["zero_shot"]["out_of_distribution"]["mean"]
    lines.append(f"| Zero-shot | {own} | {percent(others)} | 0 |")
    for row in result["rows"]:
        lines.append(f"| {row['method']} | {row['photo']} | {row['mean']} | {row['seconds']:.0f} |")
    return lines


def tables() -> str:
    """All tables of the page."""
    results = ROOT / "benchmarks" / "results"
    suite = json.loads((results / "suite.json").read_text(encoding="utf-8"))["parts"]["confirm"]
    tuned = json.loads((results / "finetune.json").read_text(encoding="utf-8"))
    parts = [
        "**Best in each situation**, accuracy in per cent:",
        "",
        *situations(suite),
        "",
        "**What each costs and risks.** On how many of the ImageNet problems, of learned and of new classes, it is below zero-shot by more than two standard "
        "errors; seconds for one fit there; calibration error on PACS:",
        "",
        *methods(suite),
        "",
        "**Training the encoder as well**, on photos of PACS with all images, three seeds:",
        "",
        *fine_tuning(tuned),
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="put them into the page")
    found = tables()
    if not parser.parse_args().write:
        print(found)
        return
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + found + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
