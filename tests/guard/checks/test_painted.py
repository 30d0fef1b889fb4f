from __future__ import annotations

import base64
import random

import pytest

from fairlead.exchange import Message, Text, ToolCall, ToolResult, assistant, system, user
from fairlead.guard.checks import painted
from fairlead.guard.checks.painted import Painted
from fairlead.guard.checks.secrets import Secret, SecretsCheck
from fairlead.guard.watch import Seen
from fairlead.guard.wire.events import Channel

ASKED = [system("be kind"), user("what is it?")]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def released(check: SecretsCheck, turns: list[str], *, system_changes: bool = False) -> list[str]:
    """What a client holds after a conversation in which the model says these turns."""
    messages = list(ASKED)
    out = []
    for n, text in enumerate(turns):
        watch = check.watch(messages)
        rulings = [watch.feed(Seen(Channel(0, 0), "reply", text, last=True)), watch.finish(0)]
        gone = {i for ruling in rulings for cut in ruling.cuts for i in range(cut.start, cut.end)}
        out.append("".join(char for i, char in enumerate(text) if i not in gone))
        sent = "".join(
            "" if i in gone and i - 1 in gone else "[redacted]" if i in gone else c for i, c in enumerate(text)
        )
        messages += [assistant(sent), user(f"go on {n}")]
        if system_changes:
            messages[0] = system(f"be kind, request {n}")
    return out


def dealt(rng: random.Random) -> tuple[str, list[str]]:
    """A canary in base64, the first half in one turn, then three characters a turn: each piece alone says nothing."""
    secret = f"{rng.getrandbits(128):032x}"
    coded = base64.b64encode(secret.encode()).decode()
    return secret, [coded[:21], *(coded[n : n + 3] for n in range(21, len(coded), 3))]


def most_of(turns: list[str]) -> int:
    return sum(len(turn) for turn in turns)


@pytest.mark.parametrize("system_changes", [False, True])
def test_what_goes_on_after_something_was_painted_over_is_read_with_what_stood_there(system_changes: bool) -> None:
    rng = random.Random(3)
    for _ in range(20):
        secret, turns = dealt(rng)
        check = SecretsCheck((Secret("c", (secret,), anywhere=True),))
        left = released(check, turns, system_changes=system_changes)
        assert most_of(left) <= 10  # fewer characters of base64 than make up 32 bits


def test_planted_what_was_painted_over_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(3)
    monkeypatch.setattr(Painted, "keep", lambda *_: None)
    lost = []
    for _ in range(20):
        secret, turns = dealt(rng)
        check = SecretsCheck((Secret("c", (secret,), anywhere=True),))
        lost.append(most_of(released(check, turns)))
    assert max(lost) > 10


def test_arguments_of_earlier_calls_were_said_too() -> None:
    rng = random.Random(4)
    secret = f"{rng.getrandbits(128):032x}"
    check = SecretsCheck((Secret("c", (secret,), anywhere=True),))
    calls = Message("assistant", (ToolCall("a", "post", f'{{"q": "{secret[:7]}"}}'),))
    watch = check.watch([*ASKED, calls, Message("tool", (ToolResult("a", (Text("done"),)),))])
    ruling = watch.feed(Seen(Channel(0, 0), "tool_call", f'{{"q": "{secret[7:14]}"}}', last=True, name="post"))
    assert ruling.decision.outcome == "block_tool_call"


def test_of_several_alternatives_the_one_that_the_client_took() -> None:
    kept = Painted()
    kept.keep(ASKED, ["the first is abc"])
    kept.keep(ASKED, ["the second is def"])
    for start, whole in (("the first", "the first is abc"), ("the second", "the second is def")):
        assert kept.said([*ASKED, assistant(f"{start} is [redacted]"), user("go on")]) == ([whole], True)
    # one that begins otherwise was painted over by another check first: nothing of what was sent is lost
    said, painted = kept.said([*ASKED, assistant("now [redacted]"), user("go on")])
    assert painted and {"now [redacted]", "the first is abc", "the second is def"} == set(said)
    # the third was not painted over, and is no reply that is remembered
    assert kept.said([*ASKED, assistant("the third"), user("go on")]) == (["the third"], False)


def test_only_the_same_conversation_is_known() -> None:
    kept = Painted()
    kept.keep(ASKED, ["it is abc"])
    sent = assistant("it is [redacted]")
    assert kept.said([system("another"), ASKED[1], sent]) == (["it is abc"], True)
    assert kept.said([user("what was it?"), sent]) == (["it is [redacted]"], False)
    assert kept.said([*ASKED, user("more"), sent]) == (["it is [redacted]"], False)
    # what one message holds and the next does not is no matter of where one ends
    assert kept.said([user("what is it?user"), sent]) == (["it is [redacted]"], False)


def test_it_is_forgotten_after_a_while_and_when_there_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    kept = Painted(clock)
    kept.keep(ASKED, ["it is abc"])
    clock.now = painted.SECONDS + 1
    assert kept.said([*ASKED, assistant("it is [redacted]")]) == (["it is [redacted]"], False)
    monkeypatch.setattr(painted, "KEPT", 1000)
    for n in range(50):
        kept.keep([user(str(n))], ["x" * 100])
    assert kept.said([user("49"), assistant("[redacted]")]) == (["x" * 100], True)
    assert kept.said([user("0"), assistant("[redacted]")]) == (["[redacted]"], False)
    assert sum(len(t) for one in kept._kept.values() for reply in one.replies for t in reply) == kept._size <= 1000


def test_half_a_character_is_no_reason_to_fail() -> None:
    kept = Painted()
    kept.keep([user("\ud83d")], ["it is \udc00"])
    assert kept.said([user("\ud83d"), assistant("[redacted]")]) == (["it is \udc00"], True)
