"""The building blocks of a page, and the page itself.

A `Page` holds `Section`s, a section holds blocks, and every kind of block has one small template.
All text is escaped; a block never takes HTML.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rada.core.extras import needed_for
from rada.core.legacy import is_page
from rada.core.output import check_file
from rada.core.printable import clean
from rada.core.storage import write_bytes
from rada.report.text import DASH
from rada.report.theme import theme_css

if TYPE_CHECKING:
    import jinja2
    import PIL.Image
    from matplotlib.figure import Figure

__all__ = [
    "Block",
    "Card",
    "Command",
    "Details",
    "Drawing",
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
    "Tone",
    "Verdict",
    "data_uri",
    "render_page",
    "thumbnail",
    "write_page",
]

Tone = Literal["", "accent", "muted", "gain", "loss"]


class Block:
    """Base of all blocks; `template` is the file below `templates/` that renders it."""

    template: ClassVar[str]


@dataclass(frozen=True)
class Text(Block):
    """A paragraph; `note` makes it small."""

    template: ClassVar[str] = "text.html.j2"
    text: str
    note: bool = False


@dataclass(frozen=True)
class Verdict(Block):
    """The one sentence that matters, large; `cautions` are what makes it say less than it seems to."""

    template: ClassVar[str] = "verdict.html.j2"
    text: str
    cautions: Sequence[str] = ()


@dataclass(frozen=True)
class TableCell:
    """A cell of a table.

    Attributes:
        text: What it says.
        tone: Its colour.
        shade: Strength of its background in [0, 1].
        wrong: Shade in the colour of errors.
        title: A longer form, shown on hovering.
        best: Bold, as the best value of its column.
    """

    text: str
    tone: Tone = ""
    shade: float = 0.0
    wrong: bool = False
    title: str = ""
    best: bool = False

    @property
    def classes(self) -> list[str]:
        """The names of its style classes."""
        flags = {"shade": self.shade, "wrong": self.shade and self.wrong, "best": self.best}
        return [*([self.tone] if self.tone else []), *(name for name in flags if flags[name])]


@dataclass(frozen=True)
class Row:
    """A row of a table: its heading and its cells; plain strings do as cells."""

    heading: str
    cells: Sequence[TableCell | str]
    tone: Tone = ""

    @property
    def full_cells(self) -> list[TableCell]:
        """The cells, strings wrapped."""
        return [TableCell(cell) if isinstance(cell, str) else cell for cell in self.cells]


@dataclass(frozen=True)
class Table(Block):
    """A table; on a phone the cells of a wide one stand below each other.

    What is still too wide scrolls in its own box.

    Attributes:
        caption: What it shows; also its name for screen readers.
        columns: Headings, the first one above the rows' headings.
        rows: The rows.
        show_caption: False keeps the caption for screen readers alone.
        matrix: Narrow centred cells, as for a confusion matrix.
        words: Numbers of the columns that hold words, aligned left; column 0 always does.
    """

    template: ClassVar[str] = "table.html.j2"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]
    show_caption: bool = True
    matrix: bool = False
    words: Sequence[int] = ()

    @property
    def stacked(self) -> bool:
        """Whether narrow screens get the cells of a row below each other, with their headings."""
        return not self.matrix and len(self.columns) > 4


@dataclass(frozen=True)
class Drawing:
    """One drawing: SVG text and its size in CSS pixels."""

    svg: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        """The drawing as a data URI."""
        return data_uri(self.svg.encode(), "image/svg+xml")


@dataclass(frozen=True)
class FigureBlock(Block):
    """A figure with a drawing for wide and one for narrow screens; `paint` drew it (`rada.report.drawn`)."""

    template: ClassVar[str] = "figure.html.j2"
    wide: Drawing
    narrow: Drawing
    alt: str
    caption: str = ""
    paint: Callable[[Figure, bool], None] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Card:
    """An image with lines of text below it; a line is (label, name, remark, tone)."""

    image: str
    alt: str
    lines: Sequence[tuple[str, str, str, Tone]]
    footer: str = ""


@dataclass(frozen=True)
class Gallery(Block):
    """Cards side by side below a heading; `empty` is said where there are none, `large` makes them large."""

    template: ClassVar[str] = "gallery.html.j2"
    heading: str
    cards: Sequence[Card]
    empty: str = "None."
    large: bool = False


@dataclass(frozen=True)
class HeadlineNumber:
    """A large number with its label above and a remark below."""

    label: str
    value: str
    remark: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Headline(Block):
    """The few numbers that matter, large."""

    template: ClassVar[str] = "headline.html.j2"
    numbers: Sequence[HeadlineNumber]


@dataclass(frozen=True)
class Pairs(Block):
    """Names and values of a configuration; nested values are written with dots."""

    template: ClassVar[str] = "pairs.html.j2"
    heading: str
    values: Mapping[str, Any]

    @property
    def items(self) -> list[tuple[str, str]]:
        """Flat names and their values as text."""
        return list(_flat(self.values))


@dataclass(frozen=True)
class Command(Block):
    """A command to copy; it scrolls in its own box."""

    template: ClassVar[str] = "command.html.j2"
    text: str


@dataclass(frozen=True)
class Details(Block):
    """Blocks that are folded away behind a line of text."""

    template: ClassVar[str] = "details.html.j2"
    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class SideBySide(Block):
    """Blocks beside each other where the screen is wide enough.

    Attributes:
        blocks: The blocks.
        natural: Each as wide as its content, instead of columns of one width.
    """

    template: ClassVar[str] = "columns.html.j2"
    blocks: Sequence[Block]
    natural: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    heading: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: The page's title and first heading.
        lead: What was run, in one sentence.
        sections: The parts in order.
        verdict: Blocks between the title and the lead.
        top: Blocks between the lead and the first section.
        eyebrow: The small line above the title.
        footer: The last line.
    """

    title: str
    lead: str
    sections: Sequence[Section]
    top: Sequence[Block] = field(default_factory=list)
    verdict: Sequence[Block] = field(default_factory=list)
    eyebrow: str = "rada report"
    footer: str = ""


