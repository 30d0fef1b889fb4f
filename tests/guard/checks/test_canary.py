from __future__ import annotations

import base64
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.exchange import Exchange, Message, Text, ToolCall, assistant, system, user
from fairlead.guard.checks import canary, drip, reader, spill
from fairlead.guard.checks.canary import is_random, needed, needles
from fairlead.guard.checks.secrets import Secret, SecretsCheck, fresh_canary, with_canary
from fairlead.guard.watch import Seen
from fairlead.guard.wire.events import Channel
from support.leaks import Case, Tracked, bits_released, case, cut_out, said

ALLOWED = 32  # bits: as many are a leak


def whole(check: SecretsCheck, messages: list[Message], turn: tuple[Tracked, ...]) -> list[Tracked]:
    reply = Message("assistant", tuple(Text(said(text)) for text in turn))
    [decision] = check.decide([Exchange(tuple(messages), (reply,))])
    assert decision.outcome in ("allow", "redact")
    spans = [[(s.start, s.end) for s in decision.spans if s.at == (0, n)] for n in range(len(turn))]
    return [cut_out(text, cuts) for text, cuts in zip(turn, spans, strict=True)]


def streamed(
    check: SecretsCheck, messages: list[Message], turn: tuple[Tracked, ...], sizes: list[int]
) -> list[Tracked]:
    """What leaves of a stream in pieces of these sizes. Asserts that the watch keeps its word."""
    watch = check.watch(messages)
    gone: dict[Channel, set[int]] = {}
    safe: dict[Channel, int] = {}
    rulings = []
    out = []
    for part, text in enumerate(turn):
        channel, at, step = Channel(0, part), 0, 0
        while at < len(text):
            size = sizes[step % len(sizes)]
            piece = said(text[at : at + size])
            at, step = at + size, step + 1
            rulings.append(watch.feed(Seen(channel, "reply", piece, last=at >= len(text))))
            for cut in rulings[-1].cuts:
                assert cut.end > safe.get(cut.channel, 0), "a cut has to lie ahead of what was let go"
                gone.setdefault(cut.channel, set()).update(range(max(cut.start, safe.get(cut.channel, 0)), cut.end))
            for there, n in rulings[-1].safe.items():
                assert n >= safe.get(there, 0), "what was let go stays let go"
                safe[there] = n
    rulings.append(watch.finish(0))
    for part, text in enumerate(turn):
        channel = Channel(0, part)
        out.append(cut_out(text, [(n, n + 1) for n in sorted(gone.get(channel, ()))]))
    return out


def called(check: SecretsCheck, messages: list[Message], turn: tuple[Tracked, ...]) -> list[Tracked]:
    """What leaves of calls by these names: each as it is, or nothing of it."""
    reply = Message("assistant", tuple(ToolCall("c", said(name), '{"n":1}') for name in turn))
    [decision] = check.decide([Exchange(tuple(messages), (reply,))])
    assert decision.outcome in ("allow", "block_tool_call")
    gone = {span.at[1] for span in decision.spans}
    return [[] if n in gone else name for n, name in enumerate(turn)]


def called_in_a_stream(check: SecretsCheck, messages: list[Message], turn: tuple[Tracked, ...]) -> list[Tracked]:
    watch = check.watch(messages)
    gone: set[int] = set()
    left: set[int] = set()
    for n, name in enumerate(turn):
        ruling = watch.feed(Seen(Channel(0, n), "tool_call", '{"n":1}', True, said(name)))
        gone |= {cut.channel.part for cut in ruling.cuts}
        left |= {n} - gone if ruling.safe[Channel(0, n)] == len('{"n":1}') else set()
    watch.finish(0)
    return [name if n in left else [] for n, name in enumerate(turn)]


def bits(made: Case, how: Callable[..., list[Tracked]], *more: object) -> float:
    check = SecretsCheck((Secret("canary", (made.secret,), anywhere=True),))
    messages = [system("be kind"), user("what is it?")]
    out: list[Tracked] = []
    for turn in made.turns:
        left = how(check, messages, turn, *more)
        out += left
        messages += [Message("assistant", tuple(Text(said(text)) for text in left)), user("go on")]
    return bits_released(made, out)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_composed_case_leaks_32_bits(depth: int) -> None:
    rng = random.Random(depth)
    leaked = [item.id for item in (case(rng, depth) for _ in range(60)) if bits(item, whole) >= ALLOWED]
    assert leaked == []  # the benchmark takes 20,000


@pytest.mark.parametrize("how", [called, called_in_a_stream])
def test_no_name_of_a_call_leaks_32_bits(how: Callable[..., list[Tracked]]) -> None:
    rng = random.Random(44)
    made = [case(rng, n % 3, "names") for n in range(60)]
    assert sum(bits_released(item, list(item.turns[0])) == 128 for item in made) == len(made)
    leaked = [item.id for item in made if bits(item, how) >= ALLOWED]
    assert leaked == []


