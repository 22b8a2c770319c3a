"""The errors that rada raises on purpose; they live in `rada.core.errors`."""

from rada.core.errors import *  # noqa: F403
from rada.core.errors import __all__ as __all__