def render_page(page: Page) -> str:
    """Return a page as one HTML document that needs nothing else.

    Example:
        >>> html = render_page(Page("A <b> title", "Nothing was run.", []))
        >>> "A &lt;b&gt; title" in html
        True
    """
    return _environment().get_template("page.html.j2").render(page=page, theme=theme_css())


def write_page(path: str | Path, page: Page) -> Path:
    """Write a page in one step: a reader sees the old file or the new one, never a part.

    Returns:
        The path.

    Raises:
        OutputError: If there is such a file, and it is no page of rada's.
        StorageError: If the place cannot be written.
    """
    path = Path(path)
    if not is_page(path):
        check_file(path, overwrite=False)
    write_bytes(path, render_page(page).encode())
    return path


def thumbnail(image: PIL.Image.Image, size: int = 320) -> str:
    """Return an image as the data URI of a small JPEG, at most `size` pixels on either side."""
    small = image.convert("RGB")
    small.thumbnail((size, size))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85, optimize=True)
    return data_uri(buffer.getvalue(), "image/jpeg")


def data_uri(content: bytes, media_type: str) -> str:
    """Return bytes as a data URI.

    Example:
        >>> data_uri(b"hi", "text/plain")
        'data:text/plain;base64,aGk='
    """
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


@cache
def _environment() -> jinja2.Environment:
    with needed_for("the report"):
        import jinja2
    from markupsafe import Markup

    def printable(value: object) -> object:
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return jinja2.Environment(
        loader=jinja2.PackageLoader("rada.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", _plain(value)))
    return pairs


def _plain(value: object) -> str:
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value)) or DASH
    return str(value)
