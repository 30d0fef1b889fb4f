"""Counts and times of a worker, kept as plain numbers, so that a request costs a few dictionary writes.

They are put into Prometheus' words when somebody asks: the sums over all workers, by `render`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from fairlead.guard.tally import Tally

Key: TypeAlias = tuple[str, ...]  # name of the metric, then the values of its labels
Snapshot: TypeAlias = dict[str, Any]

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

# name -> (what it counts, its labels)
COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "requests": ("requests that were answered", ("route", "tenant", "status", "decision")),
    "replies": ("alternatives, by what became of them", ("decision",)),
    "decisions": ("what checks asked for", ("principle", "decision")),
    "model_calls": ("calls of models by checks", ("check", "outcome")),
    "shadow": ("what would have been done", ("principle", "decision")),
    "check_failures": ("checks that failed or were late", ("check", "outcome")),
    "withheld": ("what did not leave because nothing could read it", ("what",)),
    "not_scanned": ("what passed unread because the policy says so", ("what",)),
    "dropped": ("what was left out of requests", ("what",)),
    "upstream_failures": ("what went wrong with the model's server", ("why",)),
    "turned_away": ("requests that were not taken", ("why",)),
    "tokens": ("tokens by the model's own count", ("tenant", "kind")),
    "audit_lost": ("records of the audit log that found no room", ()),
    "audit_failures": ("writes of the audit log that failed, each tried again", ()),
    "heads_failures": ("heads of the audit log that could not be written or were not taken", ()),
    "reloads": ("reloads of constitutions and classifier", ("outcome",)),
}
TIMES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "seconds": ("from the request's head to the reply's end", ("route",)),
    "added_seconds": ("of these, not spent waiting for the model's server or the client", ("route",)),
    "first_byte_seconds": ("from the request's head to the first byte of a stream", ("route",)),
}
GAUGES: Mapping[str, str] = {
    "in_flight": "requests being answered",
    "workers": "workers that answered this question",
    "audit_waiting": "audit entries not yet on the disk",
}


class Metrics:
    """The numbers of one worker."""

    __slots__ = ("counts", "gauges", "times")

    def __init__(self) -> None:
        self.counts: defaultdict[Key, float] = defaultdict(float)
        self.times: dict[Key, list[float]] = {}  # one count for each bucket, one above them, the sum
        self.gauges: dict[str, float] = {"in_flight": 0.0}

    def took(self, name: str, route: str, seconds: float) -> None:
        row = self.times.get((name, route))
        if row is None:
            row = self.times[name, route] = [0.0] * (len(BUCKETS) + 2)
        row[bisect_left(BUCKETS, seconds)] += 1
        row[-1] += seconds

    def snapshot(self) -> Snapshot:
        """The numbers as JSON can carry them between processes."""
        return {
            "counts": [[*key, value] for key, value in self.counts.items()],
            "times": [[*key, row] for key, row in self.times.items()],
            "gauges": {**self.gauges, "workers": 1.0},
        }


def with_tally(snapshot: Snapshot, tally: Tally) -> Snapshot:
    """The snapshot with what the release counted."""
    for name, counter in (("replies", tally.replies), ("withheld", tally.withheld), ("not_scanned", tally.passed)):
        snapshot["counts"] += [[name, what, float(n)] for what, n in counter.items()]
    for name, pairs in (
        ("decisions", tally.decisions), ("shadow", tally.shadow), ("check_failures", tally.failed),
        ("model_calls", tally.cost),
    ):  # fmt: skip
        snapshot["counts"] += [[name, *pair, float(n)] for pair, n in pairs.items()]
    return snapshot


def summed(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One snapshot for several workers."""
    counts: defaultdict[Key, float] = defaultdict(float)
    times: dict[Key, list[float]] = {}
    gauges: defaultdict[str, float] = defaultdict(float)
    for snapshot in snapshots:
        for *key, value in snapshot["counts"]:
            counts[tuple(key)] += value
        for *key, row in snapshot["times"]:
            have = times.setdefault(tuple(key), [0.0] * len(row))
            times[tuple(key)] = [a + b for a, b in zip(have, row, strict=True)]
        for name, value in snapshot["gauges"].items():
            gauges[name] += value
    return {
        "counts": [[*key, value] for key, value in counts.items()],
        "times": [[*key, row] for key, row in times.items()],
        "gauges": dict(gauges),
    }


def render(snapshot: Snapshot) -> bytes:
    """A snapshot in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Told(snapshot))  # a collector is what has `collect`
    return generate_latest(registry)


class _Told:
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for name, (text, labels) in COUNTERS.items():
            counter = CounterMetricFamily(f"fairlead_guard_{name}", text, labels=labels)
            for found, *values, n in self.snapshot["counts"]:
                if found == name:
                    counter.add_metric(values, n)
            yield counter
        for name, (text, labels) in TIMES.items():
            histogram = HistogramMetricFamily(f"fairlead_guard_{name}", text, labels=labels)
            for found, *values, row in self.snapshot["times"]:
                if found == name:
                    histogram.add_metric(values, _cumulative(row), row[-1])
            yield histogram
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"fairlead_guard_{name}", text)
            gauge.add_metric([], self.snapshot["gauges"].get(name, 0.0))
            yield gauge


def _cumulative(row: list[float]) -> list[tuple[str, float]]:
    total, told = 0.0, []
    for bound, n in zip((*map(str, BUCKETS), "+Inf"), row[:-1], strict=True):
        total += n
        told.append((bound, total))
    return told
