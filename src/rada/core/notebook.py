"""How objects show themselves in a notebook: small pieces of HTML, in which all text is escaped."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rada.core.printable import clean

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["bar", "fragment", "paragraph", "pictures", "table", "text"]

_FOR, _AGAINST = "#2f86bd", "#c4563a"  # legible on white and on black


def text(value: object) -> str:
    """Return a value as text that is safe in HTML.

    Example:
        >>> text("<b>")
        '&lt;b&gt;'
    """
    return html.escape(clean(str(value)))


def paragraph(value: object, *, note: bool = False) -> str:
    """Return a paragraph; a note is small and pale."""
    style = "margin:.3em 0;" + ("opacity:.7;font-size:.9em" if note else "")
    return f'<p style="{style}">{text(value)}</p>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table.

    Args:
        columns: Headings.
        rows: Cells, which are HTML: made by `text` or `bar`.
    """
    cell = 'style="text-align:left;padding:.15em 1em .15em 0"'
    head = "".join(f"<th {cell}>{text(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td {cell}>{content}</td>" for content in row) + "</tr>" for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return (
        f'<table style="border-collapse:collapse;margin:.3em 0">{top}<tbody>{body}</tbody></table>'
    )


def bar(value: float, largest: float, said: str) -> str:
    """Return a number with a bar: blue above zero, red below.

    Args:
        value: The number.
        largest: The number whose bar is the longest.
        said: How the number is spelled.
    """
    width = min(abs(value) / largest, 1.0) if largest else 0.0
    colour = _FOR if value > 0 else _AGAINST
    return (
        f'<span style="display:inline-block;width:{6 * width:.2f}em;height:.7em;background:{colour}">'
        '</span> <span style="font-variant-numeric:tabular-nums;white-space:nowrap">'
        f"{text(said)}</span>"
    )


def pictures(shown: Iterable[tuple[Image, str]], *, side: int = 224) -> str:
    """Return images in a row, each with a caption.

    Args:
        shown: Images and captions.
        side: Largest width, in pixels of the page.
    """
    frames = "".join(
        f'<figure style="display:inline-block;margin:.3em .8em .3em 0;max-width:min({side}px,44%);'
        f'vertical-align:top"><img src="{_uri(image, 2 * side)}" alt="{text(caption)}" '
        f'style="max-width:100%"><figcaption style="font-size:.85em;opacity:.8">{text(caption)}'
        "</figcaption></figure>"
        for image, caption in shown
    )
    return f"<div>{frames}</div>" if frames else ""


def fragment(title: str, *parts: str) -> str:
    """Return the whole: a title and what stands below it.

    Example:
        >>> "<b>A &amp; B</b>" in fragment("A & B", paragraph("..."))
        True
    """
    return f'<div class="rada" style="overflow-x:auto"><b>{text(title)}</b>{"".join(parts)}</div>'


def _uri(image: Image, side: int) -> str:
    small = image.convert("RGB")
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
