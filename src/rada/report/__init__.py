"""Self-contained HTML pages: `write_report` for one run, blocks and figures for other results."""

from rada.report.blocks import (
    Block,
    Card,
    Cell,
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
    Text,
    render_page,
    write_page,
)
from rada.report.examples import changed_examples
from rada.report.html import write_report
from rada.report.svg import responsive_figure

__all__ = [
    "Block",
    "Card",
    "Cell",
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
    "Text",
    "changed_examples",
    "render_page",
    "responsive_figure",
    "write_page",
    "write_report",
]
