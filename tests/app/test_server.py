"""The guard before the app, uploads and downloads, without a browser."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile

import pytest
from PIL import Image

from golden.make import tiny_encoder
from rada import Classifier
from rada.app.brain import Brain
from rada.app.config import AppConfig
from rada.app.hall import Hall
from rada.app.server import build_server, check_binding
from rada.core.errors import ConfigError

pytest.importorskip("gradio", reason="needs the extra 'app'")
testing = pytest.importorskip("starlette.testclient", reason="needs the extra 'app'")
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def hall(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    tiny_encoder(folder / "clip")
    brain = Brain(Classifier(str(folder / "clip"), cache=False, workers=0, progress=False))
    found = Hall(brain, AppConfig(max_file_megabytes=1, max_total_megabytes=2))
    yield found
    found.close()


@pytest.fixture(scope="module")
def application(hall):
    return build_server(hall, port=7860)


@pytest.fixture(scope="module")
def locked(hall):
    return build_server(hall, port=7860, password=PASSWORD)


def browser(application, **options):
    """A browser of its own that has opened the page."""
    found = testing.TestClient(application, base_url="http://127.0.0.1:7860", **options)
    assert found.get("/").status_code == 200
    return found


def photo(seed=0, side=32):
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 50 + seed).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def send(client, content, name="a.png", role="learn"):
    return client.post("/rada/images", params={"role": role, "name": name}, content=content)


def test_other_machines_need_a_password():
    for host in ("127.0.0.1", "localhost", "::1"):
        check_binding(host, None)
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        with pytest.raises(ConfigError, match="RADA_APP_PASSWORD"):
            check_binding(host, None)
        check_binding(host, PASSWORD)
    with pytest.raises(ConfigError, match="too short"):
        check_binding("127.0.0.1", "1234567")


def test_the_page_comes_from_here_alone(application):
    client = testing.TestClient(application, base_url="http://127.0.0.1:7860")
    answer = client.get("/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and cookie.startswith("rada_7860=")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for elsewhere in ("cdnjs", "googleapis", "gstatic", "huggingface.co", "api.gradio"):
        assert elsewhere not in answer.text
    assert '"analytics_enabled":false' in answer.text.replace(": ", ":")
    assert "set-cookie" not in client.get("/").headers  # it is kept


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:7860", ""]
)
def test_a_name_that_points_here_is_refused(application, host):
    client = testing.TestClient(application, base_url="http://127.0.0.1:7860")
    assert client.get("/", headers={"host": host}).status_code == 400


def test_other_pages_cannot_send_anything(application, hall):
    client = browser(application)
    for headers in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:9999"},
    ):
        answer = client.post("/rada/images?role=learn", content=photo(), headers=headers)
        assert answer.status_code == 403
    good = {"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}
    assert client.post("/rada/images?role=learn", content=photo(), headers=good).status_code == 200


@pytest.mark.parametrize(
    "path", ["upload", "file=/etc/passwd", "file/etc/passwd", "proxy=http://127.0.0.1/", "stream/x"]
)
def test_ways_to_the_disk_that_the_page_does_not_use_are_shut(application, path):
    client = browser(application)
    assert client.get(f"/gradio_api/{path}").status_code == 404
    assert client.post(f"/gradio_api/{path}", content=b"x").status_code == 404


def test_the_password_is_asked_everywhere(locked):
    client = testing.TestClient(locked, base_url="http://192.168.1.2:7860")
    for path in (
        "/",
        "/rada/images/0",
        "/rada/model.zip",
        "/config",
        "/gradio_api/info",
        "/theme.css",
    ):
        answer = client.get(path)
        assert answer.status_code == 401 and "Basic" in answer.headers["www-authenticate"]
    for wrong in (("me", "wrong"), ("", ""), (PASSWORD, "")):
        assert client.get("/", auth=wrong).status_code == 401
    assert client.get("/", headers={"authorization": "Basic %%%"}).status_code == 401
    assert client.get("/", auth=("anybody", PASSWORD)).status_code == 200


def test_images_belong_to_the_browser_that_sent_them(application):
    mine, other = browser(application), browser(application)
    assert send(mine, photo(1)).json() == {"images": 1}
    shown = mine.get("/rada/images/0")
    assert (
        shown.headers["content-type"] == "image/jpeg"
        and "no-store" in shown.headers["cache-control"]
    )
    assert other.get("/rada/images/0").status_code == 404
    stranger = testing.TestClient(application, base_url="http://127.0.0.1:7860")
    assert stranger.get("/rada/images/0").status_code == 404
    assert send(stranger, photo(2)).status_code == 403
    stolen = {"rada_7860": "0" * 32 + "." + "0" * 32}
    assert mine.get("/rada/images/9").status_code == 404
    forged = testing.TestClient(application, base_url="http://127.0.0.1:7860", cookies=stolen)
    assert forged.get("/rada/images/0").status_code == 404


def test_uploads_are_cut_off(application, hall):
    client = browser(application)
    assert send(client, b"x" * 1_000_001).status_code == 413
    assert send(client, b"PK\x03\x04" + b"x" * 2_000_001, "x.zip").status_code == 413
    session = hall.session(client.cookies["rada_7860"])
    assert [reason for _, reason in session.intake.refused] == [
        "it has more than 1 MB",
        "it has more than 2 MB",
    ]
    assert list(session.album.folder.iterdir()) == []  # nothing is left of them


def test_an_archive_is_taken_or_refused_in_words(application, hall):
    client = browser(application)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/1.png", photo(1))
        archive.writestr("a/2.png", photo(2))
    assert send(client, buffer.getvalue(), "photos.zip").json() == {"images": 2}
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("../evil.png", photo(3))
    assert send(client, buffer.getvalue(), "evil.zip").json() == {"images": 2}
    session = hall.session(client.cookies["rada_7860"])
    assert "outside itself" in session.intake.refused[-1][1]


def test_there_is_nothing_to_take_away_yet(application):
    client = browser(application)
    for place in ("/rada/model.zip", "/rada/report.html"):
        answer = client.get(place)
        assert answer.status_code == 409 and "yet" in answer.text


def test_the_command_refuses_an_open_door():
    command = [sys.executable, "-m", "rada", "app", "--host", "0.0.0.0"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 2 and "needs a password" in found.stderr
    assert "Traceback" not in found.stderr
