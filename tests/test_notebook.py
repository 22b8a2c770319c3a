"""What objects show of themselves in a notebook, and the figures that people can change."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from golden.make import QUICK, tiny_encoder, write_images
from rada import Classifier, ExplainConfig, get_method
from rada.core.errors import ConfigError
from rada.explain import what_was_learned
from rada.report import drawn, result_figure
from rada.report.figures import training_curve
from report_samples import HOSTILE

VOID = {"img", "br"}


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.said = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on")
            assert name != "src" or value.startswith("data:image/jpeg;base64,")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [] and "script" not in reader.tags
    return " ".join(reader.said), reader.tags


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A fitted classifier with hostile class names, and its images."""
    root = tmp_path_factory.mktemp("notebook")
    tiny_encoder(root / "clip")
    images = write_images(root / "images")
    names = dict(zip(("red", "green", "blue"), [HOSTILE[k] for k in (0, 1, 3)], strict=True))
    config = get_method("rada").config(**QUICK["rada"])
    clf = Classifier(
        str(root / "clip"),
        "rada",
        config=config,
        classes=names,
        workers=0,
        cache=False,
        progress=False,
    )
    before = clf._repr_html_()
    return images, clf.fit(str(images), seed=1), before


def test_a_classifier_shows_what_it_is(world):
    _, clf, before = world
    said, _ = read(before)
    assert "zero-shot: nothing is learned yet" in said and HOSTILE[0] in said
    said, _ = read(clf._repr_html_())
    assert "RAda (rada)" in said and "seed 1" in said and HOSTILE[1] in said
    read(Classifier("embedded")._repr_html_())  # of which no class is known


def test_a_result_shows_its_rows(world):
    images, clf, _ = world
    found = clf.evaluate(str(images))
    said, tags = read(found._repr_html_())
    assert f"{100 * found['adapted']['accuracy']:.1f} %" in said
    low, high = (100 * bound for bound in found["changed"]["interval"])
    assert f"({low:+.1f} to {high:+.1f})" in said
    assert tags.count("tr") == 1 + len(found["rows"])


def test_an_explanation_shows_images_sum_and_words(world):
    pytest.importorskip("captum", reason="needs the extra 'explain'")
    images, clf, _ = world
    found = clf.explain(str(images / "red" / "0.png"), config=ExplainConfig(grid=4))
    said, tags = read(found._repr_html_())
    similar = (*found.nearest.all, *found.nearest.other)
    assert tags.count("img") == 1 + len(found.maps) + len(similar)
    assert f"{found.evidence[0].adapted:+.2f}, the sum of" in said and "In words:" in said
    assert str(images) not in said  # a name, not a path
    read(what_was_learned(clf, clf.train_features_)._repr_html_())


def test_figures_are_matplotlib_and_can_be_changed(world):
    images, clf, _ = world
    result = clf.evaluate(str(images)).result
    for kind in ("classes", "scatter", "confusion"):
        figure = result_figure(result, kind)
        figure.axes[0].set_title("mine")
        small = result_figure(result, kind, width=4)
        assert figure._repr_png_().startswith(b"\x89PNG") and small.get_figwidth() == 4
        assert figure.axes[0].get_title(loc="left") or figure.axes[0].get_title() == "mine"
    with pytest.raises(ConfigError, match="no figure 'pie'"):
        result_figure(result, "pie")
    curve = training_curve(clf.fitted_.record.history)
    assert len(drawn(curve).axes) == 3
    found = clf.explain(str(images / "red" / "0.png"), config=ExplainConfig(where="none", words=0))
    bars = found.figure().axes[0]
    assert len(bars.patches) == 2 * len(found.evidence[0].parts)
    with pytest.raises(ConfigError, match="no words"):
        found.figure("words")