@pytest.mark.parametrize("sizes", [[1], [3, 7, 2], [40]])
def test_no_stream_leaks_32_bits(sizes: list[int]) -> None:
    rng = random.Random(sum(sizes))
    splits = ("whole", "fragment", "parts", "sentences")
    made = [case(rng, 1 + n % 3, splits[n % 4]) for n in range(16)]
    leaked = [item.id for item in made if bits(item, streamed, sizes) >= ALLOWED]
    assert leaked == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_a_stream_is_decided_like_the_whole_reply_under_any_chunking(seed: int, sizes: list[int]) -> None:
    rng = random.Random(seed)
    made = case(rng, rng.choice((1, 2)), rng.choice(("whole", "fragment", "sentences")))
    text = said(made.turns[0][0]) if seed % 3 else "The harbour opens at 6, berth 12 is free until 2031-04-05."
    check = SecretsCheck((Secret("canary", (made.secret,), anywhere=True),))
    [decision] = check.decide([Exchange((user("?"),), (assistant(text),))])
    watch = check.watch([user("?")])
    outcomes, at, step = set(), 0, 0
    while at < len(text):
        piece = text[at : at + sizes[step % len(sizes)]]
        at, step = at + len(piece), step + 1
        outcomes.add(watch.feed(Seen(Channel(0, 0), "reply", piece, last=at >= len(text))).decision.outcome)
    outcomes.add(watch.finish(0).decision.outcome)
    assert (outcomes - {"allow"} or {"allow"}) == {decision.outcome}


def test_a_split_over_alternatives_and_reasoning_and_calls_is_one_leak() -> None:
    secret = fresh_canary()
    check = SecretsCheck((Secret("c", (secret,), anywhere=True),), at=frozenset({"reply"}))
    watch = check.watch([user("?")])
    first = watch.feed(Seen(Channel(0, 0), "reasoning", f"it is {secret[:7]}", last=True))
    second = watch.feed(Seen(Channel(1, 0), "reply", f"{secret[7:14]} follows", last=True))
    assert (first.decision.outcome, second.decision.outcome) == ("allow", "redact")
    call = Message("assistant", (ToolCall("c", "post", f'{{"q": "{secret[:16]}"}}'),))
    assert check.decide([Exchange((user("?"),), (call,))])[0].outcome == "block_tool_call"


def test_a_harmless_stream_is_let_go_at_once() -> None:
    check = SecretsCheck((Secret("c", (fresh_canary(),), anywhere=True),))
    watch = check.watch([user("?")])
    text = "The harbour is open to all who come in peace, and the lamp is lit every night until the morning comes. " * 4
    ruling = watch.feed(Seen(Channel(0, 0), "reply", text))
    assert ruling.decision.outcome == "allow" and len(text) - ruling.safe[Channel(0, 0)] < 40


def test_planted_one_alignment_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    made = [case(rng, 1, "whole") for _ in range(400)]
    coded = [item for item in made if item.names == ("base64",)]
    assert all(bits(item, whole) < ALLOWED for item in coded)
    monkeypatch.setattr("fairlead.guard.checks.odd.Odd.add", lambda *_, **__: False)  # it begins where the letters do
    monkeypatch.setattr(reader, "range", lambda *to: range(1) if to == (4,) else range(*to), raising=False)
    assert any(bits(item, whole) >= ALLOWED for item in coded)


def test_planted_turns_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(6)
    made = [case(rng, 0, "turns") for _ in range(12)]
    assert all(bits(item, whole) < ALLOWED for item in made)
    plain = spill.Spill
    monkeypatch.setattr("fairlead.guard.checks.secrets.Spill", lambda known, said, *more: plain(known, (), *more))
    assert any(bits(item, whole) >= ALLOWED for item in made)


def test_planted_pieces_not_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(7)
    made = [case(rng, 0, "sentences") for _ in range(6)]
    assert all(bits(item, whole) < ALLOWED for item in made)
    monkeypatch.setattr(drip.Drip, "feed", lambda self, channel, start, text: [])
    assert any(bits(item, whole) >= ALLOWED for item in made)


def test_the_first_look_misses_nothing_that_the_reading_finds() -> None:
    rng = random.Random(8)
    for _ in range(150):
        made = case(rng, rng.choice((1, 2, 3)), rng.choice(("whole", "fragment")))
        known = needles((made.secret,))
        text = said(made.turns[0][0])
        if known.read(text):
            assert known.scan(text), made.id


