"""The site is built without a warning and needs nothing from elsewhere; its tables are those of results."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOADED = re.compile(
    r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=\"?(https?:[^\" >]*)"
)


@pytest.mark.parametrize(
    ("script", "maker"), [("which_method", "tables"), ("all_methods", "table")]
)
def test_tables_of_pages_are_those_of_the_results(script: str, maker: str) -> None:
    spec = importlib.util.spec_from_file_location(script, ROOT / "benchmarks" / f"{script}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.PAGE.read_text(encoding="utf-8")
    inside = page.partition(module.BEGIN)[2].partition(module.END)[0]
    assert inside == getattr(module, maker)(), f"run python benchmarks/{script}.py, see its top"
    assert inside.count("\n| ") > 25


def test_site_is_built_without_warnings(tmp_path: Path) -> None:
    for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(name, reason="needs the extra 'docs'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr[-3000:]
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 35
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not LOADED.findall(text), page.name
        assert 'class="arithmatex"' not in text, f"{page.name}: a formula is no MathML"
    formulas = (tmp_path / "site" / "mathematics.html").read_text(encoding="utf-8")
    assert formulas.count("<math") > 20
    reference = (tmp_path / "site" / "api" / "classifier.html").read_text(encoding="utf-8")
    assert "push_to_hub" in reference and "rada.classifier.Classifier.fit" in reference
    assert (tmp_path / "site" / "benchmarks" / "results" / "suite.json").is_file()
