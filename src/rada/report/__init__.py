"""Self-contained HTML pages: `write_report` for one run, blocks and figures for other results."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rada.report.blocks import (
        Block,
        Card,
        Command,
        Details,
        FigureBlock,
        Gallery,
        Headline,
        HeadlineNumber,
        Page,
        Pairs,
        Row,
        Section,
        SideBySide,
        Table,
        TableCell,
        Text,
        Verdict,
        render_page,
        write_page,
    )
    from rada.report.examples import (
        changed_examples,
        error_examples,
        report_examples,
        wrong_examples,
    )
    from rada.report.figures import result_figure
    from rada.report.html import write_report
    from rada.report.problems import find_problems
    from rada.report.svg import drawn, responsive_figure

__all__ = [
    "Block",
    "Card",
    "Command",
    "Details",
    "FigureBlock",
    "Gallery",
    "Headline",
    "HeadlineNumber",
    "Page",
    "Pairs",
    "Row",
    "Section",
    "SideBySide",
    "Table",
    "TableCell",
    "Text",
    "Verdict",
    "changed_examples",
    "drawn",
    "error_examples",
    "find_problems",
    "render_page",
    "report_examples",
    "responsive_figure",
    "result_figure",
    "write_page",
    "write_report",
    "wrong_examples",
]

_ELSEWHERE = {
    "changed_examples": "rada.report.examples",
    "error_examples": "rada.report.examples",
    "find_problems": "rada.report.problems",
    "report_examples": "rada.report.examples",
    "drawn": "rada.report.svg",
    "result_figure": "rada.report.figures",
    "responsive_figure": "rada.report.svg",
    "write_report": "rada.report.html",
    "wrong_examples": "rada.report.examples",
}


def __getattr__(name: str) -> Any:
    # matplotlib takes a second to import; spelling a percentage for a terminal does not need it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "rada.report.blocks")), name)
