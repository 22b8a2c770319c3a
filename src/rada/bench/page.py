"""A benchmark as files: CSV, Markdown, LaTeX and one self-contained page."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rada.bench.cells import WAIT
from rada.bench.paper_results import paper_table
from rada.bench.tables import ResultTable, Runs, load_runs, long_rows, result_tables
from rada.core.errors import CheckpointError
from rada.core.output import claim
from rada.report.blocks import Block, Details, Page, Pairs, Row, Section, Table, Text, render_page
from rada.report.text import DASH, MAIN_ROWS, count

__all__ = ["build_page", "latex", "markdown", "write_files"]

_FIELDS = ("protocol", "data", "method", "shots", "part", "mean", "std", "seeds")
_READING = (
    "Mean and standard deviation over the seeds. Differences are taken seed by seed against {}; their "
    "95 % interval is Student's over the seeds, so it speaks of other draws of shots, not of other data "
    "sets. Whatever a method chooses, it chooses on the shots."
)
_HEADINGS = {
    "few-shot": "Few-shot accuracy",
    "base-to-new": "From base to new classes",
    "cross-dataset": "Other data sets",
    "domain": "Other domains",
    "shift": "Shifted test sets",
}


def write_files(directory: str | Path, reference: str = "zero_shot") -> dict[str, Path]:
    """Write `results.csv`, `results.md`, `results.tex` and `index.html` into a benchmark's folder.

    Args:
        directory: The folder.
        reference: The method that differences are taken against.

    Returns:
        The paths by format.

    Raises:
        CheckpointError: If the folder holds no results, or results that cannot be used.
        ConfigError: If the reference was not run.
        OutputError: If files are in the way that rada did not write.
        StorageError: If the folder cannot be written.
    """
    folder, runs = Path(directory), load_runs(directory)
    if not runs.results and not runs.failures:
        raise CheckpointError(f"{str(directory)!r} holds no results yet")
    printed = paper_table(runs)
    tables = [*([] if printed is None else [printed]), *result_tables(runs, reference)]
    tables += _failure_table(runs)
    texts = {
        "csv": ("results.csv", _csv(runs, reference)),
        "markdown": ("results.md", "\n".join(map(markdown, tables))),
        "latex": ("results.tex", "\n".join(map(latex, tables))),
    }
    page = render_page(build_page(runs, reference))
    with claim(folder, "bench", wait=WAIT) as out:
        out.take("index.html", *(name for name, _ in texts.values()))
        for name, text in texts.values():
            out.write_bytes(name, text.encode())
        html = out.write_bytes("index.html", page.encode())
    return {key: folder / name for key, (name, _) in texts.items()} | {"html": html}


def _csv(runs: Runs, reference: str) -> str:
    stream = io.StringIO()
    extra = ("difference", "low", "high")
    writer = csv.DictWriter(stream, [*_FIELDS, *extra, "reference"], lineterminator="\n")
    writer.writeheader()
    for row in long_rows(runs, reference):
        rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}
        writer.writerow(rounded | {"reference": reference})
    return stream.getvalue()


def markdown(table: ResultTable) -> str:
    r"""Return a table as Markdown.

    Example:
        >>> print(markdown(ResultTable("T", ["a", "b"], [["x|y", "1"]])))
        ### T
        <BLANKLINE>
        | a | b |
        |:--|--:|
        | x\|y | 1 |
        <BLANKLINE>
    """
    lines = [f"### {table.title}", "", _line(table.columns)]
    lines.append("|:--|" + "--:|" * (len(table.columns) - 1))
    lines += [_line(row) for row in table.rows]
    return "\n".join([*lines, *(["", table.note] if table.note else []), ""])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def latex(table: ResultTable) -> str:
    """Return a table as LaTeX, for the package booktabs."""
    rows = [" & ".join(map(_tex, row)) + r" \\" for row in table.rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_tex(table.title)}}}",
            rf"  \begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"    \toprule",
            "    " + " & ".join(map(_tex, table.columns)) + r" \\",
            r"    \midrule",
            *(f"    {row}" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex(text: str) -> str:
    r"""Escape a cell.

    Example:
        >>> _tex("a_b 5 % ± 1")
        'a\\_b 5 \\% $\\pm$ 1'
    """
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    for sign, code in (("±", r"$\pm$"), ("\u2212", "$-$"), ("\u2013", "--"), ("\u00a0", "~")):
        escaped = escaped.replace(sign, code)
    return escaped.replace("~~", "~")


def build_page(runs: Runs, reference: str) -> Page:
    """Return the page of a benchmark."""
    from rada.bench.figures import cost_figure

    tables = result_tables(runs, reference)
    printed = paper_table(runs)
    sections = [] if printed is None else [Section("Beside the paper", _blocks(printed))]
    rest = tables[:-1]
    for protocol in runs.protocols():
        mine = [table for table in rest if table.title.startswith(_TITLES[protocol])]
        sections.append(Section(_HEADINGS[protocol], _protocol_blocks(runs, protocol, mine)))
    if tables:
        costs = [cost_figure(runs, protocol) for protocol in runs.protocols()]
        blocks: list[Block] = [block for block in costs if block is not None]
        sections.append(Section("What it costs", [*blocks, *_blocks(tables[-1])]))
    sections += [Section("Cells that failed", [_html(t)]) for t in _failure_table(runs)]
    sections.append(Section("Run it again", _provenance(runs)))
    reading = _READING.format(runs.title(reference))
    return Page(
        title="Benchmark",
        lead=_lead(runs),
        top=[Text(reading, note=True)] if tables else [],
        sections=sections,
        eyebrow="rada bench",
    )


_TITLES = {
    "few-shot": ("Few-shot",),
    "base-to-new": ("Base to new",),
    "cross-dataset": ("Cross-dataset",),
    "domain": ("Domain", "Average over"),
    "shift": ("Shift",),
}


def _lead(runs: Runs) -> str:
    seeds = sorted({r["cell"]["seed"] for r in runs.results} - {0})
    datas = list(dict.fromkeys(runs.data(r["cell"]) for r in runs.results))
    shown = ", ".join(datas[:6]) + (f" and {len(datas) - 6} more" if len(datas) > 6 else "")
    return (
        f"{count(len(runs.labels()), 'method')} on {shown or 'nothing yet'} with the model "
        f"{runs.facts.get('model')}, {count(len(seeds), 'seed')}, {count(len(runs.results), 'cell')}."
    )


def _protocol_blocks(runs: Runs, protocol: str, tables: Sequence[ResultTable]) -> list[Block]:
    from rada.bench.figures import base_new_figure, shots_figure

    blocks: list[Block] = []
    datas = runs.datas(protocol)
    if protocol == "few-shot":
        name = datas[0] if len(datas) == 1 else f"average of {len(datas)} sets"
        figure = shots_figure(runs, datas, name)
        blocks += [figure] if figure is not None else []
    if protocol == "base-to-new":
        blocks.append(base_new_figure(runs, runs.shots(protocol)[-1]))
    shown, folded = list(tables[:1]), list(tables[1:])
    if len(tables) <= 4:
        shown, folded = list(tables), []
    for table in shown:
        blocks += _blocks(table)
    if folded:
        inner = [block for table in folded for block in _blocks(table)]
        blocks.append(Details("Each data set", inner))
    return blocks


def _blocks(table: ResultTable) -> list[Block]:
    return [_html(table), *([Text(table.note, note=True)] if table.note else [])]


def _html(table: ResultTable) -> Table:
    labels = table.labels or [""] * len(table.rows)
    rows = [
        Row(row[0], list(row[1:]), "accent" if label in MAIN_ROWS else "")
        for row, label in zip(table.rows, labels, strict=True)
    ]
    return Table(table.title, table.columns, rows)


def _failure_table(runs: Runs) -> list[ResultTable]:
    if not runs.failures:
        return []
    rows = [
        [
            f"{f['cell']['protocol']}, {f['cell']['label']} on {runs.data(f['cell'])}",
            str(f["cell"]["shots"] or DASH),
            str(f["cell"]["seed"] or DASH),
            f"{f['type']}: {f['error']}",
        ]
        for f in runs.failures
    ]
    return [ResultTable("Failed", ["Cell", "Shots", "Seed", "Why"], rows)]


def _provenance(runs: Runs) -> list[Block]:
    facts: dict[str, Any] = {key: value for key, value in runs.facts.items() if key != "format"}
    blocks: list[Block] = [Pairs("Benchmark", facts)]
    if runs.results:
        settings = {r["cell"]["label"]: r["config"] for r in runs.results}
        blocks.append(Details("Configuration of every method", [Pairs("Configuration", settings)]))
        blocks.append(Details("Environment", [Pairs("Machine", runs.results[-1]["environment"])]))
        sources = {
            runs.title(r["cell"]["label"]): _source(r["cell"]["method"]) for r in runs.results
        }
        blocks.append(Details("Where the methods come from", [Pairs("Sources", sources)]))
    return blocks


def _source(method: str) -> str:
    from rada.methods import get_method

    return get_method(method).source
