"""The first sentence of a report, and what is still wrong."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch

from golden.make import QUICK, tiny_encoder
from headless import Chromium, find_chromium
from rada import Classifier, Features, get_method
from rada.evaluation import compare
from rada.evaluation.sharing import data_title
from rada.evaluation.unlike import unlike_images
from rada.report import find_problems, write_report
from rada.report.rows import SeedSummary
from rada.report.verdict import cautions, verdict


def plain(text):
    return text.replace("\u00a0", " ").replace("\u2212", "-")


def result_of(before, after, labels, classes, **facts):
    """A result in which image n is right before and after as the two lists say."""
    rows = []
    for right in (before, after):
        logits = np.zeros((len(labels), len(classes)))
        for n, label in enumerate(labels):
            logits[n, label if right[n] else (label + 1) % len(classes)] = 1.0
        rows.append(logits)
    return compare(*rows, labels, classes) | facts


def three_classes(**facts):
    # a: 10 of 50 to 40; b: 25 to 24 of 50; c: 40 to 10 of 50
    labels = [0] * 50 + [1] * 50 + [2] * 50
    before = [True] * 10 + [False] * 40 + [True] * 25 + [False] * 25 + [True] * 40 + [False] * 10
    after = [True] * 40 + [False] * 10 + [True] * 24 + [False] * 26 + [True] * 10 + [False] * 40
    return result_of(before, after, labels, ["a", "b", "c"], **facts)


def test_the_sentence_has_both_accuracies_and_the_paired_interval():
    result = three_classes(shots=16)
    low, high = (100 * bound for bound in result["changed"]["interval"])
    said = plain(verdict(result))
    assert said.startswith("16 images a class: 50.0 % → 49.3 %, -0.7 points (")
    assert f"{low:.1f} to {high:+.1f}" in said and "no certain difference" in said
    assert said.endswith("1 of 3 classes better, 1 worse.")


@pytest.mark.parametrize(
    ("new", "end"),
    [
        (["b"], "new classes unchanged (-7.2 to +3.4)."),
        (["a"], "new classes +60.0 (+43.7 to +71.6)."),
        (["c"], "new classes -60.0 (-71.6 to -43.7)."),
        (["a", "b", "c"], "all of them new to it: unchanged (-10.8 to +9.5)."),
    ],
)
def test_new_classes_are_judged_together(new, end):
    assert plain(verdict(three_classes(new_classes=new))).endswith(end)


def test_several_seeds_speak_first():
    seeds = SeedSummary(4, {"mean": 0.61, "std": 0.012}, [0.6, 0.61, 0.62])
    said = plain(verdict(three_classes(), seeds))
    assert said.startswith(
        "4 images a class, mean of 3 seeds: 50.0 % → 61.0 %, +11.0 points (± 1.2 "
    )
    assert "the saved model: 1 of 3 classes better" in said


def test_a_model_that_learned_nothing_has_one_number():
    result = compare(np.eye(4)[[0, 1, 2, 3]], None, [0, 1, 2, 2], list("abcd"))
    assert plain(verdict(result)) == "Zero-shot: 75.0 % of 4 test images right (30.1 % to 95.4 %)."


def test_what_spoils_an_accuracy_is_said_below():
    said = cautions({"images": 9, "seen_in_training": 2, "near_duplicates": [{}, {}]})
    assert said[0].startswith("2 of the 9 test images were trained on")
    assert said[1].startswith("2 of the 9 test images are near duplicates")
    assert cautions({"images": 9}) == []


@pytest.mark.parametrize(
    "place", ["birds", "/a/birds", "birds/test", "x/birds.csv", "C:\\me\\birds"]
)
def test_a_title_is_a_name(place):
    assert data_title(place) == "birds"


def test_images_of_other_things_are_found_and_none_else():
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(3, 16, generator=generator), dim=1)

    def around(labels, noise=0.15):
        rows = centres[labels] + noise * torch.randn(len(labels), 16, generator=generator)
        return torch.nn.functional.normalize(rows, dim=1)

    labels = [0, 1] * 15
    train = Features(around(labels), labels, ("a", "b"))
    other = around([2, 2])
    test = Features(torch.cat([around([0, 1, 0]), other]), [0, 1, 0, 0, 1], ("a", "b"))
    assert {one.row for one in unlike_images(test, train)} == {3, 4}
    assert {one.row for one in unlike_images(test, train, but={"b"})} == {3}
    assert unlike_images(test, train.subset(range(5))) == []  # too few to know what is usual


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model of two colours with one wrong label, and tests with a copy and a picture of something else."""
    from PIL import Image

    root = tmp_path_factory.mktemp("problems")
    tiny_encoder(root / "clip")
    generator = np.random.default_rng(0)

    def photo(colour):
        pixels = np.array(colour) + generator.integers(-25, 26, (48, 48, 3))
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    red, blue = (200, 40, 40), (40, 40, 200)
    for split, number in (("train", 12), ("test", 4)):
        for name, colour in (("red", red), ("blue", blue)):
            (root / split / name).mkdir(parents=True)
            for n in range(number):
                photo(colour).save(root / split / name / f"{n}.png")
    photo(blue).save(root / "train" / "red" / "wrong.png")
    Image.open(root / "train/red/3.png").resize((60, 60)).save(root / "test/red/copy.png")
    Image.fromarray(
        np.tile(np.eye(2, dtype=np.uint8).repeat(8, 0).repeat(8, 1) * 255, (3, 3))
    ).save(root / "test/red/checks.png")
    config = get_method("rada").config(**QUICK["rada"])
    clf = Classifier(
        str(root / "clip"), "rada", config=config, workers=0, cache=False, progress=False
    )
    clf.fit(str(root / "train"), seed=1)
    with pytest.warns(UserWarning, match="near duplicates"):
        found = clf.evaluate(str(root / "test"))
    return root, clf, found


