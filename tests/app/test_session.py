"""One person's work, without a browser: labels, order, teaching, answers, and what is taken away."""

from __future__ import annotations

import io
import threading
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from golden.make import tiny_encoder
from rada import Classifier
from rada.app.brain import Brain
from rada.app.config import AppConfig
from rada.app.hall import Hall, read_cookie
from rada.app.ordering import most_useful
from rada.app.session import Session
from rada.app.training import Job, folds_of
from rada.app.views import card, intake_lines, label_line, overview, progress, results
from rada.core.errors import ConfigError, DataError

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def photo(colour, seed):
    noise = np.random.default_rng(seed).integers(-40, 41, (40, 40, 3))
    pixels = (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brain")
    tiny_encoder(folder / "clip")
    return Brain(Classifier(str(folder / "clip"), cache=False, workers=0, progress=False))


@pytest.fixture
def session(brain, tmp_path):
    """A session with five images of each of three colours, looked at and named, none labelled."""
    found = Session(tmp_path / "session", brain, AppConfig(seed=1))
    for n, colour in enumerate(list(COLOURS) * 5):
        found.add(photo(colour, n), f"{colour} {n}.png", "learn")
    while found.encode_some():
        pass
    found.name_classes("\n".join(COLOURS))
    return found


def label(session, numbers):
    for number in numbers:
        session.label(number, list(COLOURS)[number % 3])


def taught(session, method=None):
    assert session.teach(method).wait(120)
    assert session.job.error is None
    return session.taught


# -- the order -------------------------------------------------------------------------------------


def test_doubtful_and_different_images_come_first():
    rows = torch.nn.functional.normalize(
        torch.tensor([[1, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 1.0]]), dim=1
    ).numpy()
    sure = np.array([[0.9, 0.1], [0.9, 0.1], [0.55, 0.45], [0.5, 0.5], [0.8, 0.2]], np.float32)
    order = most_useful(rows, sure, [], 5)
    assert order[0] == 3  # the most doubtful
    assert order[1] == 4  # not its twin, which is nearly as doubtful
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert most_useful(rows, None, [0], 2)[0] in (2, 3, 4) and 0 not in most_useful(
        rows, None, [0], 9
    )
    assert most_useful(rows[:0], None, [], 3) == []


def test_labelled_images_are_not_asked_again(session):
    label(session, [0, 1, 2])
    asked = session.to_label(12)
    assert len(asked) == 12 and not {0, 1, 2} & set(asked)
    assert session.to_label(12) == asked


# -- labels ----------------------------------------------------------------------------------------


def test_names_are_checked_and_change_nothing_when_bad(session):
    for bad in ("", "one", "a\na", "\n".join(map(str, range(60))), "a\n" + "b" * 201):
        with pytest.raises(DataError):
            session.name_classes(bad)
    assert session.classes == tuple(COLOURS)
    session.label(0, "red")
    session.label(1, "green")
    session.name_classes("red\nyellow")
    assert session.labels == {0: "red"}  # green is gone


def test_labels_are_checked(session):
    for number, name in ((99, "red"), (0, "pink"), (-1, "red")):
        with pytest.raises(DataError):
            session.label(number, name)
    session.label(0, "red")
    session.label(0, None)
    assert session.labels == {} and session.counts() == dict.fromkeys(COLOURS, 0)


@pytest.mark.parametrize("numbers", [[], [0], [0, 3, 6]])
def test_no_or_one_labelled_class_is_refused(session, numbers):
    label(session, numbers)
    with pytest.raises(DataError, match=r"at least two classes first; so far it is [01]"):
        session.teach()
    for _ in range(2):  # however often the page is drawn again
        assert "at least two classes first" in progress(session)
    assert session.job is None and session.taught is None
    label(session, [1])
    assert progress(session) == ""  # what was missing may be there now


# -- the model -------------------------------------------------------------------------------------


def test_zero_shot_answers_at_once(session):
    answers = session.answers(range(15))
    assert len(answers) == 15 and session.model_name == "zero-shot"
    assert all(1 / 3 <= one.probability <= 1 for one in answers.values())


def test_teaching_measures_itself_and_gets_better(session, tmp_path):
    label(session, range(6))
    first = taught(session)
    assert first.labels == 6 and first.folds == 2
    label(session, range(12))
    second = taught(session)
    assert [labels for labels, *_ in session.history] == [6, 12]
    rows = second.evaluation.result
    assert rows["images"] == 12 and second.accuracy == 1.0 > rows["zero_shot"]["accuracy"]
    # the last three images were never labelled
    assert [session.answers([n])[n].name for n in (12, 13, 14)] == list(COLOURS)
    # the folder is one that rada predict takes, and says the same
    with zipfile.ZipFile(io.BytesIO(session.model_archive())) as archive:
        assert "model/config.json" in archive.namelist()
        archive.extractall(tmp_path / "out")
    loaded = Classifier.from_pretrained(
        tmp_path / "out" / "model", cache=False, workers=0, progress=False
    )
    assert loaded.predict(str(session.album.path(13))).tolist() == ["green"]
    html = session.report()
    assert "cross-validation in" in html and "your photos" in html and str(tmp_path) not in html
    assert "10 red 9.png" in html  # as it is called on the page


def test_same_labels_same_model(session, brain, tmp_path):
    label(session, range(9))
    first = taught(session).evaluation.logits["adapted"]
    assert torch.equal(first, taught(session).evaluation.logits["adapted"])


def test_a_class_with_one_image_is_never_held_out():
    held = folds_of(np.array([0, 0, 0, 1, 1, 1, 2]), 5, 0)
    assert len(held) == 3 and 6 not in np.concatenate(held)
    assert folds_of(np.array([0, 1, 2]), 5, 0) == []


def test_one_image_a_class_teaches_without_a_number(session):
    label(session, [0, 1])
    found = taught(session)
    assert found.evaluation is None and session.history == []
    assert "two images of a class" in results(session)
    with pytest.raises(DataError, match="no report yet"):
        session.report()
    assert session.answers([2])[2].name in COLOURS  # blue has no label


def test_training_can_be_stopped_and_the_model_before_stays(session):
    label(session, range(6))
    before = taught(session)
    go, seen = threading.Event(), []

    def work(advance):
        advance(0.25, "one")
        seen.append(1)
        go.wait(20)
        advance(0.5, "two")
        raise AssertionError("it went on")

    session.job = Job(work, lambda found: seen.append(found))
    while not seen:
        time.sleep(0.01)
    assert session.job.running and 'value="0.250"' in progress(session)
    session.job.stop()
    go.set()
    assert session.job.wait(20) and seen == [1]
    assert "stopped" in session.job.error and session.taught is before


def test_why_has_words_neighbours_and_no_path(session):
    label(session, range(6))
    taught(session)
    found = session.explain(12)
    assert found.name == "red 12.png" and found.nearest.all[0].label == "red"
    assert str(session.folder) not in found._repr_html_()
    with pytest.raises(DataError, match="no image 99"):
        session.explain(99)


def test_a_model_without_an_encoder_is_refused():
    from rada import Features

    rows = torch.nn.functional.normalize(torch.randn(8, 16), dim=1)
    data = Features(rows, [0, 1] * 4, ("a", "b"), text_features=rows[:2], scale=10.0)
    alone = Classifier(None, "linear_probe", progress=False).fit(data)
    with pytest.raises(ConfigError, match="--encoder"):
        Brain(alone)


def test_the_app_can_begin_with_a_saved_model(session, brain, tmp_path):
    label(session, range(9))
    taught(session).classifier.save_pretrained(tmp_path / "model")
    start = Classifier.from_pretrained(
        tmp_path / "model", encoder=brain.encoder, cache=False, workers=0, progress=False
    )
    other = Session(tmp_path / "other", Brain(start), AppConfig())
    assert other.classes == tuple(COLOURS)
    other.add(photo("blue", 77), "x.png", "try")
    other.encode_some()
    assert other.answers([0])[0].name == "blue" and other.model_name != "zero-shot"
    session.close()
    assert not session.album.folder.exists()


# -- what is said ----------------------------------------------------------------------------------


def test_names_are_text_on_the_page(brain, tmp_path):
    found = Session(tmp_path, brain, AppConfig())
    evil = "<img src=x onerror=alert(1)>"
    found.add(photo("red", 0), evil, "learn")
    found.add(b"no", evil, "learn")
    found.encode_some()
    found.name_classes(f"{evil}\nb")
    found.label(0, evil)
    for html in (card(found, 0), overview(found), label_line(found), intake_lines(found.intake)):
        assert "<img src=x" not in html and "&lt;img src=x" in html


# -- many sessions ---------------------------------------------------------------------------------


def test_browsers_do_not_see_each_other(brain, tmp_path):
    hall = Hall(brain, AppConfig(max_sessions=2), tmp_path)
    one, two, three = (hall.new_token() for _ in range(3))
    hall.session(one).add(photo("red", 0), "mine.png", "learn")
    assert len(hall.session(two).album) == 0 and len(hall.session(one).album) == 1
    assert hall.session(one) is hall.session(one)
    for bad in (
        None,
        "",
        "x.y",
        one[:-1],
        one.split(".")[0] + ".",
        "../../etc." + one.split(".")[1],
    ):
        with pytest.raises(PermissionError, match="no session"):
            hall.session(bad)
    gone = hall.session(two).folder
    hall.session(one)
    hall.session(three)  # the one that was idle longest makes room
    assert len(hall) == 2 and not gone.exists() and len(hall.session(one).album) == 1
    hall.forget(one)
    assert len(hall.session(one).album) == 0
    hall.close()
    assert len(hall) == 0 and not tmp_path.exists()


def test_sessions_are_kept_for_a_time(brain, tmp_path, monkeypatch):
    hall = Hall(brain, AppConfig(keep_minutes=30), tmp_path)
    one, two = hall.new_token(), hall.new_token()
    hall.session(one).add(photo("red", 0), "x.png", "learn")
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 29 * 60)
    hall.session(two)
    assert len(hall.session(one).album) == 1  # used again just now
    monkeypatch.setattr(time, "monotonic", lambda: now + 60 * 60)
    hall.session(two)
    assert len(hall) == 1 and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    hall.close()


def test_cookies_are_read_as_they_come():
    assert read_cookie("a=1; rada_7860=tok.en; b", "rada_7860") == "tok.en"
    assert read_cookie("rada_7860", "rada_7860") is None
