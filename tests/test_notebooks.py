"""The notebooks of the docs run from the first cell to the last."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbclient: the extra 'test'")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient: the extra 'test'")
pytest.importorskip("ipykernel", reason="needs ipykernel: the extra 'test'")
pytest.importorskip("conformal_clip_data", reason="needs the extra 'embedded'")

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))


def shown(book):
    """Return the kinds of output of each cell of code."""
    return [
        {kind for output in cell.outputs for kind in output.get("data", {})}
        for cell in book.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.parametrize("path", BOOKS, ids=[path.stem for path in BOOKS])
def test_a_notebook_runs(path, tmp_path):
    if path.stem == "why":
        pytest.importorskip("captum", reason="needs the extra 'explain'")
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert all(not cell.get("outputs") for cell in book.cells), "outputs are not kept in git"
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(book, timeout=240, kernel_name="python3", resources=resources).execute()
    kinds = set().union(*shown(book))
    assert {"text/html", "image/png"} <= kinds  # objects and figures show themselves


def test_there_are_three():
    assert [path.stem for path in BOOKS] == ["comparing_methods", "why", "your_photos"]
