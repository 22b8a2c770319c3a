"""The colours of pages and figures, for light and for dark screens."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["PALETTE", "theme_css"]

# Name -> (light, dark). The light values double as the marks by which colours are found in the SVG.
PALETTE: Mapping[str, tuple[str, str]] = {
    "paper": ("#fdfcfa", "#16181b"),
    "panel": ("#f4f2ed", "#1f2226"),
    "ink": ("#1d1f22", "#e8e6e1"),
    "muted": ("#63666c", "#a0a3a8"),
    "grid": ("#dedbd4", "#383b40"),
    "zero": ("#9b968c", "#8b877e"),
    "accent": ("#0d5f8f", "#5db3e4"),
    "probe": ("#b06c05", "#e3a548"),
    "green": ("#2f7550", "#6dbb8f"),
    "purple": ("#74509c", "#b497dc"),
    "rust": ("#a9432b", "#e58a70"),
    "teal": ("#1c7f80", "#5fc4c2"),
}


def theme_css() -> str:
    """Return the palette as CSS variables, light with dark for readers who prefer it; paper is light."""
    light, dark = (
        ";".join(f"--{name}:{shades[which]}" for name, shades in PALETTE.items())
        for which in (0, 1)
    )
    return f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
