"""An HTTP service that names the class of images: several models, batches as requests come, limits."""

from rada.serving.server import Service, serve
from rada.serving.settings import ServeSettings

__all__ = ["ServeSettings", "Service", "serve"]
