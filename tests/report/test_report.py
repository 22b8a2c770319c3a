"""The page: what it says, what it escapes, how it is written."""

import base64
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from rada.core.errors import FeatureError, StorageError
from rada.core.output import STATE_FOLDER
from rada.report import (
    Page,
    Row,
    Section,
    Table,
    TableCell,
    Text,
    changed_examples,
    render_page,
    write_report,
)
from report_samples import HOSTILE, Photos, make_curve, make_result, make_runs

VOID = {"meta", "link", "img", "source", "br"}


class Reader(HTMLParser):
    """Checks that elements are nested and closed, and collects what the tests ask about."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.images, self.ids, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if "id" in attributes:
            assert attributes["id"] not in self.ids
            self.ids.append(attributes["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader


def svgs(html):
    uris = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", html)
    return [base64.b64decode(uri).decode() for uri in uris]


def written(tmp_path, classes, **options):
    result, labels, zero_shot, adapted = make_result(classes, **options)
    examples = changed_examples(Photos(classes, labels), zero_shot, adapted, limit=4)
    path = write_report(
        tmp_path / "report", result, examples=examples, curve=make_curve(), runs=make_runs()
    )
    return result, path.read_text(encoding="utf-8")


def test_the_page_says_what_was_measured(tmp_path):
    result, html = written(tmp_path, ["nominal fabric", "local defect", "global defect"])
    text = " ".join(" ".join(read(html).text).split())
    for row in ("zero_shot", "adapted", "linear_probe"):
        assert f"{100 * result[row]['accuracy']:.1f}" in text
        assert f"{100 * result[row]['ece']:.1f}" in text
    assert f"{result['changed']['wrong_to_right']:,}" in text
    assert "16 images a class" in text
    assert "400 test images" in text
    assert result["command"] in text
    assert "learning_rate" in text
    assert result["environment"]["versions"]["torch"] in text
    assert "1,338 MiB" in text
    assert all(count in text for row in result["adapted"]["confusion"] for count in map(str, row))


def test_the_page_needs_nothing_else(tmp_path):
    _, html = written(tmp_path, ["a", "b", "c"])
    reader = read(html)
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"index.html", STATE_FOLDER}
    for tag, attributes in reader.tags:
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "data:").startswith("data:"), tag
        assert not any(name.startswith("on") for name in attributes)
        if tag == "img":
            assert attributes["alt"].strip()
    assert "script" not in {tag for tag, _ in reader.tags}
    assert "@import" not in html and "url(http" not in html
    for svg in svgs(html):
        ElementTree.fromstring(svg)
        assert not re.findall(r'(?:href|src)="https?:', svg)


def test_figures_follow_light_and_dark(tmp_path):
    _, html = written(tmp_path, ["a", "b", "c"])
    drawings = svgs(html)
    assert len(drawings) == 6  # bars, shots and training, each for wide and narrow screens
    for svg in drawings:
        assert "prefers-color-scheme:dark" in svg
        body = svg.split("</style>", 1)[1]
        assert not set(re.findall(r"#[0-9a-f]{6}\b", body)) - {"#ffffff"}


def test_hostile_names_are_text(tmp_path):
    result, html = written(tmp_path, list(HOSTILE))
    result["dataset"] = result["command"] = HOSTILE[0]
    result["config"] = {HOSTILE[0]: {HOSTILE[1]: HOSTILE[2]}}
    path = write_report(tmp_path / "all", result, title=HOSTILE[0])
    for page in (html, path.read_text(encoding="utf-8")):
        reader = read(page)
        assert not {"script", "b"} & {tag for tag, _ in reader.tags}
        assert HOSTILE[0] in " ".join(reader.text)
        assert "\udce9" not in page and "\x00" not in page and "\u202e" not in page
        for svg in svgs(page):
            ElementTree.fromstring(svg)  # control characters would end it here
    assert any("$x^2$" in svg for svg in svgs(html))


@pytest.mark.parametrize("count", [1, 2, 12, 13, 26, 201])
def test_any_number_of_classes(tmp_path, count):
    result, labels, zero_shot, adapted = make_result([f"c{k}" for k in range(count)], images=150)
    examples = changed_examples(Photos(result["classes"], labels), zero_shot, adapted, limit=1)
    html = write_report(tmp_path, result, examples=examples).read_text(encoding="utf-8")
    read(html)
    assert ("Rows are true classes" in html) == (count <= 12)
    assert ("as a heat map" in html) == (12 < count <= 200)
    assert ("Each point is a class" in html) == (count > 25)


def test_classes_without_images_and_a_perfect_model(tmp_path):
    from rada.evaluation import compare

    logits = torch.eye(30)[[0, 1, 2, 2]]
    result = compare(logits, logits, [0, 1, 2, 2], [f"c{k}" for k in range(30)])
    html = write_report(tmp_path, result).read_text(encoding="utf-8")
    assert "no error" in html
    assert "Run it again" not in html
    few = compare(logits[:, :3], logits[:, :3], [0, 1, 1, 1], ["a", "b", "never seen"])
    read(write_report(tmp_path, few).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "curve", [[], [{"loss": 1.0}], [{"loss": None, "accuracy": 0.5}] * 3, [{"other": 1}]]
)
def test_partial_histories(tmp_path, curve):
    result = make_result(["a", "b"], images=20)[0]
    html = write_report(tmp_path, result, curve=curve).read_text(encoding="utf-8")
    drawn = any(
        value is not None and key != "other" for epoch in curve for key, value in epoch.items()
    )
    assert ("<h2>Training</h2>" in html) == drawn


def test_same_result_same_page(tmp_path):
    result = make_result(["a", "b"], images=20)[0]
    pages = [write_report(tmp_path / name, result, runs=make_runs()).read_bytes() for name in "ab"]
    assert pages[0] == pages[1]


def test_a_failed_write_keeps_the_old_page(tmp_path):
    result = make_result(["a", "b"], images=20)[0]
    path = write_report(tmp_path, result, title="Old")
    broken = dict(result, config={"field": object.__new__(Unprintable)})
    with pytest.raises(RuntimeError):
        write_report(tmp_path, broken, title="New")
    assert "<title>Old</title>" in path.read_text(encoding="utf-8")
    assert {entry.name for entry in tmp_path.iterdir()} == {"index.html", STATE_FOLDER}
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_report(tmp_path / "file", result)


class Unprintable:
    def __str__(self):
        raise RuntimeError("no")


def test_examples_are_those_that_changed():
    classes, labels = ["a", "b"], [0, 0, 0, 1, 1, 1]
    photos = Photos(classes, labels)
    before = np.array([[0, 1.0], [0, 1], [1, 0], [1, 0], [0, 1], [0, 1]])
    after = np.array([[5.0, 0], [1, 0], [1, 0], [0, 2], [3, 0], [0, 1]])
    examples = changed_examples(photos, before, after)
    # The classes take turns: first of each class the one that moved most, then the rest.
    assert [example["id"] for example in examples] == [photos.ids[index] for index in (0, 3, 1, 4)]
    assert examples[0]["true"] == examples[0]["adapted"]["class"] == "a"
    assert examples[0]["adapted"]["probability"] == pytest.approx(1 / (1 + np.exp(-5)))
    assert examples[-1]["zero_shot"]["class"] == examples[-1]["true"] == "b"
    assert len(changed_examples(photos, before, after, limit=1)) == 2
    with pytest.raises(FeatureError, match="6 images"):
        changed_examples(photos, before[:5], after)


def test_blocks_make_other_pages():
    table = Table(
        "Costs", ["", "s"], [Row("fast & small", [TableCell("1.2", "gain")]), Row("slow", ["9"])]
    )
    html = render_page(Page("Bench <1>", "Two methods.", [Section("Costs", [table, Text("So.")])]))
    reader = read(html)
    assert "Bench <1>" in "".join(reader.text)
    assert ("td", {"class": "gain"}) in reader.tags


def test_words_do_not_import_matplotlib():
    code = "import sys, rada.report.text; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def text_of(html):
    return " ".join(" ".join(read(html).text).split())


def test_the_best_value_of_each_column_is_bold_whoever_has_it(tmp_path):
    result = make_result(["a", "b", "c"], images=200, skill=(2.0, 0.5))[0]
    assert result["zero_shot"]["accuracy"] > result["adapted"]["accuracy"]
    html = write_report(tmp_path, result).read_text(encoding="utf-8")
    table = html.split("<table", 2)[1].split("</table>")[0]
    bold = re.findall(r'<td[^>]*class="best"[^>]*>([^<]*)<', table)
    rows = [result[key] for key in result["rows"]]
    assert f"{100 * max(row['accuracy'] for row in rows):.1f}" == bold[0]
    assert f"{100 * max(row['balanced_accuracy'] for row in rows):.1f}" in bold
    assert f"{100 * min(row['ece'] for row in rows):.1f}" in bold
    accent = re.search(r'<tr[^>]*class="accent">.*?</tr>', table, re.DOTALL)
    assert f">{100 * result['adapted']['accuracy']:.1f}<" in accent.group()
    assert (
        "accent td { color: var(--accent); }" in html
    )  # colour says which row, weight which is best


def test_a_class_that_fails_is_said_in_words(tmp_path):
    from rada.evaluation import compare

    labels = [0] * 30 + [1] * 36 + [2] * 10
    right = np.eye(3)[labels]
    failing = right.copy()
    failing[31:66] = [1, 0, 0]  # of 36 of class 1, one is recognised
    result = compare(right, failing, labels, ["nominal", "local defect", "global defect"])
    text = text_of(write_report(tmp_path, result).read_text(encoding="utf-8"))
    assert (
        "RAda fails on “local defect”: it recognises 1 of 36 test images (2.8 %, zero-shot 100.0 %) "
        "and takes most of them for “nominal”."
    ) in text
    assert "fails on “nominal”" not in text and "fails on “global" not in text
    many = compare(
        np.eye(40), np.roll(np.eye(40), 1, axis=1), range(40), [f"c{k}" for k in range(40)]
    )
    text = text_of(write_report(tmp_path, many).read_text(encoding="utf-8"))
    assert text.count("RAda fails on “") == 5
    assert "It fails on 40 classes in all." in text


def test_the_headline_over_seeds_is_mean_and_deviation(tmp_path):
    result = make_result(["a", "b", "c"], images=200)[0] | {"shots": 16, "seed": 1}
    runs = [
        {"method": "rada_probe", "shots": 16, "seed": seed, "accuracy": accuracy}
        for seed, accuracy in enumerate((0.723, 0.680, 0.694), 1)
    ]
    text = text_of(write_report(tmp_path, result, runs=runs).read_text(encoding="utf-8"))
    head = text.split("Accuracy by number of shots")[0]
    assert "RAda, mean of 3 seeds 69.9" in head
    assert "± 2.2, from 68.0 to 72.3" in head
    assert f"{100 * result['adapted']['accuracy']:.1f}" not in head  # one seed is no headline
    assert "the one head of seed 1 that was saved, not the mean" in text
    one = text_of(write_report(tmp_path, result, runs=runs[:1]).read_text(encoding="utf-8"))
    assert f"RAda accuracy {100 * result['adapted']['accuracy']:.1f}" in one


def test_what_training_came_to_stands_beside_what_was_asked(tmp_path):
    result = make_result(["a", "b", "c"], images=200)[0]
    result["config"] |= {"epochs": 10, "min_steps": 300}
    result["training"] = {"images": 12}
    html = write_report(tmp_path, result, curve=make_curve(150)).read_text(encoding="utf-8")
    text = text_of(html)
    assert "epochs 150 (min_steps asks for more than 10)" in text
    assert "batch_size 12, all images (32 asked for)" in text
    assert "strength 0.75 (auto)" in text
    result["config"] |= {"epochs": 300}
    result["training"]["effective"] = {"epochs": 150, "reason": "half of the 300"}
    fewer = write_report(tmp_path, result, curve=make_curve(150)).read_text(encoding="utf-8")
    assert "epochs 150 (half of the 300)" in text_of(fewer)
    result["config"]["epochs"] = 150
    same = text_of(
        write_report(tmp_path, result, curve=make_curve(150)).read_text(encoding="utf-8")
    )
    assert "epochs 150 learning" in same or "epochs 150 batch" in same


def test_a_page_without_a_head_has_one_row(tmp_path):
    from rada.evaluation import compare
    from rada.report import report_examples

    labels = [0, 1, 2, 2]
    for count in (3, 30):
        classes = [f"c{k}" for k in range(count)]
        logits = np.eye(count)[[0, 1, 2, 0]]
        result = compare(logits, None, labels, classes) | {
            "dataset": "birds",
            "encoder": "embedded",
        }
        assert result["rows"] == ["zero_shot"] and result["changed"] is None
        examples = report_examples(Photos(classes, labels), logits, None)
        assert [one["true"] for one in examples] == ["c2"] and "adapted" not in examples[0]
        html = write_report(tmp_path, result, examples=examples).read_text(encoding="utf-8")
        text = text_of(html)
        assert "RAda" not in text.replace("RAda report", "")
        assert "<title>Zero-shot on birds</title>" in html
        assert "From wrong to right" not in text and "Wrong" in text


def test_what_is_still_wrong_is_shown(tmp_path):
    from rada.report import wrong_examples

    photos = Photos(["a", "b"], [0, 0, 0, 1, 1])
    before = np.array([[0, 1.0], [0, 3], [1, 0], [2, 0], [0, 1]])
    after = np.array([[0, 1.0], [0, 2], [0, 1], [9, 0], [0, 1]])
    found = wrong_examples(photos, before, after)
    # Wrong before and after, the most certain first, the classes in turn: not image 2, which changed.
    assert [one["id"] for one in found] == [photos.ids[index] for index in (3, 1, 0)]
    assert found[0]["adapted"]["probability"] == pytest.approx(1 / (1 + np.exp(-9)))
    result = make_result(["a", "b"], images=20)[0]
    html = write_report(tmp_path, result, examples=found).read_text(encoding="utf-8")
    assert text_of(html).count("Still wrong") == 1
    assert all(one["id"] in html for one in found)


@pytest.mark.parametrize("tuned", [False, True])
def test_the_page_names_the_method(tmp_path, tuned):
    result = make_result(["a", "b"], images=20)[0]
    result |= {"dataset": "birds", "encoder": "embedded", "tuned": tuned}
    result |= {"row_names": {"adapted": "FLYP" if tuned else "Linear probe"}}
    html = write_report(tmp_path, result).read_text(encoding="utf-8")
    name = "FLYP" if tuned else "Linear probe"
    assert f"<title>{name} on birds</title>" in html and "RAda on" not in html
    kind, other = ("tuned", "frozen") if tuned else ("frozen", "tuned")
    assert f"on the {kind} encoder" in html and f"{other} encoder" not in html


def test_folders_do_not_leave_the_house(tmp_path):
    result = make_result(["a", "b"], images=20)[0]
    result |= {
        "dataset": "/home/ann/clients/acme/birds/test",
        "data": "/home/ann/clients/acme/birds/test",
        "head": "/srv/private/head",
        "command": "rada evaluate /srv/private/head /home/ann/clients/acme/birds/test",
    }
    html = write_report(tmp_path, result).read_text(encoding="utf-8")
    assert "<title>RAda on birds</title>" in html
    for private in ("/home", "acme", "/srv", "private"):
        assert private not in html
