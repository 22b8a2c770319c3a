"""The page of explanations and the report's part on what was learned, also as a reader sees them."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from golden.make import QUICK, tiny_encoder, write_images
from headless import Chromium, find_chromium
from rada import Classifier, ExplainConfig, get_method
from rada.core.errors import OutputError
from rada.explain import Explainer, what_was_learned
from rada.explain.page import write_explanations
from rada.report import write_report
from report_samples import HOSTILE, make_curve, make_result
from toy import toy_features

pytest.importorskip("captum", reason="needs the extra 'explain'")
in_browser = pytest.mark.skipif(
    find_chromium() is None or os.name != "posix",
    reason="no chromium or chrome on the PATH: apt-get install chromium",
)


@pytest.fixture(scope="module")
def browser():
    chromium = Chromium(find_chromium())
    yield chromium
    chromium.close()


def fitted(name, data, encoder=None, **options):
    config = get_method(name).config(**QUICK.get(name, {}))
    clf = Classifier(
        encoder, name, config=config, workers=0, cache=False, progress=False, **options
    )
    return clf.fit(data, seed=1)


@pytest.fixture(scope="module", params=["plain", "hostile"])
def explained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    tiny_encoder(folder / "clip")
    images = write_images(folder / "images")
    hostile = [HOSTILE[place] for place in (0, 1, 3)]  # those that a tokenizer takes
    names = dict(zip(("red", "green", "blue"), hostile, strict=True))
    options = {"classes": names} if request.param == "hostile" else {}
    clf = fitted("rada", str(images), str(folder / "clip"), **options)
    explainer = Explainer(clf, ExplainConfig(where="both"))
    found = [explainer.explain(str(images / name / "0.png")) for name in ("red", "blue")]
    return found, write_explanations(folder / "out", found, command="rada explain"), clf


def test_the_page_and_its_numbers(explained):
    found, page, _ = explained
    told = json.loads((page.parent / "explanations.json").read_text())
    assert told["command"] == "rada explain" and len(told["explanations"]) == 2
    first = told["explanations"][0]
    assert first["classes"][0]["probability"] == found[0].classes[0].probability
    assert np.shape(first["maps"][0]["values"]) == (8, 8)
    assert first["nearest"]["all"][0]["label"] in [entry.name for entry in found[0].classes]
    text = page.read_text()
    assert "<script" not in text.lower() and str(page.parent.parent) not in text
    # with training images at hand the words tell what sets the image apart from them
    assert "The image against the mean training image" in text
    assert any(line.startswith("the image against the mean") for line in found[0].lines())


def test_a_foreign_folder_is_refused(explained, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="explanations"):
        write_explanations(tmp_path, explained[0])
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@in_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (390, True)])
def test_the_page_fits_and_needs_no_network(browser, explained, width, dark):
    view = browser.look(explained[1], width, dark=dark)
    seen = view.measured
    assert seen["scrollWidth"] == seen["width"] == width
    assert seen["wide"] == seen["broken"] == view.messages == view.requests == []
    assert seen["withoutAlt"] == seen["scripts"] == 0
    assert seen["images"] >= 2 * 8


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_unfolded_it_fits_too(browser, explained, width):
    script = """(() => {
      document.querySelectorAll('details').forEach(part => { part.open = true; });
      return document.documentElement.scrollWidth;
    })()"""
    assert browser.look(explained[1], width, script=script).measured == width


def test_features_alone_are_explained_on_a_page(tmp_path):
    clf = fitted("linear_probe", toy_features())
    found = clf.explain(toy_features().subset([2]), config=ExplainConfig(words=0))
    text = write_explanations(tmp_path / "out", [found]).read_text()
    assert "No heat map" in text and "Most similar training images" in text.replace(
        "The most", "Most"
    )


def test_what_was_learned_is_the_mean_change(explained):
    clf = explained[2]
    features = clf.train_features_
    found = what_was_learned(clf, features)
    classes, rows = features.class_set(), features.plain()
    strength = clf.strength_for(classes.names)
    before = clf.model_.logit_terms(rows, classes, strength=0.0).double()
    after = clf.model_.logit_terms(rows, classes, strength=strength).double()
    change = (after.weights - before.weights).mean(0)
    sizes = change.norm(dim=1) / before.weights[0].norm(dim=1)
    assert [entry.size for entry in found.classes] == pytest.approx(sorted(sizes.tolist())[::-1])
    order = [classes.names.index(entry.name) for entry in found.classes]
    text, scale = classes.text_features, clf.model_.facts.scale
    mask = clf.model_.head(rows, text, scale, return_mask=True).mask.detach().mean(0)
    np.testing.assert_allclose(found.mask, mask[order], atol=1e-5)
    assert found.images == len(features) and json.dumps(found.to_dict())
    assert all(entry.words.share >= 0 for entry in found.classes)


def test_confused_pairs_are_told_with_what_tells_them_apart(explained, tmp_path):
    clf = explained[2]
    confusion = [[5, 3, 0], [1, 7, 0], [0, 9, 0]]
    found = what_was_learned(clf, clf.train_features_, confusion=confusion)
    names = clf.train_features_.classes
    pairs = [
        (names.index(p.name), names.index(p.taken_for), p.images, p.total) for p in found.pairs
    ]
    assert pairs == [(2, 1, 9, 9), (0, 1, 3, 8), (1, 0, 1, 8)]
    forth, back = found.pairs[1].words, found.pairs[2].words
    assert set(forth.more) == set(back.less) and set(forth.less) == set(back.more)
    result, *_ = make_result(["cat", "dog", "eel"], images=60)
    text = write_report(tmp_path / "out", result, learned=found.to_dict()).read_text()
    assert "Classes that are taken for another one" in text and "9 of 9" in text


def test_methods_without_a_head_have_no_mask():
    found = what_was_learned(fitted("linear_probe", toy_features()), toy_features())
    assert found.mask is None and "no words" in found.notes[0]
    assert all(entry.size > 0 and entry.words is None for entry in found.classes)


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_tells_what_was_learned(browser, explained, tmp_path, width):
    learned = what_was_learned(explained[2], explained[2].train_features_)
    told = learned.to_dict() | {"mask": learned.mask}
    result, *_ = make_result(["cat", "dog", "eel"], images=60)
    page = write_report(tmp_path / "out", result, curve=make_curve(), learned=told)
    view = browser.look(page, width)
    assert "What the model learned" in view.measured["text"]
    assert view.measured["wide"] == [] and view.measured["scrollWidth"] == width
    assert view.measured["broken"] == [] and view.measured["withoutAlt"] == 0
