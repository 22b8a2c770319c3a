"""From a request's body to images and classes: multipart files, JSON with base64 or URLs, or one image."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from rada.core.errors import RadaError
from rada.core.extras import needed_for
from rada.data.prompts import check_class_names
from rada.serving.problems import RequestError, shortened
from rada.serving.settings import ServeSettings

with needed_for("rada serve"):
    from fastapi import Request
    from pydantic import BaseModel, ConfigDict, Field, ValidationError
    from starlette.datastructures import Headers, UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

__all__ = ["MOST_TOP_K", "Asked", "AskedImage", "PredictBody", "read_request"]

_FORMS = ("multipart/form-data", "application/json", "image/*", "application/octet-stream")
_FIELDS = frozenset({"model", "classes", "top_k", "skip_bad"})
MOST_TOP_K = 10**9 - 1  # any number that people write for "all"
_LONGEST_NAME = 1000  # characters of a class or a model


class ImageBody(BaseModel):
    """One image: its bytes in base64, or where it is."""

    model_config = ConfigDict(extra="forbid", strict=True)
    base64: str | None = Field(None, description="The bytes of an image file, in base64.")
    url: str | None = Field(
        None, description="A public http or https URL, if the service reads URLs."
    )
    name: str | None = Field(None, description="What the answer calls it.")


class PredictBody(BaseModel):
    """A request in JSON."""

    model_config = ConfigDict(extra="forbid", strict=True)
    images: list[ImageBody]
    model: str | None = Field(None, description="Name of a model; the first one if there is none.")
    classes: list[str] | None = Field(None, description="Candidates instead of the model's own.")
    top_k: int = Field(
        1, ge=1, le=MOST_TOP_K, description="Classes to name for each image, best first."
    )
    skip_bad: bool = Field(False, description="Answer for the other images if one cannot be read.")


@dataclass(frozen=True)
class AskedImage:
    """An image of a request.

    Attributes:
        name: What to call it.
        content: The bytes of its file; None if it is at a URL.
        url: Where it is, or None.
    """

    name: str
    content: bytes | None = None
    url: str | None = None


@dataclass(frozen=True)
class Asked:
    """What a request wants."""

    images: tuple[AskedImage, ...]
    model: str | None
    classes: tuple[str, ...] | None
    top_k: int
    skip_bad: bool


async def read_request(request: Request, settings: ServeSettings) -> Asked:
    """Read a request of any of the forms.

    Raises:
        RequestError: If it cannot be used.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _multipart(request, settings)
    if kind == "application/json":
        return _from_json(await request.body(), settings)
    if kind.startswith("image/") or kind == "application/octet-stream":
        query = request.query_params
        _refuse_fields(query.keys())
        fields = {name: query.getlist(name) for name in _FIELDS}
        image = AskedImage("image 0", await request.body())
        return _asked([image], fields, settings)
    raise RequestError(
        415,
        "content_type",
        kind or "no Content-Type",
        "images are not sent so",
        f"use one of {', '.join(_FORMS)}",
    )


class _WholeParser(MultiPartParser):
    """Refuses a form that stops before its end, which starlette takes for one of fewer parts."""

    def __init__(
        self, headers: Headers, stream: AsyncGenerator[bytes, None], **limits: Any
    ) -> None:
        super().__init__(headers, self._to_the_end(stream), **limits)
        self._ended = False

    def on_end(self) -> None:
        self._ended = True

    async def _to_the_end(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._ended:
            raise MultiPartException("it stops before its last boundary")


async def _multipart(request: Request, settings: ServeSettings) -> Asked:
    _refuse_fields(request.query_params.keys())
    parser = _WholeParser(
        request.headers,
        request.stream(),
        max_files=settings.max_images + 1,  # one too many, which is then told in rada's own words
        max_fields=settings.max_classes + len(_FIELDS) + 1,
        max_part_size=4 * _LONGEST_NAME + 4,
    )
    parser.spool_max_size = settings.max_body + 1  # nothing of a stranger goes to disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(
            400, "multipart", "the body", shortened(error.message), "send multipart/form-data"
        ) from error
    images: list[AskedImage] = []
    fields: dict[str, list[str]] = {name: [] for name in _FIELDS}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                shown = shortened(value.filename or f"image {len(images)}")
                images.append(AskedImage(shown, await value.read()))
            else:
                _refuse_fields([name])
                fields[name].append(value)
    finally:
        await form.close()
    return _asked(images, fields, settings)


