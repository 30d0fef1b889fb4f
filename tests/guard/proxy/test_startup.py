"""What a proxy says when it starts about what its checks hold back, and what they cannot see."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

from fairlead.guard.proxy.setup import Keep, Options, read_setup
from fairlead.guard.proxy.startup import told
from support.brand import write_brand


def said(path: Path, **more: str) -> str:
    return "\n".join(told(read_setup(Options(str(path), "http://127.0.0.1:9", **more), Keep())))  # type: ignore[arg-type]


def test_by_what_the_voice_is_heard(tmp_path: Path) -> None:
    path = write_brand(tmp_path)
    lines = said(path)
    assert "voice: v, by 8 samples. The bound lets at least 89% of replies" in lines and "CHECKED IN PART: v" in lines
    written = path.read_text()
    path.write_text(written.replace("on_violation: revise", "on_violation: refuse, stream: window"))
    assert "voice: v is nobody's to hear: it streams by window" in said(path)
    path.write_text("name: yard\n" + written[written.index("principles:") :])
    assert "voice: v is the critic's alone to hear: the constitution has no samples" in said(path, critic="apprentice")
