"""Look at a page in headless Chromium, through its debugging pipe: no driver, no other package.

Chromium's smallest window is wider than a phone, so that `--window-size` cannot show one; the debugging
protocol can, and it also tells about every request and every console message.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PATIENCE = 60  # seconds
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")

MEASURE = """(async () => {
  await Promise.all([...document.images].map(image => image.decode().catch(() => null)));
  const root = document.documentElement;
  const boxes = [...document.querySelectorAll('.scroll, pre')];
  const within = node => boxes.some(box => box !== node && box.contains(node));
  const hidden = node => getComputedStyle(node).clipPath !== 'none';
  const wide = [...document.body.querySelectorAll('*')].filter(node =>
    !within(node) && !hidden(node) && node.getBoundingClientRect().right > root.clientWidth + 0.5);
  return {
    width: root.clientWidth,
    scrollWidth: Math.max(root.scrollWidth, document.body.scrollWidth),
    wide: wide.map(node => node.tagName + '.' + node.className),
    images: document.images.length,
    broken: [...document.images].filter(image => !image.naturalWidth).map(image => image.alt),
    withoutAlt: [...document.images].filter(image => !image.alt.trim()).length,
    title: document.title,
    text: document.body.innerText,
    scripts: document.scripts.length,
    background: getComputedStyle(document.body).backgroundColor,
  };
})()"""


def find_chromium():
    """Return the path of a Chromium or Chrome, or None."""
    return next((path for name in PROGRAMS if (path := shutil.which(name))), None)


@dataclass
class View:
    """What a page showed: measurements by `MEASURE`, console messages, requests beyond the file."""

    measured: dict
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Chromium:
    """One browser process; `look` opens a page in a fresh tab."""

    def __init__(self, program):
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        read_end, self._out = os.pipe()
        self._in, write_end = os.pipe()

        def connect():  # the browser reads from descriptor 3 and writes to 4
            os.dup2(read_end, 103)
            os.dup2(write_end, 104)
            os.dup2(103, 3)
            os.dup2(104, 4)

        self._process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={self._profile.name}"],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_end)
        os.close(write_end)
        self._buffer = b""
        self._number = 0
        self._events = []

    def close(self):
        """End the browser."""
        self._process.terminate()
        self._process.wait(timeout=20)
        os.close(self._out)
        os.close(self._in)
        self._profile.cleanup()

    def look(self, path, width, height=900, *, dark=False, screenshot=None, script=MEASURE):
        """Open a file at a width in CSS pixels, run the script in it, and return a `View`.

        Args:
            path: The HTML file.
            width: Width of the viewport; below 600 a phone is emulated.
            height: Height of the viewport.
            dark: Prefer dark colours.
            screenshot: Where to put a picture of the whole page.
            script: JavaScript whose value is returned.
        """
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._events.clear()
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable", session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", session, **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", session, features=[scheme])
        address = Path(path).resolve().as_uri()
        self._call("Page.navigate", session, url=address)
        self._wait("Page.loadEventFired")
        answer = self._call(
            "Runtime.evaluate", session, expression=script, awaitPromise=True, returnByValue=True
        )
        if screenshot:
            options = {"captureBeyondViewport": True, "format": "png"}
            picture = self._call("Page.captureScreenshot", session, **options)
            Path(screenshot).write_bytes(base64.b64decode(picture["data"]))
        self._call("Target.closeTarget", targetId=target)
        return View(answer["result"].get("value"), self._messages(), self._requests(address))

    def _messages(self):
        logs = [e["params"]["entry"]["text"] for e in self._named("Log.entryAdded")]
        calls = [str(e["params"]["args"]) for e in self._named("Runtime.consoleAPICalled")]
        thrown = [str(e["params"]) for e in self._named("Runtime.exceptionThrown")]
        return logs + calls + thrown

    def _requests(self, address):
        sent = [e["params"]["request"]["url"] for e in self._named("Network.requestWillBeSent")]
        return [url for url in sent if url != address and not url.startswith("data:")]

    def _named(self, method):
        return [event for event in self._events if event.get("method") == method]

    def _call(self, method, session=None, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self._events.append(answer)

    def _wait(self, method):
        while not self._named(method):
            self._events.append(self._read())

    def _read(self):
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], PATIENCE)[0]:
                raise RuntimeError(f"chromium said nothing for {PATIENCE} s")
            chunk = os.read(self._in, 1 << 20)
            if not chunk:
                raise RuntimeError("chromium ended")
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)
