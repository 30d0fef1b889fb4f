"""What a proxy says when it starts about what its checks hold back, and what they cannot see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

from fairlead.guard.proxy.setup import Keep, Options, read_setup
from fairlead.guard.proxy.startup import told
from support.brand import write_brand
from support.guard_proxy import RULES


def said(path: Path, **more: Any) -> str:
    return "\n".join(told(read_setup(Options(str(path), "http://127.0.0.1:9", **more), Keep())))


def test_what_code_holds_back_of_a_stream_is_a_cost_too(tmp_path: Path) -> None:
    written, policy = tmp_path / "c.yaml", tmp_path / "guard.yaml"
    written.write_text(RULES)
    policy.write_text('checks: {rules: {no-shouting: ["abracadabra"]}}\n')
    lines = said(written, policy=policy).splitlines()
    assert "    held back by rules:no-shouting: 256 characters (1.3 s at 50 tokens a second)" in lines
    [links] = [line for line in lines if "exfiltration" in line]
    assert "0 characters (0.0 s at 50 tokens a second), and 512 (2.6 s at 50" in links
    assert not any("no-poison" in line and "held back" in line for line in lines)  # that one buffers


def test_a_critic_is_not_offered_for_what_it_does_not_read(tmp_path: Path) -> None:
    written = tmp_path / "c.yaml"
    written.write_text(RULES.replace("{on_violation: refuse, say", "{at: [prompt, reply], on_violation: refuse, say"))
    alone, critic = said(written), said(written, critic="apprentice")
    for lines in (alone, critic):
        assert "WHAT IS ASKED IS NOT CHECKED: no-poison. Rules can" in lines
        assert "--critic MODEL, if it is not the apprentice" in lines and "the critic reads what is asked" not in lines
    assert "NOT CHECKED: no-shouting, no-poison. Nothing here can check them; --critic MODEL" in alone
    assert "Nothing here can check them" not in critic  # there is one, and the replies are read
    written.write_text(written.read_text().replace("at: [prompt, reply]", "at: [prompt]"))
    assert "NOT CHECKED: no-shouting. Nothing" in said(written) and "ASKED IS NOT CHECKED: no-poison" in said(written)


def test_by_what_the_voice_is_heard(tmp_path: Path) -> None:
    path = write_brand(tmp_path)
    lines = said(path)
    assert "voice: v, by 8 samples. The bound lets at least 89% of replies" in lines and "CHECKED IN PART: v" in lines
    written = path.read_text()
    path.write_text(written.replace("on_violation: revise", "on_violation: refuse, stream: window"))
    assert "voice: v is nobody's to hear: it streams by window" in said(path)
    path.write_text("name: yard\n" + written[written.index("principles:") :])
    assert "voice: v is the critic's alone to hear: the constitution has no samples" in said(path, critic="apprentice")
