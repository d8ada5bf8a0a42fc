"""The metrics of a run, by Ray's own API: they appear at the metrics endpoint of the driver's node, for Prometheus.

Ray puts `ray_` before each name and `_total` behind counters. All have the label `run_id`. The driver sets them as
parts are committed, so they are of work that counts; what is done again after a worker died is in them once.
`grafana/raymask.json` is a dashboard of them.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

COUNTERS = {
    "raymask_images": ("images committed, by status ok or failed", ("status",)),
    "raymask_bytes": ("bytes of encoded images", ()),
    "raymask_stage_seconds": ("seconds of all processes, by stage", ("stage",)),
}
GAUGES = {
    "raymask_pending_images": "images that are still to do",
    "raymask_queue_images": "images decoded that wait for a model worker",
    "raymask_batch_images": "images a forward pass",
    "raymask_device_busy_ratio": "share of the time in which devices were at work, 0 to 1",
}


class Metrics:
    """The metrics of one run. Ray has to be connected."""

    def __init__(self, run_id: str) -> None:
        tags = {"run_id": run_id}
        self._counters = {
            name: Counter(name, about, ("run_id", *keys)).set_default_tags(tags)
            for name, (about, keys) in COUNTERS.items()
        }
        self._gauges = {name: Gauge(name, about, ("run_id",)).set_default_tags(tags) for name, about in GAUGES.items()}

    def count(self, name: str, amount: float, **labels: str) -> None:
        """Add to one of `COUNTERS`."""
        if amount > 0:
            self._counters[name].inc(amount, labels)

    def set(self, name: str, value: float) -> None:
        """Set one of `GAUGES`."""
        self._gauges[name].set(value)
