"""A plan's judges as a reward reads them: about some prompts alone, by score, by what is broken."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from fairlead.constitution import load
from fairlead.errors import InputError
from fairlead.exchange import Exchange, Verdict, assistant, user
from fairlead.judges import critic as critics
from fairlead.judges.lineage import leaf
from fairlead.judges.rules import Judged
from fairlead.stack.plan_data import Term, term
from fairlead.stack.stages.judged import Read, check, judging


def asked(text: str, kind: str) -> Exchange:
    return Exchange((user("a ?"),), (assistant(text),), {"asked_as": kind})


def by_length(items: Sequence[Exchange]) -> list[Verdict]:
    return [
        Verdict(None, reason="mute") if not e.reply_text else Verdict(len(e.reply_text) / 10, raw=float(len(e.reply_text)))
        for e in items
    ]  # fmt: skip


JUDGE: Any = Judged("length", by_length, leaf("rule", text="length"))


def test_about_other_prompts_every_reply_gets_the_same() -> None:
    items = [asked("four", "tasks"), asked("seven..", "general"), asked("", "tasks"), asked("", "general")]
    seen = Read(JUDGE, "tasks", "raw").judge(items)
    assert [v.raw for v in seen] == [4.0, 0.0, None, 0.0]
    assert seen[2].score is None, "a missing verdict of a prompt that is asked about stays missing"
    assert [v.raw for v in Read(JUDGE, "general", "score").judge(items)] == [0.0, 0.7, 0.0, None]
    assert Read(JUDGE, "tasks", "raw").lineage == JUDGE.lineage


def test_a_score_or_its_other_side_takes_the_place_of_the_reward() -> None:
    items = [asked("four", "tasks")]
    assert Read(JUDGE, "all", "score").judge(items)[0].raw == pytest.approx(0.4)
    broken = Read(JUDGE, "all", "broken").judge(items)[0]
    assert broken.raw == broken.score == pytest.approx(0.6)


class Reader:
    """In the place of a critic: each principle's verdict is by a number of its own."""

    def __init__(self, principle: Any, model: Any) -> None:
        self.name, self.lineage = f"critic:{principle.id}", leaf("critic", model=model, text=principle.text)
        self.score = {"no-harm": 0.2, "truth-over-agreement": 0.9}.get(principle.id, 0.7)

    def judge(self, items: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(self.score, judge=self.name) for _ in items]


@pytest.fixture
def ctx(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(critics, "critic", Reader)
    return SimpleNamespace(
        constitution=load("harbour"), rewards={}, oracle=False, critic=lambda spec, below: (f"id of {spec}", spec)
    )


@pytest.mark.parametrize(
    ("judge", "role", "wanted"),
    [
        ("constitution", "reward", 0.2),  # the lowest of all
        ("constitution", "cost", 0.8),
        ("constitution:honest", "reward", 0.7),  # admit-unknown, below truth-over-agreement
        ("critic:truth-over-agreement", "reward", 0.9),
        ("critic:no-harm", "cost", 0.8),
    ],
)
def test_the_constitution_is_a_judge(ctx: Any, judge: str, role: Any, wanted: float) -> None:
    found = judging(Term(judge=judge), role, None, ctx, "base")  # type: ignore[arg-type]
    (verdict,) = found.open().judge([asked("yes", "general")])
    assert verdict.raw == pytest.approx(wanted)
    read = [p.text for p in ctx.constitution.principles if judge in ("constitution", f"critic:{p.id}")]
    read += [p.text for p in ctx.constitution.principles if judge == f"constitution:{p.dimension}"]
    assert {leaf.text for leaf in found.lineage} == set(read) and {leaf.model for leaf in found.lineage} == {"base"}


def test_who_reads_and_what_is_read_make_the_identity(ctx: Any) -> None:
    def identity(judge: str, reader: str) -> str:
        return judging(Term(judge=judge), "cost", None, ctx, reader).identity  # type: ignore[arg-type]

    found = {
        identity(j, r) for j in ("constitution", "constitution:honest", "critic:no-harm") for r in ("base", "self")
    }
    assert len(found) == 6


def test_a_reward_stage_goes_before_a_judge_by_name(ctx: Any) -> None:
    lineage = leaf("reward", model="weights")
    ctx.rewards["exact"] = SimpleNamespace(lineage=lineage, identity="an entry", folder=None)
    found = judging(Term(judge="exact"), "reward", None, ctx)  # type: ignore[arg-type]
    assert (found.lineage, found.identity) == (lineage, "an entry")
    check(Term(judge="exact", calibrated=True), ["exact"], ctx)
    with pytest.raises(InputError, match="calibrated belongs to a reward stage"):
        check(Term(judge="exact", calibrated=True), [], ctx)
    with pytest.raises(InputError, match="reward stages before it: liked"):
        check(Term(judge="likd"), ["liked"], ctx)


def test_a_text_stands_for_its_keys() -> None:
    assert term("short=-0.5*rule:length:8") == {"judge": "rule:length:8", "weight": -0.5, "name": "short"}
    assert term({"judge": "exact"}) == {"judge": "exact"}
    with pytest.raises(ValueError, match="names no judge"):
        term("name=")
