"""What MkDocs does not do by itself: pages from elsewhere in the repository, the API reference, links out of docs/.

The documents are written for GitHub as well, where links to files of the repository work. On the site such files are
pages or downloads of their own.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
FENCE = re.compile(r"^\s*(```|~~~)")
ITEM = re.compile(r"^\s*(?:[-*+]|\d+\.) ")
MATH = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")
API: dict[str, tuple[str, tuple[str, ...]]] = {
    "classifier": (
        "Classifier",
        ("rada.classifier.Classifier", "rada.finetuner.FineTuner", "rada.predictions"),
    ),
    "data": (
        "Data",
        (
            "rada.data.registry",
            "rada.data.dataset",
            "rada.data.images",
            "rada.data.sampling",
            "rada.data.naming",
        ),
    ),
    "encoders": (
        "Encoders",
        ("rada.encoders.loading", "rada.encoders.base", "rada.encoders.registry"),
    ),
    "features": (
        "Features",
        (
            "rada.features.features",
            "rada.features.classes",
            "rada.features.extract",
            "rada.features.cache",
        ),
    ),
    "methods": (
        "Methods",
        (
            "rada.methods.base",
            "rada.methods.registry",
            "rada.methods.rada",
            "rada.methods.rada_probe",
        ),
    ),
    "head": ("The head", ("rada.head.head", "rada.head.reference")),
    "evaluation": (
        "Evaluation",
        (
            "rada.evaluation.evaluation",
            "rada.evaluation.comparison",
            "rada.evaluation.metrics",
            "rada.explain.image",
        ),
    ),
    "test_time": (
        "Test time",
        ("rada.test_time_adapter", "rada.test_time.base", "rada.test_time.registry"),
    ),
    "serving": (
        "Serving, export, the hub",
        (
            "rada.serving.server",
            "rada.serving.settings",
            "rada.serving.app",
            "rada.exporting.export",
            "rada.publishing.push",
            "rada.publishing.card",
        ),
    ),
    "errors": ("Errors", ("rada.core.errors",)),
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and downloads that are not in docs/."""
    for name in PAGES:
        content = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=re.sub(r"\]\(docs/", "](", content)))
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        files.append(
            File.generated(config, f"benchmarks/results/{path.name}", abs_src_path=str(path))
        )
    files.append(File.generated(config, "Dockerfile", abs_src_path=str(ROOT / "Dockerfile")))
    files.append(File.generated(config, "CITATION.cff", abs_src_path=str(ROOT / "CITATION.cff")))
    for name, (title, modules) in API.items():
        parts = [f"# {title}", *(f"::: {module}" for module in modules)]
        files.append(File.generated(config, f"api/{name}.md", content="\n\n".join(parts) + "\n"))
    rows = [
        f"- [{title}]({name}.md): {', '.join(f'`{m}`' for m in modules)}"
        for name, (title, modules) in API.items()
    ]
    intro = (
        "# Reference\n\nFrom the docstrings, whose examples are tests. The names that are used most are at the top: "
        "`from rada import Classifier, Features, load_encoder, ...`.\n\n"
    )
    files.append(File.generated(config, "api/index.md", content=intro + "\n".join(rows) + "\n"))
    listed = set(_pages(config["nav"]))
    rest = [file.src_uri for file in files.documentation_pages() if file.src_uri not in listed]
    if rest:  # pages that nobody has put into the navigation yet
        config["nav"].append({"More": sorted(rest)})
    return files


def _pages(nav: Any) -> Iterator[str]:
    """Yield the pages of a navigation, at whatever depth."""
    if isinstance(nav, str):
        yield nav
        return
    for entry in nav.values() if isinstance(nav, dict) else nav:
        yield from _pages(entry)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links out of docs/ to the pages of the site, and give lists the empty line that MkDocs wants."""
    found, inside, before = [], False, ""
    depth = page.file.src_uri.count("/")
    for line in markdown.split("\n"):
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            if (
                ITEM.match(line)
                and before.strip()
                and not ITEM.match(before)
                and not before.startswith(" ")
            ):
                found.append("")
            line = LINK.sub(lambda match: f"]({_target(match[1], depth)}", line)
        found.append(line)
        before = line
    return "\n".join(found)


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers show without a script from elsewhere."""
    return MATH.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    block = match[1] == "div"
    formula = html.unescape(match[2]).strip()[2:-2]
    return latex2mathml.converter.convert(formula, display="block" if block else "inline")


def _target(link: str, depth: int) -> str:
    """Return a link of a page that lies `depth` folders below docs/: one step less where it leads out of it."""
    out = "../" * (depth + 1)
    return "../" * depth + link.removeprefix(out) if link.startswith(out) else link
