"""10,000 requests drawn at random against the proxy; 300 of them run with every test."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

from support.fuzzing import fuzz

pytestmark = pytest.mark.full


def test_ten_thousand_requests(tmp_path: Path) -> None:
    seen = fuzz(tmp_path, requests=10_000, seed=2)
    assert seen.requests == 10_000 and not seen.wrong, seen.wrong[:5]
    assert seen.slowest < 12.0, "one waited longer than its bounds"
