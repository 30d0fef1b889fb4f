"""The numbers of several workers, summed, in Prometheus' words."""

from __future__ import annotations

import pytest

from fairlead.guard.proxy.metrics import BUCKETS, Metrics, render, summed

pytest.importorskip("prometheus_client", reason="prometheus_client is missing: pip install 'fairlead[guard]'")


def test_workers_are_summed_and_told() -> None:
    one, two = Metrics(), Metrics()
    for metrics, n in ((one, 2), (two, 3)):
        for _ in range(n):
            metrics.counts["requests", "/v1/messages", "shop", "200", "allow"] += 1
            metrics.took("seconds", "/v1/messages", 0.004)
    two.took("seconds", "/v1/messages", 1e6)
    one.gauges["in_flight"] = 1.0
    text = render(summed([one.snapshot(), two.snapshot()])).decode()
    label = 'decision="allow",route="/v1/messages",status="200",tenant="shop"'
    assert f"fairlead_guard_requests_total{{{label}}} 5.0" in text
    assert 'fairlead_guard_seconds_bucket{le="0.005",route="/v1/messages"} 5.0' in text
    assert f'fairlead_guard_seconds_bucket{{le="{BUCKETS[-1]}",route="/v1/messages"}} 5.0' in text
    assert 'fairlead_guard_seconds_bucket{le="+Inf",route="/v1/messages"} 6.0' in text
    assert 'fairlead_guard_seconds_count{route="/v1/messages"} 6.0' in text
    assert "fairlead_guard_workers 2.0" in text and "fairlead_guard_in_flight 1.0" in text


def test_a_snapshot_goes_through_json() -> None:
    import json

    metrics = Metrics()
    metrics.counts["turned_away", "full"] += 1
    metrics.took("seconds", "/v1/messages", 0.1)
    assert summed([json.loads(json.dumps(metrics.snapshot()))]) == summed([metrics.snapshot()])
