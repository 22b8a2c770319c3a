"""What is wrong with a request: a status, and value, cause and fix in JSON."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from rada.core.errors import (
    ConfigError,
    DataError,
    FeatureError,
    RadaError,
)
from rada.core.printable import escape

__all__ = ["RequestError", "problem_of"]

_LONGEST = 200


class RequestError(RadaError):
    """A request that cannot be answered.

    Args:
        status: The status of HTTP.
        kind: A short name of what is wrong, for programs.
        value: What was given.
        cause: What is wrong with it.
        fix: What to do.

    Example:
        >>> RequestError(422, "no_images", "images", "there are none", "send one").body()
        {'error': {'type': 'no_images', 'value': 'images', 'cause': 'there are none', 'fix': 'send one'}}
    """

    def __init__(self, status: int, kind: str, value: object, cause: str, fix: str) -> None:
        self.status, self.kind, self.cause, self.fix = status, kind, cause, fix
        self.value = shortened(str(value))
        super().__init__(f"{self.value}: {cause}; {fix}")

    def body(self) -> dict[str, Any]:
        """Return what the answer holds."""
        return {
            "error": {
                "type": self.kind,
                "value": self.value,
                "cause": self.cause,
                "fix": self.fix,
            }
        }


def shortened(text: str) -> str:
    r"""Return a text of somebody else in a form that can be shown: short, control characters escaped.

    Example:
        >>> shortened("a" * 300)[-5:], shortened("a\x1b[2J")
        ('a ...', 'a\\x1b[2J')
    """
    return escape(text if len(text) <= _LONGEST else text[:_LONGEST] + " ...")


def problem_of(error: BaseException) -> RequestError | None:
    """Return what a request has to mend, None if the service itself failed."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, DataError | ConfigError | FeatureError):
        return RequestError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            type(error).__name__,
            "the request",
            shortened(str(error)),
            "change it as the cause says",
        )
    return None
