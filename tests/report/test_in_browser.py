"""The page as a reader sees it, in headless Chromium at desktop and phone width."""

import os

import pytest

from headless import Chromium, find_chromium
from rada.report import changed_examples, write_report
from report_samples import HOSTILE, Photos, make_curve, make_result, make_runs

pytestmark = pytest.mark.skipif(
    find_chromium() is None or os.name != "posix",
    reason="no chromium or chrome on the PATH: apt-get install chromium",
)

CLASSES = {
    "seven": ["art painting", "cartoon", "dog", "elephant", "giraffe", "guitar with strings", "me"],
    "three": ["nominal fabric", "local defect", "global defect"],
    "hostile": list(HOSTILE),
    "hundred": [f"species of bird number {k}" for k in range(100)],
}


@pytest.fixture(scope="module")
def browser():
    chromium = Chromium(find_chromium())
    yield chromium
    chromium.close()


@pytest.fixture(scope="module", params=CLASSES)
def page(request, tmp_path_factory):
    classes = CLASSES[request.param]
    result, labels, zero_shot, adapted = make_result(classes, images=600)
    examples = changed_examples(Photos(classes, labels), zero_shot, adapted)
    directory = tmp_path_factory.mktemp(request.param)
    return write_report(directory, result, examples=examples, curve=make_curve(), runs=make_runs())


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_page_fits_and_needs_no_network(browser, page, width, dark):
    view = browser.look(page, width, dark=dark)
    seen = view.measured
    assert seen["width"] == width
    assert seen["scrollWidth"] == width
    assert seen["wide"] == []
    assert seen["images"] >= 7
    assert seen["broken"] == []
    assert seen["withoutAlt"] == 0
    assert seen["scripts"] == 0
    assert seen["title"] == "RAda on textiles"
    assert "RAda, mean of 3 seeds" in seen["text"]
    assert seen["background"] == ("rgb(22, 24, 27)" if dark else "rgb(253, 252, 250)")
    assert view.messages == []
    assert view.requests == []


def test_narrow_screens_get_their_own_drawings(browser, page):
    script = "document.querySelector('figure img').currentSrc.length"
    wide, narrow = (browser.look(page, width, script=script).measured for width in (1280, 390))
    assert wide != narrow


def test_unfolded_page_fits_too(browser, page):
    script = """(() => {
      document.querySelectorAll('details').forEach(part => { part.open = true; });
      return document.documentElement.scrollWidth;
    })()"""
    assert browser.look(page, 390, script=script).measured == 390


@pytest.mark.parametrize("width", [1280, 390])
def test_tables_are_not_cut(browser, page, width):
    """Nothing of a table is behind a scroll bar, but for matrices of very long names on a phone."""
    script = """(() => {
      document.querySelectorAll('details').forEach(part => { part.open = true; });
      return [...document.querySelectorAll('.scroll')].map(box =>
        [box.getAttribute('aria-label'), !!box.querySelector('.matrix'), box.scrollWidth - box.clientWidth]);
    })()"""
    boxes = browser.look(page, width, script=script).measured
    assert len(boxes) >= 3
    cut = [label for label, matrix, hidden in boxes if hidden > 0]
    if width == 390 and "hostile" in str(page):
        cut = [label for label, matrix, hidden in boxes if hidden > 0 and not matrix]
    assert cut == []


def test_the_browser_would_notice(browser, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!DOCTYPE html><body><div style='width:2000px'>wide</div><img src='gone.png' alt=''>"
        "<script>console.error('oh'); fetch('http://127.0.0.1:9/x').catch(() => 0)</script>"
    )
    view = browser.look(bad, 390)
    assert view.measured["scrollWidth"] > 390 or view.measured["wide"]
    assert view.measured["broken"] == [""]
    assert any("oh" in message for message in view.messages)
    assert "http://127.0.0.1:9/x" in view.requests
