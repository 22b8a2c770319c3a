"""Matplotlib figures as small SVG that follows the page's light or dark colours.

A figure is drawn twice, for a wide and for a narrow screen: a drawing that is merely scaled down to
a phone has unreadable labels. Colours are written as CSS variables with a value for light and one
for dark; text stays text, in the fonts of the reader's system.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from rada.core.extras import needed_for
from rada.report.blocks import Drawing, FigureBlock
from rada.report.theme import PALETTE, theme_css

with needed_for("the report"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "MARKERS",
    "NARROW",
    "SERIES",
    "WIDE",
    "Paint",
    "ShownFigure",
    "drawn",
    "responsive_figure",
    "tidy",
]

Paint: TypeAlias = Callable[[Figure, bool], None]
"""Draws into a figure; the flag says whether the figure is the narrow one."""

WIDE, NARROW = 900, 350
"""Widths of the two drawings, in CSS pixels."""

COLOURS = {name: light for name, (light, _) in PALETTE.items()}
SERIES = ("accent", "probe", "green", "purple", "rust", "teal")
MARKERS = ("o", "s", "^", "D", "v", "P")

_FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue','Liberation Sans',sans-serif"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rada",  # the same figure gives the same bytes
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.parse_math": False,  # a dollar sign in a class name is a dollar sign
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["grid"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.7,
    "xtick.color": COLOURS["grid"],
    "ytick.color": COLOURS["grid"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "legend.fontsize": 9.0,
    "legend.borderaxespad": 0.0,
    "legend.handlelength": 1.4,
}


def responsive_figure(
    paint: Paint, *, wide: int, narrow: int, alt: str, caption: str = ""
) -> FigureBlock:
    """Draw a figure for wide and for narrow screens.

    Args:
        paint: Draws into an empty figure; called twice.
        wide: Height of the wide drawing in CSS pixels; its width is `WIDE`.
        narrow: Height of the narrow drawing; its width is `NARROW`.
        alt: What the figure shows, for readers who cannot see it.
        caption: The line below the figure.

    Returns:
        A block for a page.

    Example:
        >>> def paint(figure, narrow):
        ...     _ = figure.subplots().plot([0, 1], color=COLOURS["accent"])
        >>> figure = responsive_figure(paint, wide=200, narrow=200, alt="A rising line")
        >>> figure.wide.width, "var(--accent)" in figure.wide.svg
        (900, True)
    """
    return FigureBlock(
        wide=Drawing(_draw(paint, WIDE, wide, narrow=False), WIDE, wide),
        narrow=Drawing(_draw(paint, NARROW, narrow, narrow=True), NARROW, narrow),
        alt=alt,
        caption=caption,
        paint=paint,
    )


class ShownFigure(Figure):
    """A figure of matplotlib that shows itself in a notebook, whatever the backend."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with _quiet():
            self.savefig(buffer, format="png", dpi=120)
        return buffer.getvalue()


def drawn(block: FigureBlock, width: float = WIDE / 96, height: float | None = None) -> ShownFigure:
    """Return the figure of a report as one of matplotlib, to change, show and save.

    Args:
        block: A figure as `responsive_figure` makes it.
        width: In inches; below 5 the drawing for narrow screens is taken.
        height: In inches; that of the report when None.

    Example:
        >>> def paint(figure, narrow):
        ...     _ = figure.subplots().plot([0, 1])
        >>> figure = drawn(responsive_figure(paint, wide=200, narrow=200, alt="A rising line"))
        >>> figure.axes[0].set_title("Mine").get_text()
        'Mine'
    """
    narrow = width < 5
    usual = (block.narrow if narrow else block.wide).height / 96
    paper = {"figure.facecolor": COLOURS["paper"], "savefig.facecolor": COLOURS["paper"]}
    with matplotlib.rc_context(_STYLE | paper), _quiet():
        figure = ShownFigure(figsize=(width, height or usual), layout="constrained")
        assert block.paint is not None
        block.paint(figure, narrow)
    return figure


def tidy(axes: Axes, *, grid: str = "y") -> None:
    """Draw grid lines across one axis and drop the tick marks."""
    axes.tick_params(length=0)
    axes.grid(visible=True, axis=grid)  # type: ignore[arg-type]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence matplotlib about glyphs that its own font lacks: the reader's fonts are used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")
        yield


def _draw(paint: Paint, width: int, height: int, *, narrow: bool) -> str:
    with matplotlib.rc_context(_STYLE), _quiet():
        figure = Figure(figsize=(width / 96, height / 96), layout="constrained")
        paint(figure, narrow)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    return _themed(buffer.getvalue())


def _themed(svg: str) -> str:
    """Replace colours by variables and fonts by the system's; drop the XML prologue."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"'DejaVu Sans'(, sans-serif)?", _FONTS, svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.replace(">", f"><style>{theme_css()}</style>", 1)
