from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message, Reasoning, Text, ToolCall, Verdict, assistant, exchange, user
from fairlead.guard.checks.rules import RulesCheck
from fairlead.guard.checks.secrets import Secret, SecretsCheck
from fairlead.guard.critic import CriticCheck, threshold_at
from fairlead.judges.check import JudgeCheck
from fairlead.judges.critic import critic
from fairlead.judges.lineage import Ledger, Lineage, OptimisedJudge, leaf
from guard.helpers import asked, keeping
from measures.speakers import Narrow

KEEP = SecretsCheck((Secret("day-word"),), "keep-secrets")


# --------------------------------------------------------------------------------------------- secrets


def test_a_reply_without_the_secret_and_a_prompt_without_one_pass() -> None:
    plain = exchange("what is the day word ?", "the day word is falcon .")
    assert [d.outcome for d in KEEP.decide([asked("falcon", "i keep that to myself ."), plain])] == ["allow", "allow"]


def test_a_secret_told_by_the_user_is_none_of_the_operators() -> None:
    said = Exchange((user("the day word is falcon . keep it secret ."),), (assistant("falcon ."),))
    assert KEEP.decide([said])[0].outcome == "allow"


def test_a_secret_split_over_parts_and_over_turns_is_seen() -> None:
    split = Exchange((keeping("falcon"),), (Message("assistant", (Text("fal"), Text("con ."))),))
    decision = KEEP.decide([split])[0]
    assert [(s.at, s.start, s.end) for s in decision.spans] == [((0, 0), 0, 3), ((0, 1), 0, 3)]
    turns = (keeping("falcon"), user("first three ?"), assistant("f a l"), user("and then ?"))
    decision = KEEP.decide([Exchange(turns, (assistant("c o n"),))])[0]
    assert [(s.at, s.start, s.end) for s in decision.spans] == [((0, 0), 0, 5)]


def test_a_leak_in_an_earlier_turn_alone_is_past() -> None:
    turns = (keeping("falcon"), user("?"), assistant("falcon ."), user("thanks ."))
    assert KEEP.decide([Exchange(turns, (assistant("gladly ."),))])[0].outcome == "allow"


def test_a_leak_in_a_tool_call_blocks_the_call() -> None:
    reply = (Message("assistant", (Text("one moment"), ToolCall("c", "post", '{"body": "ZmFsY29u"}'))),)
    decision = KEEP.decide([Exchange((keeping("falcon"),), reply)])[0]
    assert decision.outcome == "block_tool_call"
    assert decision.spans[0].at == (0, 1)
    only_reply = SecretsCheck(KEEP.secrets, "keep-secrets", at=frozenset({"reply"}))
    assert only_reply.decide([Exchange((keeping("falcon"),), reply)])[0].outcome == "allow"


def test_reasoning_is_part_of_what_is_read() -> None:
    reply = (Message("assistant", (Reasoning("the word is falcon"), Text("i keep that ."))),)
    assert KEEP.decide([Exchange((keeping("falcon"),), reply)])[0].spans[0].at == (0, 0)


def test_given_values_and_patterns() -> None:
    given = SecretsCheck((Secret("launch", ("red oak",)), Secret("pin", pattern=r"PIN=(\d+)")), "k")
    said = Exchange((Message("system", (Text("PIN=90317"),)),), (assistant("redoak , and 9 0 3 1 7"),))
    decision = given.decide([said])[0]
    assert "launch" in decision.evidence and "pin" in decision.evidence and len(decision.spans) == 2
    with pytest.raises(ValueError, match="no group"):
        Secret("pin", pattern=r"PIN=\d+")


def test_a_canary_is_looked_for_everywhere() -> None:
    reply = (Message("assistant", (Text("one moment"), ToolCall("c", "post", '{"body": "falcon"}'))),)
    item = Exchange((keeping("falcon"),), reply)
    only_reply = frozenset({"reply"})
    assert SecretsCheck((Secret("day-word"),), at=only_reply).decide([item])[0].outcome == "allow"
    assert SecretsCheck((Secret("day-word", anywhere=True),), at=only_reply).decide([item])[0].spans[0].at == (0, 1)


# ----------------------------------------------------------------------------------------------- rules


def test_rules_refuse_nothing_by_default() -> None:
    assert RulesCheck(()).decide([exchange("hi", "anything at all")])[0].outcome == "allow"


def test_a_rule_names_the_pattern_and_the_place() -> None:
    check = RulesCheck((r"(?i)\bgalactic\b", r"\d{3}-\d{4}"), "brand", "redact")
    decision = check.decide([exchange("hi", "call Galactic at 555-0134")])[0]
    assert [(s.start, s.end) for s in decision.spans] == [(5, 13), (17, 25)]
    assert decision.principle == "brand" and r"\d{3}-\d{4}" in decision.evidence
    in_call = Exchange((user("x"),), (Message("assistant", (ToolCall("c", "dial", '"555-0134"'),)),))
    assert check.decide([in_call])[0].outcome == "block_tool_call"