def test_problems_are_those_that_were_planted(world):
    pytest.importorskip("cleanlab", reason="needs the extra 'labels'")
    _, _, found = world
    problems = find_problems(found)
    assert [one["id"].split("/")[-1] for one in problems["labels"]["shown"]] == ["wrong.png"]
    assert problems["labels"]["shown"][0]["suggested"] == "blue"
    assert "checks.png" in [one["id"].split("/")[-1] for one in problems["unlike"]["shown"]]
    (double,) = problems["duplicates"]["shown"]
    assert double["id"].endswith("copy.png") and double["other"].endswith("3.png")
    right = found.logits["adapted"].argmax(1) == found.features.labels
    assert problems["errors"]["total"] == int((~right).sum()) == len(problems["errors"]["shown"])
    assert problems["notes"] == []


def test_what_cannot_be_looked_for_is_said(world, tmp_path):
    root, clf, _ = world
    clf.save_pretrained(tmp_path / "model")
    loaded = Classifier.from_pretrained(tmp_path / "model", workers=0, cache=False, progress=False)
    problems = find_problems(loaded.evaluate(str(root / "test")))
    assert problems["labels"] is None and "--train" in problems["notes"][0]
    assert "not compared with the training images for near duplicates" in problems["notes"][0]


@pytest.mark.skipif(
    find_chromium() is None or os.name != "posix",
    reason="no chromium or chrome on the PATH: apt-get install chromium",
)
def test_the_verdict_is_on_the_first_screen_and_paper_is_light(world, tmp_path):
    _, _, found = world
    page = write_report(tmp_path, found.result, problems=find_problems(found))
    assert re.search("on the frozen encoder “[^{]*clip”", page.read_text())
    script = """(() => {
      const verdict = document.querySelector('.verdict'), caution = document.querySelector('.caution');
      return [verdict.getBoundingClientRect().bottom, caution.getBoundingClientRect().bottom,
              [...document.images].length, document.body.scrollWidth];
    })()"""
    browser = Chromium(find_chromium())
    try:
        for width in (1280, 390):
            bottom, caution, images, wide = browser.look(page, width, 640, script=script).measured
            assert bottom < caution < 640 and images >= 4 and wide <= width
        html = page.read_text()
        assert "@media screen and (prefers-color-scheme:dark)" in html
    finally:
        browser.close()
