"""The notebooks of the docs run from the first cell to the last, in one Jupyter kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbclient: the extra 'test'")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient: the extra 'test'")
pytest.importorskip("ipykernel", reason="needs ipykernel: the extra 'test'")
pytest.importorskip("conformal_clip_data", reason="needs the extra 'embedded'")

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))
AFRESH = """%reset -f
import rada.explain.words as _words
_few = _words.word_list()[:: 10 if len(_words.word_list()) > 300 else 1]  # all of them take seconds
_words.word_list = lambda few=_few: few
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """A kernel that all of them use: torch and the model are loaded once."""
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    cache = str(tmp_path_factory.getbasetemp() / "rada-cache")
    folder = str(tmp_path_factory.mktemp("notebooks"))
    manager.start_kernel(cwd=folder, env=os.environ | {"RADA_CACHE": cache})
    yield manager
    manager.shutdown_kernel(now=True)


def shown(book):
    """Return the kinds of output of each cell of code."""
    return [
        {kind for output in cell.outputs for kind in output.get("data", {})}
        for cell in book.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.parametrize("path", BOOKS, ids=[path.stem for path in BOOKS])
def test_a_notebook_runs(path, kernel):
    if path.stem == "why":
        pytest.importorskip("captum", reason="needs the extra 'explain'")
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert all(not cell.get("outputs") for cell in book.cells), "outputs are not kept in git"
    book.cells.insert(0, nbformat.v4.new_code_cell(AFRESH))
    nbclient.NotebookClient(book, km=kernel, timeout=240).execute()
    kinds = set().union(*shown(book))
    assert {"text/html", "image/png"} <= kinds  # objects and figures show themselves


def test_there_are_three():
    assert [path.stem for path in BOOKS] == ["comparing_methods", "why", "your_photos"]
