"""Test-time training: adapt to each unlabelled picture, many at once.

`TestTimeAdapter` is in `rada.test_time_adapter`, which needs the classifier; what stands here
works on features alone.
"""

from rada.test_time.adapt import Adaptation, adapt_in_detail, adapt_views
from rada.test_time.baselines import tpt_logits, view_baselines
from rada.test_time.config import TTTConfig
from rada.test_time.explanation import Explanation, explain
from rada.test_time.online import OnlineAdapter

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
