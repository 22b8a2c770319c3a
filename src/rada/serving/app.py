"""The application: what can be asked at which path."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from rada._version import __version__
from rada.core.errors import FeatureError, RadaError
from rada.core.extras import needed_for
from rada.predictions import rank
from rada.serving.asked import MOST_TOP_K, Asked, AskedImage, PredictBody, read_request
from rada.serving.gate import Gate, answer
from rada.serving.metrics import Metrics
from rada.serving.models import Models, Served, View
from rada.serving.problems import RequestError, problem_of, shortened
from rada.serving.settings import ServeSettings
from rada.serving.urls import UrlReader

with needed_for("rada serve"):
    from concurrent.futures import ThreadPoolExecutor

    from fastapi import Depends, FastAPI, Request, Response
    from fastapi.security import HTTPBearer
    from fastapi_offline import FastAPIOffline
    from pydantic import BaseModel
    from starlette.exceptions import HTTPException
    from starlette.responses import RedirectResponse

if TYPE_CHECKING:
    from rada.classifier import Classifier

__all__ = ["create_app"]

_AT_ONCE = 8  # URLs that are read at once


class ClassAnswer(BaseModel):
    """A candidate class of an image."""

    name: str
    probability: float


class ImageAnswer(BaseModel):
    """What is said of one image."""

    image: str
    classes: list[ClassAnswer] | None
    reason: str | None = None


class PredictAnswer(BaseModel):
    """What is said of the images of a request."""

    model: str
    predictions: list[ImageAnswer]


class ModelAnswer(BaseModel):
    """A model of the service."""

    name: str
    method: str
    encoder: str
    classes: list[str]


class Problem(BaseModel):
    """What is wrong with a request."""

    type: str
    value: str
    cause: str
    fix: str


class ProblemAnswer(BaseModel):
    """The answer to a request that cannot be used."""

    error: Problem


class Predictor:
    """Answers requests: reads images, lets them wait for a batch, ranks the classes.

    Args:
        models: The models.
        settings: The limits.
        metrics: What is counted.
    """

    def __init__(self, models: Models, settings: ServeSettings, metrics: Metrics) -> None:
        self.models, self._settings, self._metrics = models, settings, metrics
        self._urls = UrlReader(settings.max_body) if settings.allow_urls else None
        self._readers = ThreadPoolExecutor(_AT_ONCE, "rada-url") if settings.allow_urls else None

    async def predict(self, asked: Asked) -> dict[str, Any]:
        """Return the answer to a request, `PredictAnswer`."""
        begun = time.monotonic()
        served = self.models.get(asked.model)
        view = served.known_view(asked.classes)
        if view is None:
            loop = asyncio.get_running_loop()
            view = await loop.run_in_executor(self.models.texts, served.view, asked.classes)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._one(served, view, image, asked, begun))
                for image in asked.images
            ]
        self._metrics.images.labels(served.name).inc(len(tasks))
        return {"model": served.name, "predictions": [task.result() for task in tasks]}

    async def _one(
        self, served: Served, view: View, image: AskedImage, asked: Asked, begun: float
    ) -> dict[str, Any]:
        try:
            content = image.content or b""
            if image.url is not None:
                content = await self._fetch(image.url, begun)
        except RequestError as problem:
            return _refused(image, problem, asked)
        try:
            row = await asyncio.wrap_future(served.batches.submit(content, view.score))
        except (RequestError, FeatureError):
            raise  # of the service
        except RadaError as error:
            return _refused(image, _about(image, error), asked)
        best = rank(row[None], view.names, asked.top_k)[0]
        return {"image": image.name, "classes": [entry._asdict() for entry in best]}

    async def _fetch(self, url: str, begun: float) -> bytes:
        if self._urls is None or self._readers is None:
            raise RequestError(
                422,
                "url",
                url,
                "this service reads no URLs",
                "send the image itself, or start the service with --allow-urls",
            )
        left = self._settings.timeout - (time.monotonic() - begun)
        return await asyncio.get_running_loop().run_in_executor(
            self._readers, self._urls.read, url, left
        )

    def stop(self) -> None:
        """End all threads."""
        self.models.stop()
        if self._readers is not None:
            self._readers.shutdown(wait=False, cancel_futures=True)
        if self._urls is not None:
            self._urls.close()


def _about(image: AskedImage, error: RadaError) -> RequestError:
    """Return what is wrong with an image that cannot be read."""
    return RequestError(
        422,
        "image",
        image.name,
        shortened(str(error)),
        "send an image file that opens in a viewer, within the limits",
    )


def _refused(image: AskedImage, problem: RequestError, asked: Asked) -> dict[str, Any]:
    """Return the answer to an image that cannot be used, where the others are to be answered.

    Raises:
        RequestError: `problem` where they are not.
    """
    if not asked.skip_bad:
        raise problem
    reason = f"{problem.cause}; {problem.fix}"
    return {"image": image.name, "classes": None, "reason": reason}


def create_app(
    classifiers: Mapping[str, Classifier],
    settings: ServeSettings | None = None,
    token: str | None = None,
) -> FastAPI:
    """Return the application, for any ASGI server.

    Args:
        classifiers: The models by name; the first is asked where a request names none.
        settings: The limits.
        token: The secret that requests have to send, or None.
    """
    settings, metrics = settings or ServeSettings(), Metrics()
    predictor = Predictor(Models(classifiers, settings, metrics), settings, metrics)
    predictor.models.warm()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(predictor.stop)

    app = FastAPIOffline(
        title="rada",
        description="Names the class of images.",
        version=__version__,
        redoc_url=None,
        lifespan=lifespan,
        responses={status: {"model": ProblemAnswer} for status in (400, 413, 422, 503, 504)},
        dependencies=[] if token is None else [_bearer()],
    )
    _add_paths(app, predictor, metrics, settings)
    app.add_exception_handler(RequestError, _on_problem)
    app.add_exception_handler(HTTPException, _on_problem)
    app.add_exception_handler(ExceptionGroup, _on_problem)
    app.add_middleware(Gate, settings=settings, token=token, metrics=metrics)
    return app


def _bearer() -> Any:
    """Let the OpenAPI page ask for the token; the gate checks it."""
    return Depends(HTTPBearer(auto_error=False))


async def _on_problem(_: Request, error: Exception) -> Response:
    """Answer what is wrong with a request; anything else is left to the gate."""
    while isinstance(error, ExceptionGroup):  # of the images of a request, the first
        error = error.exceptions[0]
    if isinstance(error, HTTPException):
        error = RequestError(
            error.status_code, "http", "the request", error.detail, "see the paths at /docs"
        )
    problem = problem_of(error)
    if problem is None:
        raise error
    return answer(problem.body(), problem.status)


def _add_paths(
    app: FastAPI, predictor: Predictor, metrics: Metrics, settings: ServeSettings
) -> None:
    @app.post(
        "/predict",
        response_model=PredictAnswer,
        summary="Name the class of images",
        openapi_extra={"requestBody": _bodies()},
    )
    async def predict(request: Request) -> Response:
        """Name the class of each image, as files, base64, URLs, or one image as the body."""
        return answer(await predictor.predict(await read_request(request, settings)))

    @app.get("/models", response_model=list[ModelAnswer], summary="The models")
    async def models() -> Response:
        """List the models; the first is asked where a request names none."""
        return answer([served.describe() for served in predictor.models.served.values()])

    @app.get("/health", summary="Whether the process lives")
    async def health() -> Response:
        return answer({"status": "ok", "version": __version__})

    @app.get("/ready", summary="Whether requests are taken")
    async def ready() -> Response:
        return answer({"status": "ok", "models": list(predictor.models.served)})

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def counters() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def start() -> Response:
        return RedirectResponse("docs")


def _bodies() -> dict[str, Any]:
    """Return the forms of a request, for the OpenAPI page."""
    binary = {"type": "string", "format": "binary"}
    fields = {
        "files": {"type": "array", "items": binary},
        "model": {"type": "string"},
        "classes": {"type": "array", "items": {"type": "string"}},
        "top_k": {"type": "integer", "minimum": 1, "maximum": MOST_TOP_K, "default": 1},
        "skip_bad": {"type": "boolean", "default": False},
    }
    schema = PredictBody.model_json_schema(ref_template="#/$defs/{model}")
    image = schema.pop("$defs")["ImageBody"]
    schema["properties"]["images"]["items"] = image
    form = {"type": "object", "required": ["files"], "properties": fields}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": form},
            "application/json": {"schema": schema},
            "image/*": {"schema": binary},
        },
    }