def _from_json(body: bytes, settings: ServeSettings) -> Asked:
    try:
        found = PredictBody.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the body"
        status = 400 if first["type"] == "json_invalid" else 422
        raise RequestError(
            status, "json", place, first["msg"], "see the schema at /docs"
        ) from error
    _check_count(len(found.images), settings)
    images = [_image(number, entry) for number, entry in enumerate(found.images)]
    return Asked(
        tuple(images),
        found.model,
        _classes(found.classes, settings),
        found.top_k,
        found.skip_bad,
    )


def _image(number: int, entry: ImageBody) -> AskedImage:
    name = shortened(entry.name or entry.url or f"image {number}")
    if (entry.base64 is None) == (entry.url is None):
        raise RequestError(
            422, "json", f"images.{number}", "it has no source, or two", "give base64 or url"
        )
    if entry.url is not None:
        return AskedImage(name, url=entry.url)
    text = entry.base64 or ""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return AskedImage(name, base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            422,
            "base64",
            f"images.{number}.base64",
            f"it is not base64 ({error})",
            "encode the bytes of the file, without line ends",
        ) from error


def _asked(
    images: list[AskedImage], fields: dict[str, list[str]], settings: ServeSettings
) -> Asked:
    _check_count(len(images), settings)
    flags = {"true": True, "1": True, "false": False, "0": False}
    top_k, skip = _last(fields["top_k"], "1"), _last(fields["skip_bad"], "false").lower()
    plain = len(top_k) <= 20 and top_k.isascii() and top_k.isdecimal()
    if not (plain and 1 <= int(top_k) <= MOST_TOP_K):
        cause = f"it is not an integer from 1 to {MOST_TOP_K}"
        raise RequestError(422, "top_k", top_k, cause, "send top_k=5")
    if skip not in flags:
        raise RequestError(
            422, "skip_bad", skip, "it is neither true nor false", "send true or false"
        )
    classes = _classes(fields["classes"] or None, settings)
    return Asked(tuple(images), _last(fields["model"], None), classes, int(top_k), flags[skip])


def _last(values: list[str], default: Any) -> Any:
    return values[-1] if values else default


def _classes(names: list[str] | None, settings: ServeSettings) -> tuple[str, ...] | None:
    if names is None:
        return None
    if len(names) > settings.max_classes:
        raise RequestError(
            422,
            "classes",
            f"{len(names)} classes",
            f"are more than the {settings.max_classes} of a request",
            "ask for fewer",
        )
    longest = max(names, key=len, default="")
    if len(longest) > _LONGEST_NAME:
        raise RequestError(
            422, "classes", longest, f"it has more than {_LONGEST_NAME} characters", "shorten it"
        )
    try:
        return check_class_names(names)
    except RadaError as error:
        cause, _, fix = str(error).rpartition(": ")
        raise RequestError(422, "classes", "classes", shortened(cause), fix) from error


def _check_count(count: int, settings: ServeSettings) -> None:
    if not 1 <= count <= settings.max_images:
        raise RequestError(
            422,
            "images",
            f"{count} images",
            f"a request holds 1 to {settings.max_images}",
            "send them in several requests" if count else "send one",
        )


def _refuse_fields(names: Any) -> None:
    for name in names:
        if name not in _FIELDS:
            raise RequestError(
                422,
                "field",
                name,
                "there is no such field",
                f"the fields are {', '.join(sorted(_FIELDS))}; images are parts with a file name",
            )
