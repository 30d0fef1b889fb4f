"""Requests drawn at random: every one is answered, in time, well-formed, never by a fault inside, never with the secret.

The same with 10,000 requests: tests/full/test_guard_fuzz.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

from support.fuzzing import fuzz


def test_a_few_hundred_requests(tmp_path: Path) -> None:
    seen = fuzz(tmp_path, requests=300, seed=1)
    assert seen.requests == 300 and not seen.wrong, seen.wrong[:3]
    assert seen.statuses[200] > 30 and seen.statuses[400] > 30, seen.statuses
