"""The guard before the app, uploads and downloads, without a browser."""

from __future__ import annotations

import asyncio
import contextlib
import io
import time
import zipfile

import pytest
from PIL import Image

from golden.make import tiny_encoder
from rada import Classifier
from rada.app.album import Album
from rada.app.brain import Brain
from rada.app.config import AppConfig
from rada.app.hall import Hall
from rada.app.server import LARGEST_REQUEST, Guard, build_server, check_binding
from rada.cli import main
from rada.core.errors import ConfigError, DataError

pytest.importorskip("gradio", reason="needs the extra 'app'")
requests = pytest.importorskip("starlette.requests", reason="needs the extra 'app'")
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


def asgi(application, client, path, query, piece):
    """Post what `piece` returns time and again, with the session of a client, and return the status."""
    said = []

    async def receive():
        return piece()

    async def answer(message):
        said.append(message)

    cookie = f"rada_7860={client.cookies['rada_7860']}"
    scope = {
        **{"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http"},
        **{"path": path, "raw_path": path.encode(), "query_string": query},
        "headers": [(b"host", b"127.0.0.1:7860"), (b"cookie", cookie.encode())],
    }
    asyncio.run(application(scope, receive, answer))
    return said[0]["status"]


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
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:7860", "[", ""]
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


def test_of_gradios_interface_only_what_the_page_uses_is_open(application):
    client = browser(application)
    shut = (
        "upload file=/etc/passwd file/etc/passwd proxy=http://127.0.0.1/ stream/x/y/z info app_id"
    )
    for path in f"{shut} run/predict call/predict component_server deep_link cancel".split():
        assert client.get(f"/gradio_api/{path}").status_code == 404
        assert client.post(f"/gradio_api/{path}", content=b"x").status_code == 404
    for path in ("/monitoring", "/monitoring/summary", "/login", "/logout"):
        assert client.get(path).status_code == 404


def test_what_a_page_says_is_bounded(application):
    """Without a bound a text of any length would be read into memory whole."""
    client = browser(application)
    place, large = "/gradio_api/queue/join", b"x" * (LARGEST_REQUEST + 1)
    assert client.post(place, content=large).status_code == 413
    assert client.post(place, headers={"content-length": "-1"}).status_code == 413

    pieces = []

    def piece():  # of which nobody says how many there are
        pieces.append(1)
        return {"type": "http.request", "body": bytes(LARGEST_REQUEST // 10), "more_body": True}

    with contextlib.suppress(requests.ClientDisconnect):
        asgi(application, client, place, b"", piece)
    assert 10 <= len(pieces) <= 12


def test_files_that_are_sent_beside_one_another_are_bounded_together(hall, tmp_path):
    album = Album(tmp_path, hall.config)
    with album.arriving() as first, album.arriving() as second:
        first(1_200_000)
        with pytest.raises(DataError, match="2 MB are being sent"):
            second(900_000)
    with album.arriving() as third:  # those have ended
        third(2_000_000)


def test_an_upload_that_is_broken_off_leaves_nothing(application, hall):
    client = browser(application)
    assert send(client, photo()).json() == {"images": 1}
    session = hall.session(client.cookies["rada_7860"])
    messages = [{"type": "http.request", "body": b"abc", "more_body": True}]

    def piece():
        return messages.pop() if messages else {"type": "http.disconnect"}

    assert asgi(application, client, "/rada/images", b"name=x.png", piece) == 400
    kept = sorted(path.name for path in session.album.folder.iterdir())
    assert kept == ["000000", "000000.small"]  # the image that was there


def test_the_password_is_asked_everywhere(locked, monkeypatch):
    monkeypatch.setattr(Guard, "pause", 0.0)
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


def test_passwords_are_tried_one_after_the_other(hall, monkeypatch):
    monkeypatch.setattr(Guard, "pause", 0.05)
    guard = Guard(None, hall=hall, cookie="x", password=PASSWORD)
    scope = {
        **{"type": "http", "method": "GET", "path": "/"},
        "headers": [(b"authorization", b"Basic eDp3cm9uZw==")],
    }
    answers = []

    async def answer(message):
        answers.append(message)

    async def many():
        await asyncio.gather(*(guard(dict(scope), None, answer) for _ in range(4)))

    start = time.monotonic()
    asyncio.run(many())
    assert time.monotonic() - start >= 0.2
    assert [one["status"] for one in answers if "status" in one] == [401] * 4


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


def test_the_command_refuses_an_open_door(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rada", "app", "--host", "0.0.0.0"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "needs a password" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("m1", "--model", "nonsense"), "not both 'm1' and 'nonsense'"),
        (("--encoder", "nonsense"), "--encoder 'nonsense' belongs to a saved model"),
    ],
)
def test_the_command_refuses_what_it_would_not_use(words, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rada", "app", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and said in told and "Traceback" not in told


def test_many_images_are_paged_and_looked_at_a_few_at_a_time(application, hall, monkeypatch):
    from rada.app.page import ALL, SHOWN, SLOTS, _Page
    from rada.app.session import ENCODED_AT_ONCE
    from rada.app.views import strip

    client = browser(application)
    session = hall.session(client.cookies["rada_7860"])
    at_once, encode = [], hall.brain.encode
    monkeypatch.setattr(
        hall.brain, "encode", lambda paths: at_once.append(len(paths)) or encode(paths)
    )
    for seed in range(3 * SLOTS + 5):
        session.add(photo(seed, side=8 + seed), f"{seed}.png", "learn")
    while session.encode_some():
        pass
    assert max(at_once) <= ENCODED_AT_ONCE and sum(at_once) == len(session.album)
    session.name_classes("a\nb")
    slots = _Page(hall, "x").labelling
    pages = [slots.fresh(session, ALL, start)[0] for start in range(0, 5 * SLOTS, SLOTS)]
    assert [len(page) for page in pages] == [SLOTS, SLOTS, SLOTS, 5, 5]  # the last one is the end
    assert [number for page in pages[:4] for number in page] == list(range(len(session.album)))
    assert len(slots.fresh(session)[0]) == SLOTS  # the most useful ones
    assert strip(session, session.album.numbers("learn")[:SHOWN]).count("<img") == SHOWN