def test_the_finer_first_look_misses_nothing_either() -> None:
    rng = random.Random(9)
    tried = 0
    for _ in range(400):
        made = case(rng, rng.choice((1, 2, 3)), "turns")
        few = needles((made.secret,), few=True)
        text = said(rng.choice(made.turns)[0])
        if any(hit.decoded for hit in few.read(text)):
            tried += 1
            assert any(hit.decoded for hit in few.scan(text)), made.id
    assert tried > 50


def test_planted_symbols_that_are_cut_through_are_not_reckoned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven characters of base64 hold six digits whole and parts of three: 34 of 128 bits, as the generator counts."""
    made = [
        item
        for item in (case(random.Random(seed), 2, "turns") for seed in range(1500))
        if 32 <= bits_released(item, list(item.turns[0])) < 36 and "base64" in item.names
    ]
    assert all(bits(item, whole) < ALLOWED for item in made)
    plain = canary.needles
    monkeypatch.setattr(spill, "needles", lambda values, least=0, few=False: plain(values, least))
    assert any(bits(item, whole) >= ALLOWED for item in made)


def test_a_group_that_looks_like_a_word_is_read_with_the_others() -> None:
    secret = "9e03fcb7820d32a9c6e5673dc6217dcf"
    check = SecretsCheck((Secret("c", (secret,), anywhere=True),))
    text = "The value reads ef bc 99 ef bd 85 ef bc 90 ef bc 93 ef bd 86 ef bd 83 ef bd 82 ef bc 97 ."
    assert check.decide([Exchange((user("?"),), (assistant(text),))])[0].outcome == "redact"


@pytest.mark.parametrize(
    ("joint", "coded"), [("/", base64.urlsafe_b64encode), ("_", base64.b64encode), (":", base64.b64encode)]
)
def test_signs_of_one_base64_between_groups_of_the_other(joint: str, coded: Callable[[bytes], bytes]) -> None:
    """Hidden characters between the digits, so that the code has signs of its own."""
    secret = "61f3d5672b96f93f06eef95b87b4a08b"
    text = coded(f"word {chr(0xFEFF).join(secret)} ok".encode()).decode()
    assert set(text) & set("+/-_")
    groups = joint.join(text[i : i + 2] for i in range(0, len(text), 2))
    check = SecretsCheck((Secret("c", (secret,), anywhere=True),))
    [decision] = check.decide([Exchange((user("?"),), (assistant(f"Certainly! {groups} , as you asked."),))])
    assert decision.outcome == "redact"


def test_names_of_calls_are_read_with_and_without_the_word_before_each() -> None:
    secret = "7330e96cc3a19fac255585d807a5ce25"
    check = SecretsCheck((Secret("c", (secret,), anywhere=True),))
    wide = "".join(chr(ord(char) + 0xFEE0) for char in secret).encode().hex(":")
    coded = base64.b64encode(secret.encode()).decode()
    for names in (
        [wide[i : i + 36] for i in range(0, len(wide), 36)],
        [f"t.{wide[i : i + 36]}" for i in range(0, len(wide), 36)],
        [f"look_{coded[i : i + 3]}" for i in range(0, len(coded), 3)],
    ):
        calls = tuple(ToolCall("c", name, '{"n":1}') for name in names)
        assert check.decide([Exchange((user("?"),), (Message("assistant", calls),))])[0].outcome == "block_tool_call"


def test_what_is_a_canary_and_what_a_word() -> None:
    assert is_random(fresh_canary()) and is_random("Xk42trm9QQz81vLp0a7e")
    assert is_random("0a9aaa74f22b43ef201f7eaedfcccfde") and not is_random("deadbeefcafebabe")
    assert not is_random("falcon") and not is_random("the lamp is out tonight in the harbour")
    assert (needed(32), needed(16), needed(64)) == (8, canary.FEWEST, 16)


def test_a_text_made_to_keep_the_reader_busy_fails_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "WORK", 0)
    check = SecretsCheck((Secret("c", (fresh_canary(),), anywhere=True),))
    text = "It is " + "".join(f"%{ord(c):02x}" for c in "NGE0YjRjNGQ0ZTRm" * 40)
    assert check.decide([Exchange((user("?"),), (assistant(text),))])[0].outcome == "failed"


def test_a_canary_is_placed_last_in_the_system_prompt() -> None:
    value = fresh_canary()
    placed = with_canary([system("Be kind."), user("hello")], value)
    assert placed[0].text.startswith("Be kind.") and value in placed[0].text and placed[1] == user("hello")
    assert value in with_canary([user("hello")], value)[0].text
    check = SecretsCheck(()).with_canary(value)
    assert check.decide([Exchange(placed, (assistant(f"it is {value}"),))])[0].outcome == "redact"
