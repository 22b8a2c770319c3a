"""What a service counts, for Prometheus."""

from __future__ import annotations

from rada.core.extras import needed_for

with needed_for("rada serve"):
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one service, in a registry of its own.

    Example:
        >>> found = Metrics()
        >>> found.requests.labels("/predict", "200").inc()
        >>> b'rada_requests_total{path="/predict",status="200"} 1.0' in found.text()
        True
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rada_requests", "Requests answered.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "rada_request_seconds", "Seconds for a request.", ("path",), registry=self.registry
        )
        self.images = Counter(
            "rada_images", "Images whose class was named.", ("model",), registry=self.registry
        )
        self.batches = Histogram(
            "rada_batch_images",
            "Images that were encoded at once.",
            buckets=_SIZES,
            registry=self.registry,
        )
        self.encoding = Histogram(
            "rada_batch_seconds", "Seconds to encode a batch.", registry=self.registry
        )
        self.waiting = Gauge(
            "rada_waiting_images", "Images that wait for a batch.", registry=self.registry
        )
        self.active = Gauge(
            "rada_active_requests", "Requests that are being answered.", registry=self.registry
        )

    def text(self) -> bytes:
        """Return all of them in the text form of Prometheus."""
        return generate_latest(self.registry)
