"""The voice of a reply by a team's own texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fairlead.constitution.load import load
from fairlead.constitution.voice import held_out
from fairlead.exchange import Exchange, Message, Reasoning, Text, exchange, user
from fairlead.guard.checks.voice import KEPT, SHORT, VoiceCheck, voice_checks
from fairlead.guard.compile import checks_from, policies_from, proxy_checks, unchecked
from fairlead.guard.plan import plan
from fairlead.guard.release import Release
from fairlead.guard.wire.events import Channel, Close, Delta, End, Finish, Open
from support.brand import ALIEN, PASSAGES, write_brand


def outcome(check: VoiceCheck, text: str) -> str:
    return check.decide([exchange("q", text)])[0].outcome


def test_a_reply_in_another_voice_breaks_the_principle_and_one_in_the_samples_passes(tmp_path: Path) -> None:
    constitution = load(write_brand(tmp_path))
    [check] = [check for check in proxy_checks(constitution, None) if isinstance(check, VoiceCheck)]
    assert (check.name, check.principle, check.cost) == ("voice:v", "v", 0)
    [decision] = check.decide([exchange("q", ALIEN)])
    assert decision.outcome == "revise" and "the samples have" in decision.evidence
    kept = held_out(constitution)
    assert not set(kept) & set(check.samples)
    assert sum(outcome(check, text) == "allow" for text in kept) >= len(kept) - 2
    assert outcome(VoiceCheck(check.samples, "v", "redact"), ALIEN) == "refuse"  # there is nothing to paint over
    assert "v" in unchecked(constitution, [check])  # its surface is heard, not what it says
    assert not any(isinstance(check, VoiceCheck) for check in checks_from(constitution, None))


def test_the_bound_is_kept_at_the_rate_that_is_said() -> None:
    """Texts of random sentence lengths, n of them as samples: the share of new ones that pass, over many draws."""
    rng = np.random.default_rng(1)

    def text() -> str:
        return " ".join(" ".join(["word"] * int(n)) + "." for n in rng.integers(4, 20, 4))

    for n in (6, 39):
        passed = []
        for _ in range(30):
            check = VoiceCheck(tuple(text() for _ in range(n)))
            passed += [outcome(check, text()) == "allow" for _ in range(15)]
        assert check.rate == (6 / 7 if n == 6 else pytest.approx(38 / 40))
        assert np.mean(passed) > check.rate - 0.05  # 450 draws: three standard errors
    assert KEPT == 0.95


def test_only_the_reply_counts_and_short_ones_have_no_style() -> None:
    check = VoiceCheck(tuple(PASSAGES), "v")
    thought = Message("assistant", (Reasoning(ALIEN), Text(PASSAGES[3])))
    assert check.decide([Exchange((user("q"),), (thought,))])[0].outcome == "allow"
    [decision] = check.decide([exchange("q", "WOW!!! 🎉🎉")])
    assert (decision.outcome, decision.evidence) == ("allow", SHORT)


def test_a_principle_that_streams_by_window_is_not_judged_by_what_has_left(tmp_path: Path) -> None:
    path = write_brand(tmp_path)
    path.write_text(path.read_text().replace("on_violation: revise", "on_violation: refuse, stream: window"))
    assert voice_checks(load(path)) == ()
    path.write_text(path.read_text().replace("stream: window", "stream: buffer"))
    assert len(voice_checks(load(path))) == 1


@pytest.mark.parametrize(("text", "left"), [(ALIEN, ""), (PASSAGES[0], PASSAGES[0]), ("No.", "No.")])
def test_in_a_stream_nothing_leaves_before_its_end(tmp_path: Path, text: str, left: str) -> None:
    path = write_brand(tmp_path)
    path.write_text(path.read_text().replace("on_violation: revise", "on_violation: refuse"))
    constitution = load(path)
    release = Release(plan(voice_checks(constitution), policies_from(constitution)), (user("q"),))
    channel, out = Channel(0, 0), []
    out += release.feed(Open(channel, "reply"))
    for word in text.split(" "):
        out += release.feed(Delta(channel, word if word == text.split(" ")[-1] else f"{word} "))
    assert not any(isinstance(event, Delta) for event in out)
    for event in (Close(channel), Finish(0, "stop"), End()):
        out += release.feed(event)
    said = "".join(event.text for event in out if isinstance(event, Delta))
    assert said == (left or constitution["v"].guard.say)  # type: ignore[union-attr]
    assert release.tally.passed[f"voice:v: {SHORT}"] == (text == "No.")
