"""The whole way through the app in headless Chromium: desktop with the mouse, phone with the keyboard alone.

With RADA_SCREENSHOTS=FOLDER the pictures of docs/app.md are written there, with all words and all parts of
the cross-validation, which take time.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
import zipfile
from pathlib import Path

import pytest

import rada.app.session
import rada.explain.words
from headless import find_chromium
from rada import Classifier, open_dataset
from rada.app.config import AppConfig

pytest.importorskip("gradio", reason="needs the extra 'app'")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: the extra 'test'")
pytest.importorskip("conformal_clip_data", reason="needs the extra 'embedded'")
pytestmark = pytest.mark.skipif(
    find_chromium() is None or os.name != "posix",
    reason="no chromium or chrome on the PATH: apt-get install chromium",
)
NAMES = ("nominal fabric", "global defect")  # a few photos are enough to tell them apart
PATIENCE = 30_000  # milliseconds
GATE = threading.Event()
"""Teaching waits where it is not set."""
PICTURES = os.environ.get("RADA_SCREENSHOTS")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of seven photos of each class with a broken one, and a zip of one more of each to try.

    The class is in the name of each file.
    """
    folder = tmp_path_factory.mktemp("photos")
    (folder / "learn").mkdir()
    data = open_dataset("textiles").splits["train"]
    with zipfile.ZipFile(folder / "try.zip", "w") as archive:
        for name in NAMES:
            rows = (data.labels == data.classes.index(name)).nonzero()[0]
            for number, row in enumerate(rows[:8]):
                image = data.load(int(row))
                image.thumbnail((240, 240))
                path = folder / "learn" / f"{number} {name}.png"
                image.save(path)
                if number == 7:
                    archive.write(path, f"other/{path.name}")
                    path.rename(folder / path.name)
    (folder / "learn" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def server():
    """The app with the embedded model in a thread; its address and its sessions."""
    import uvicorn

    from rada.app.brain import Brain
    from rada.app.hall import Hall
    from rada.app.server import build_server

    def gated(*args, **options):
        assert GATE.wait(PATIENCE / 1000)
        return teach(*args, **options)

    GATE.set()
    words, teach = rada.explain.words.word_list(), rada.app.session.teach
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rada.app.session, "teach", gated)
        if not PICTURES:  # a tenth of the words
            patch.setattr(rada.explain.words, "word_list", lambda: words[::10])
        brain = Brain(Classifier("embedded", cache=False, workers=0, progress=False))
        brain.warm()
        hall = Hall(brain, AppConfig(seed=1, folds=5 if PICTURES else 2))
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        app = build_server(hall, port=port)
        running = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{port}", hall
        running.should_exit = True
        thread.join(20)
        hall.close()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page, and what it asked for and complained of."""

    def __init__(self, browser, server, width, height, **options):
        self.address, self._hall = server
        self._before = set(self._hall._sessions)
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, accept_downloads=True, **options
        )
        self.elsewhere, self.complaints = [], []
        self.open()

    def open(self):
        """Open the page in a new tab."""
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", self._asked)
        self.page.on("console", self._said)
        self.page.on("pageerror", self._threw)
        self.page.goto(self.address)
        self.page.wait_for_selector("#rada-overview p")  # what the server knows is there

    @functools.cached_property
    def session(self):
        """What the server keeps of this browser."""
        (name,) = set(self._hall._sessions) - self._before
        return self._hall._sessions[name]

    def _asked(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def _threw(self, error):
        # What Gradio waits for is broken off when the page is left.
        if "AbortError" not in str(error) and "TimeoutError" not in str(error):
            self.complaints.append(str(error))

    def _said(self, message):
        if message.type == "error":
            self.complaints.append(message.text)

    def until(self, selector, text):
        """Wait until an element says something."""
        playwright.expect(self.page.locator(selector).first).to_contain_text(text, timeout=PATIENCE)

    def cards(self, count):
        """Wait until so many images are shown, each with an answer, and return the classes in their names."""
        found = self.page.locator(".rada-card:visible")
        playwright.expect(found).to_have_count(count, timeout=PATIENCE)
        playwright.expect(found.filter(has_text="%")).to_have_count(count, timeout=PATIENCE)
        texts = found.all_inner_texts()
        # What is asked below an image is about this image.
        shown = [text.split("\n")[-1].partition(".")[0].strip() for text in texts]
        for said in ("Why? (image {})", "Label of image {}"):
            below = self.page.locator(
                "button:visible, span:visible", has_text=said.partition("{")[0]
            )
            expected = [said.format(number) for number in shown]
            playwright.expect(below).to_have_text(expected, timeout=PATIENCE)
        return [next(name for name in NAMES if name in text.split("\n")[-1]) for text in texts]

    def picture(self, name):
        """Take a screenshot for the docs, where they are asked for."""
        if PICTURES:
            self.page.wait_for_timeout(700)
            place = Path(PICTURES) / f"{name}.jpg"
            self.page.screenshot(path=place, full_page=True, type="jpeg", quality=70)

    def fits(self):
        """Nothing is wider than the screen, and all steps are in sight."""
        width, wide = self.page.evaluate("[innerWidth, document.documentElement.scrollWidth]")
        tabs = self.page.get_by_role("tab")
        seen = [tabs.nth(n).bounding_box() for n in range(tabs.count())]
        return wide <= width and len(seen) == 5 and seen[-1]["x"] + seen[-1]["width"] <= width

    def close(self):
        """Close the browser; nothing was asked of others, and nothing complained."""
        self.context.close()
        assert self.elsewhere == [] and self.complaints == []


class Mouse:
    """Somebody who points and clicks."""

    def __init__(self, watched):
        self.page = watched.page

    def open(self, tab):
        self.page.get_by_role("tab", name=tab).click()

    def send(self, selector, path):
        self.page.set_input_files(selector, path)

    def write(self, selector, text):
        self.page.locator(selector).fill(text)

    def use(self, selector):
        self.page.locator(selector).click()


class Keyboard(Mouse):
    """Somebody without a mouse: Tab and Shift-Tab, Enter and Space, and the letters."""

    def _reach(self, selector):
        for _ in range(160):
            if self.page.evaluate("s => document.activeElement.matches(s)", selector):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"{selector} cannot be reached by Tab")

    def open(self, tab):
        number = int(tab[0])
        self._reach(f"[role=tab]:nth-of-type({number})")
        self.page.keyboard.press("Enter")

    def send(self, selector, path):
        for _ in range(4):  # a tab that was just opened may still be drawn, and lose the key
            self._reach(selector)
            with contextlib.suppress(playwright.TimeoutError):
                with self.page.expect_file_chooser(timeout=3000) as chooser:
                    self.page.keyboard.press("Enter")
                chooser.value.set_files(path)
                return
        raise AssertionError(f"Enter does not open {selector}")

    def write(self, selector, text):
        self._reach(selector)
        self.page.keyboard.type(text)

    def use(self, selector):
        self._reach(selector)
        radio = self.page.evaluate("document.activeElement.type === 'radio'")
        self.page.keyboard.press("Space" if radio else "Enter")


def the_whole_way(one, hands, photos, tmp_path, prefix=""):
    """From the first image to the saved model, by one pair of hands."""
    page = one.page

    # images, one of them broken, and the zero-shot answer at once
    hands.send("#rada-upload-learn input[webkitdirectory]", photos / "learn")
    one.until("#rada-upload-learn .rada-said", "15 of 15 files sent")
    one.until("#rada-overview", "14 images to learn from")
    one.until("#rada-overview", "broken.png")
    hands.write("#rada-names textarea", "\n".join(NAMES))
    hands.use("#rada-use-names")
    one.until("#rada-said", "2 classes")
    one.until("#rada-strip", "%")
    assert one.fits()
    one.picture(f"{prefix}1-images")

    # training without labels says what is missing
    hands.open("3 Train")
    hands.use("#rada-train")
    one.until("#rada-progress", "at least two classes first; so far it is 0")
    one.session.version += 1  # the page is drawn again, as when an image was looked at
    page.wait_for_timeout(2500)
    one.until("#rada-progress", "at least two classes first; so far it is 0")

    # label the most useful ones, train, label more, and train again
    for step, labels in enumerate((12, 14)):
        hands.open("2 Label")
        if step:
            hands.use("#rada-next-learn")
        for slot, name in enumerate(one.cards(12 if not step else 2)):
            hands.use(f'#rada-learn-{slot} input[value="{name}"]')
        one.until("#rada-labels", f"{labels} labels")
        assert one.fits()
        if not step:
            one.picture(f"{prefix}2-label")
        hands.open("3 Train")
        hands.use("#rada-train")
        playwright.expect(page.locator("#rada-history tr")).to_have_count(step + 1)
        one.until("#rada-results", f"{labels} labels")
    session = one.session
    found = session.taught.evaluation
    assert found["adapted"]["accuracy"] > found["zero_shot"]["accuracy"]
    for row, (labels, accuracy, _) in enumerate(session.history):
        one.until(f"#rada-history tr >> nth={row}", f"{labels} labels")
        one.until(f"#rada-history tr >> nth={row}", f"{100 * accuracy:.1f} %")
    assert one.fits()
    one.picture(f"{prefix}3-train")

    # other images: an answer, a reason that comes into sight, a correction
    hands.open("4 Try")
    hands.send("#rada-upload-try input[multiple]", photos / "try.zip")
    truth = one.cards(2)
    one.picture(f"{prefix}4-try")
    hands.use("#rada-why-try-0")
    one.until("#rada-because-try", "In words:")
    assert page.locator("#rada-because-try img").count() == 2 + 4 + 4  # map, and similar images
    playwright.expect(page.locator("#rada-because-try")).to_be_in_viewport(ratio=0.2)
    assert one.fits()
    one.picture(f"{prefix}5-why")
    hands.use(f'#rada-try-0 input[value="{truth[0]}"]')
    one.until("#rada-labels", "15 labels")
    assert session.labels[14] == truth[0]

    # the tab is closed while the corrected model is trained; it is there in a new one
    hands.open("3 Train")
    GATE.clear()
    hands.use("#rada-train")
    one.until("#rada-progress", "%")
    page.close()
    GATE.set()
    one.open()
    hands.page = page = one.page
    hands.open("3 Train")
    one.until("#rada-history", "15 labels")

    # the model and the report
    hands.open("5 Save")
    assert one.fits()
    one.picture(f"{prefix}6-save")
    saved = {}
    for name in ("model.zip", "report.html"):
        with page.expect_download() as download:
            hands.use(f'#rada-links a[href="/rada/{name}"]')
        saved[name] = Path(download.value.path())
    with zipfile.ZipFile(saved["model.zip"]) as archive:
        archive.extractall(tmp_path)
    report = saved["report.html"].read_text()
    assert "cross-validation in" in report and "http-equiv" in report
    loaded = Classifier.from_pretrained(tmp_path / "model", cache=False, workers=0, progress=False)
    said = [answer.name for answer in session.answers([14, 15]).values()]
    files = [photos / session.album.pictures[number].name for number in (14, 15)]
    assert loaded.predict(files).tolist() == said


def test_on_a_desktop_with_the_mouse(chromium, server, photos, tmp_path):
    one = Watched(chromium, server, 1280, 900)
    the_whole_way(one, Mouse(one), photos, tmp_path)

    # a reload forgets nothing, and another browser sees nothing of it
    page = one.page
    page.reload()
    one.until("#rada-overview", "14 images to learn from and 2 to try")
    assert page.get_by_label("Classes, one a line").input_value() == "\n".join(NAMES)
    for tab, place in (("2 Label", "#rada-labels"), ("3 Train", "#rada-history")):
        page.get_by_role("tab", name=tab).click()
        one.until(place, "15 labels")
    other = Watched(chromium, server, 1280, 900)
    other.until("#rada-overview", "No images yet")
    for place in ("/rada/images/0", "/rada/model.zip", "/rada/report.html"):
        assert other.context.request.get(one.address + place).status in (404, 409)
    image = one.context.request.get(f"{one.address}/rada/images/0")
    assert image.headers["content-type"] == "image/jpeg"

    # until it is asked to
    folder = one.session.folder
    page.get_by_role("tab", name="5 Save").click()
    page.get_by_role("button", name="Forget everything of mine").click()
    page.get_by_role("button", name="Delete images, labels and model").click()
    page.get_by_role("tab", name="1 Images").click()
    one.until("#rada-overview", "No images yet")
    assert not list(folder.rglob("0*"))
    other.close()
    one.close()


def test_on_a_phone_with_the_keyboard_alone(chromium, server, photos, tmp_path):
    one = Watched(chromium, server, 390, 844, has_touch=True, is_mobile=True)
    the_whole_way(one, Keyboard(one), photos, tmp_path, "phone-")
    one.close()