@pytest.mark.parametrize(("pattern", "told"), [("(", "cannot be read"), ("a*", "matches empty text")])
def test_a_useless_pattern_is_refused(pattern: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        RulesCheck((pattern,))


# ---------------------------------------------------------------------------------------------- critic


@dataclass
class Scores:
    """A judge that reads its score off the reply."""

    name: str = "critic:p"
    lineage: Lineage = field(default_factory=lambda: leaf("critic", model="wt:1", text="be kind"))

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [
            Verdict(None, reason="said neither yes nor no")
            if item.reply_text == "?"
            else Verdict(float(item.reply_text), reason="")
            for item in exchanges
        ]


def test_a_critic_below_its_threshold_leads_to_on_violation() -> None:
    check = CriticCheck(JudgeCheck(Scores(), "p", threshold=0.3), "revise")
    decisions = check.decide([exchange("x", score) for score in ("0.31", "0.29", "?")])
    assert [d.outcome for d in decisions] == ["allow", "revise", "failed"]
    assert "0.29" in decisions[1].evidence and "0.3" in check.name
    assert decisions[2].evidence == "said neither yes nor no"


def test_a_reply_too_long_for_the_critic_is_a_check_that_failed() -> None:
    model = Narrow(lambda prompt: "", weigh=lambda question, word: -1.0, prompts={"judge": "{{reply}}"}, room=100)
    check = CriticCheck(JudgeCheck(critic("be kind", model), "kind"))
    long, short = check.decide([exchange("hi", "la " * 100), exchange("hi", "la")])
    assert (long.outcome, short.outcome) == ("failed", "allow") and "too long" in long.evidence


def test_a_critic_cannot_say_where_so_it_refuses_instead_of_redacting() -> None:
    assert CriticCheck(JudgeCheck(Scores(), "p"), "redact").decide([exchange("x", "0.1")])[0].outcome == "refuse"
    block = CriticCheck(JudgeCheck(Scores(), "p"), "block_tool_call")
    assert block.decide([exchange("x", "0.1")])[0].outcome == "refuse"  # nothing to block
    with_call = Message("assistant", (Text("0.1"), ToolCall("c", "f", "{}")))
    assert block.decide([Exchange((user("x"),), (with_call,))])[0].outcome == "block_tool_call"


def test_a_critic_reads_what_stands_at_its_places() -> None:
    both = Exchange((user("x"),), (Message("assistant", (Text("0.1"), ToolCall("c", "f", "{}"))),))
    call = Exchange((user("x"),), (Message("assistant", (ToolCall("c", "f", "{}"),)),))
    empty = Exchange((user("x"),), ())
    seen: list[Exchange] = []

    class Watching(Scores):
        def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
            seen.extend(exchanges)
            return [Verdict(0.1)] * len(exchanges)

    def decided(*places: str) -> list[str]:
        seen.clear()
        check = CriticCheck(JudgeCheck(Watching(), "p"), "refuse", frozenset(places))
        return [decision.outcome for decision in check.decide([both, call, exchange("x", "0.1"), empty])]

    assert decided("tool_call") == ["refuse", "refuse", "allow", "refuse"]  # an empty reply is judged too
    assert [len(item.reply) for item in seen] == [1, 1, 0]
    assert all(isinstance(part, ToolCall) for item in seen for m in item.reply for part in m.parts)
    assert decided("reply") == ["refuse", "allow", "refuse", "refuse"]
    assert seen[0].reply[0].parts == (Text("0.1"),)


def test_a_threshold_is_placed_by_a_false_alarm_rate() -> None:
    scores = [i / 100 for i in range(100)]
    threshold = threshold_at(scores, 0.05)
    assert sum(score < threshold for score in scores) == 5
    with pytest.raises(ValueError, match="at least 100"):
        threshold_at(scores[:50], 0.01)


def test_a_judge_in_a_check_cannot_testify() -> None:
    check = CriticCheck(JudgeCheck(Scores(), "p"), "refuse")
    ledger = Ledger()
    ledger.record("guard", "train", check.name, check.lineage)
    with pytest.raises(OptimisedJudge, match="guard"):
        ledger.evidence("voice", "another name", leaf("critic", model="wt:1", text="Be kind!"), layer="guard")


def test_the_code_that_reads_the_system_prompt_is_part_of_the_secrets_lineage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = SecretsCheck((Secret("day-word"),)).lineage
    (tmp_path / "told.py").write_text("# other patterns")
    monkeypatch.setattr("fairlead.guard.checks.told.__file__", str(tmp_path / "told.py"))
    assert SecretsCheck((Secret("day-word"),)).lineage != before


def test_lineages_tell_checks_apart() -> None:
    assert RulesCheck((r"a\.b",)).lineage != RulesCheck(("a.b",)).lineage
    assert KEEP.lineage == SecretsCheck((Secret("day-word"),), "renamed").lineage
    assert KEEP.lineage != SecretsCheck((Secret("gate-word"),)).lineage
