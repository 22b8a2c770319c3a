"""Test-time methods: predict each unlabelled image from views of it, many at once.

`TestTimeAdapter` is in `rada.test_time_adapter`, which needs the classifier; what stands here works on
features and on any adapted model.
"""

from rada.test_time.adapt import adapt_in_detail, adapt_views
from rada.test_time.base import TestTimeMethod
from rada.test_time.config import TTTConfig, ViewConfig
from rada.test_time.explanation import Explanation, explain
from rada.test_time.online import OnlineAdapter
from rada.test_time.registry import (
    get_test_time_method,
    list_test_time_methods,
    register_test_time_method,
)
from rada.test_time.start import Adaptation

__all__ = [
    "Adaptation",
    "Explanation",
    "OnlineAdapter",
    "TTTConfig",
    "TestTimeMethod",
    "ViewConfig",
    "adapt_in_detail",
    "adapt_views",
    "explain",
    "get_test_time_method",
    "list_test_time_methods",
    "register_test_time_method",
]
