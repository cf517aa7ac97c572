"""The metrics of /metrics for Prometheus, in a registry of each application's own."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
IDENTITY = ("name", "version", "run_id", "model_id", "weights_sha256")


class Metrics:
    """Counts requests, rows, bytes and swaps. Safe in threads."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        self._requests = Counter("segpipe_requests", "answers", ["path", "status"], registry=own)
        self._seconds = Histogram("segpipe_request_seconds", "time to answer", ["path"], buckets=SECONDS, registry=own)
        self._rows = Counter("segpipe_rows", "rows asked for in requests that were well formed", registry=own)
        self._bytes = Counter("segpipe_request_bytes", "bytes of request bodies", registry=own)
        self.in_flight = Gauge("segpipe_requests_in_flight", "requests being answered", registry=own)
        self._model = Gauge("segpipe_model_info", "1 for the version that answers", IDENTITY, registry=own)
        self.swaps = Counter("segpipe_swaps", "versions that took the place of another", registry=own)
        self.failures = Counter("segpipe_swap_failures", "looks that found no version to load", ["what"], registry=own)
        for what in ("registry", "version"):
            self.failures.labels(what)

    def count(self, path: str, status: int, seconds: float, rows: int, size: int) -> None:
        """Count one answer; `size` bytes were read."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)
        self._rows.inc(rows)
        self._bytes.inc(size)

    def name_model(self, facts: dict[str, Any]) -> None:
        """Show which version answers from now on."""
        self._model.clear()
        self._model.labels(*(facts[name] or "" for name in IDENTITY)).set(1)

    def response(self) -> Response:
        """Everything in Prometheus' text format."""
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)
