"""Test-time training: adapt to each unlabelled picture, many at once.

`TestTimeAdapter` is in `rada.settings.ttt.adapter`, which needs the classifier; what stands here
works on features alone.
"""

from rada.settings.ttt.adapt import Adaptation, adapt_in_detail, adapt_views
from rada.settings.ttt.baselines import tpt_logits, view_baselines
from rada.settings.ttt.config import TTTConfig
from rada.settings.ttt.explanation import Explanation, explain
from rada.settings.ttt.online import OnlineAdapter

__all__ = [
    "Adaptation",
    "Explanation",
    "OnlineAdapter",
    "TTTConfig",
    "adapt_in_detail",
    "adapt_views",
    "explain",
    "tpt_logits",
    "view_baselines",
]
