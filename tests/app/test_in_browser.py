"""The whole way through the app in headless Chromium: desktop with the mouse, phone with the keyboard alone.

With RADA_SCREENSHOTS=FOLDER the pictures of docs/app.md are written there.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import zipfile
from pathlib import Path

import pytest

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
PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight photos of each class to learn from and one of each to try, small, the class in the name."""
    folder = tmp_path_factory.mktemp("photos")
    data = open_dataset("textiles").splits["train"]
    found = {}
    for role, first, last in (("learn", 0, 8), ("try", 8, 9)):
        paths = []
        for name in NAMES:
            rows = (data.labels == data.classes.index(name)).nonzero()[0][first:last]
            for number, row in enumerate(rows):
                image = data.load(int(row))
                image.thumbnail((320, 320))
                path = folder / f"{name} {role} {number}.png"
                image.save(path)
                paths.append(str(path))
        found[role] = [
            paths[k] for n in range(last - first) for k in range(n, len(paths), last - first)
        ]
    broken = folder / "broken.png"
    broken.write_bytes(b"no image")
    found["learn"].append(str(broken))
    return found


@pytest.fixture(scope="module")
def server():
    """The app with the embedded model in a thread; its address and its sessions."""
    import uvicorn

    from rada.app.brain import Brain
    from rada.app.hall import Hall
    from rada.app.server import build_server

    brain = Brain(Classifier("embedded", cache=False, workers=0, progress=False))
    brain.warm()
    hall = Hall(brain, AppConfig(seed=1))
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    app = build_server(hall, port=port)
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
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

    def __init__(self, browser, address, width, height, **options):
        self.context = browser.new_context(viewport={"width": width, "height": height}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.elsewhere, self.complaints, self.address = [], [], address
        self.page.on("request", self._asked)
        self.page.on("console", self._said)
        self.page.on("pageerror", self._threw)
        self.page.goto(address)
        self.page.wait_for_selector("#rada-use-names")

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

    def tab(self, name):
        self.page.get_by_role("tab", name=name).click()

    def picture(self, name):
        """Take a screenshot for the docs, where they are asked for."""
        folder = os.environ.get("RADA_SCREENSHOTS")
        if folder:
            self.page.wait_for_timeout(700)
            place = Path(folder) / f"{name}.jpg"
            self.page.screenshot(path=place, full_page=True, type="jpeg", quality=70)

    def fits(self):
        """Nothing is wider than the screen."""
        script = "[document.documentElement.scrollWidth, innerWidth]"
        wide, width = self.page.evaluate(script)
        return wide <= width

    def slots(self, role="learn"):
        """Return the numbers of the slots that show an image, and the class in its name."""
        cards = self.page.locator(".rada-card .rada-name:visible").all_inner_texts()
        return [next(name for name in NAMES if name in text) for text in cards]


def test_from_the_first_image_to_the_saved_model(chromium, server, photos, tmp_path):
    address, hall = server
    one = Watched(chromium, address, 1280, 900, accept_downloads=True)
    page = one.page

    # images, one of them broken, and the zero-shot answer at once
    page.set_input_files("#rada-upload-learn input[multiple]", photos["learn"])
    one.until("#rada-upload-learn .rada-said", "17 of 17 files sent")
    one.until("#rada-overview", "16 images to learn from")
    one.until("#rada-overview", "broken.png")
    page.get_by_label("Classes, one a line").fill("\n".join(NAMES))
    page.get_by_role("button", name="Use these names").click()
    one.until("#rada-said", "2 classes")
    one.until("#rada-strip", "%")
    one.picture("1-images")

    # training without labels says what is missing
    one.tab("3 Train")
    page.get_by_role("button", name="Train", exact=True).click()
    one.until("#rada-progress", "at least two classes first; so far it is 0")

    # label the most useful ones
    one.tab("2 Label")
    playwright.expect(page.locator(".rada-card:visible")).to_have_count(12, timeout=PATIENCE)
    for slot, name in enumerate(one.slots()):
        page.locator(f"#rada-learn-{slot}").get_by_label(name, exact=True).check()
    one.until("#rada-labels", "12 labels")
    one.picture("2-label")

    def train(labels, steps):
        one.tab("3 Train")
        page.get_by_role("button", name="Train", exact=True).click()
        one.until("#rada-results", f"{labels} labels")
        playwright.expect(page.locator("#rada-history tr")).to_have_count(steps, timeout=PATIENCE)

    train(12, 1)
    one.tab("2 Label")
    page.get_by_role("button", name="Next images").locator("visible=true").click()
    playwright.expect(page.locator(".rada-card:visible")).to_have_count(4, timeout=PATIENCE)
    for slot, name in enumerate(one.slots()):
        page.locator(f"#rada-learn-{slot}").get_by_label(name, exact=True).check()
    one.until("#rada-labels", "16 labels")
    train(16, 2)
    (session,) = hall._sessions.values()
    found = session.taught.evaluation
    assert found["adapted"]["accuracy"] > found["zero_shot"]["accuracy"]
    for row, (labels, accuracy, _) in enumerate(session.history):
        one.until(f"#rada-history tr >> nth={row}", f"{labels} labels")
        one.until(f"#rada-history tr >> nth={row}", f"{100 * accuracy:.1f} %")
    one.picture("3-train")

    # other images: an answer, a reason, a correction
    one.tab("4 Try")
    page.set_input_files("#rada-upload-try input[multiple]", photos["try"])
    playwright.expect(page.locator(".rada-card:visible")).to_have_count(2, timeout=PATIENCE)
    one.until(".rada-card:visible >> nth=0", "%")
    one.picture("4-try")
    page.locator("#rada-why-try-0").click()
    one.until("#rada-because-try", "In words:")
    assert page.locator("#rada-because-try img").count() >= 1 + 4  # the image and similar ones
    one.picture("5-why")
    truth = one.slots()[0]
    page.locator("#rada-try-0").get_by_label(truth, exact=True).check()
    deadline = time.monotonic() + 20
    while len(session.labels) < 17 and time.monotonic() < deadline:
        page.wait_for_timeout(50)
    assert session.labels[16] == truth

    # the model and the report
    one.tab("5 Take away")
    with page.expect_download() as download:
        page.get_by_role("link", name="The model (zip)").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    with page.expect_download() as download:
        page.get_by_role("link", name="The report (HTML)").click()
    report = Path(download.value.path()).read_text()
    assert "cross-validation in" in report and "http-equiv" in report
    loaded = Classifier.from_pretrained(tmp_path / "model", cache=False, workers=0, progress=False)
    said = sorted(answer.name for answer in session.answers([16, 17]).values())
    assert sorted(loaded.predict(photos["try"])) == said  # files arrive in any order

    # a reload forgets nothing, and another browser sees nothing of it
    page.reload()
    page.wait_for_selector("#rada-use-names")
    one.until("#rada-overview", "16 images to learn from")
    one.tab("2 Label")
    one.until("#rada-labels", "17 labels")
    assert page.get_by_label("Classes, one a line").input_value() == "\n".join(NAMES)
    other = Watched(chromium, address, 1280, 900)
    other.until("#rada-overview", "No images yet")
    for place in ("/rada/images/0", "/rada/model.zip", "/rada/report.html"):
        assert other.context.request.get(address + place).status in (404, 409)
    assert (
        one.context.request.get(f"{address}/rada/images/0").headers["content-type"] == "image/jpeg"
    )
    assert one.elsewhere == other.elsewhere == []
    assert one.complaints == other.complaints == []
    other.context.close()
    one.context.close()


def test_on_a_phone_with_the_keyboard_alone(chromium, server, photos):
    address, _ = server
    one = Watched(chromium, address, 390, 844, has_touch=True, is_mobile=True)
    page, press = one.page, one.page.keyboard.press

    def focus(selector):
        """Press Tab until the element has the focus."""
        for _ in range(160):
            if page.evaluate("s => document.activeElement.matches(s)", selector):
                return
            press("Tab")
        raise AssertionError(f"{selector} cannot be reached by Tab")

    with page.expect_file_chooser() as chooser:
        focus("#rada-upload-learn input[multiple]")
        press("Enter")
    chooser.value.set_files(photos["learn"][:8])
    one.until("#rada-overview", "8 images to learn from")
    focus("#rada-names textarea")
    page.keyboard.type("nominal fabric\nglobal defect")
    focus("#rada-use-names")
    press("Enter")
    one.until("#rada-strip", "%")
    assert one.fits()
    one.picture("phone-1")

    focus("[role=tab][aria-selected=false]")
    press("Enter")
    playwright.expect(page.locator(".rada-card:visible")).to_have_count(8, timeout=PATIENCE)
    for slot, name in enumerate(one.slots()):
        focus(f'#rada-learn-{slot} input[value="{name}"]')
        press("Space")
    one.until("#rada-labels", "8 labels: nominal fabric 4, global defect 4")
    assert one.fits()
    one.picture("phone-2")
    assert one.elsewhere == [] and one.complaints == []
    one.context.close()
