"""Test-time training: adapt to each unlabelled picture, many at once."""

from rada.settings.ttt.adapt import Adaptation, adapt_in_detail, adapt_views
from rada.settings.ttt.config import TTTConfig

__all__ = ["Adaptation", "TTTConfig", "adapt_in_detail", "adapt_views"]
