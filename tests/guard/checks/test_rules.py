"""Rules over text that is written so that a pattern would not match it as it stands."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.constitution.schema import Constitution, Guard, Principle
from fairlead.exchange import Message, Text, ToolResult, exchange, user
from fairlead.guard.checks.exfiltration import ExfiltrationCheck
from fairlead.guard.checks.normalise import normalise, spelled, visible
from fairlead.guard.checks.personal import PersonalData
from fairlead.guard.checks.rules import HELD, RulesCheck
from fairlead.guard.checks.spans import Finder, SpanWatch, decided
from fairlead.guard.prompts import prompt_checks
from fairlead.guard.watch import Seen, StreamCheck
from fairlead.guard.wire.events import Channel

ARSENIC = RulesCheck((r"(?i)arsenic\b",), "p", "redact")
WRITTEN = [
    "ars\u200benic", "\u0430rsenic", "ａｒｓｅｎｉｃ", "a\u0301rsenic", "ARSE\u00adNIC", "a r s e n i c", "a-r-s-e-n-i-c",
    "\u0430 r s e n i \u0441", "a\u200b r s . e n i c", "\U0001d41a\U0001d42bsenic", "arsenic",
]  # fmt: skip


def spans(check: RulesCheck | PersonalData | ExfiltrationCheck, text: str) -> set[tuple[int, int]]:
    [decision] = check.decide([exchange("?", text)])
    return {(span.start, span.end) for span in decision.spans}


@pytest.mark.parametrize("written", WRITTEN)
def test_a_rule_matches_what_reads_like_it_and_cuts_what_was_written(written: str) -> None:
    text = f"Grüße 👋 — take {written} for the rats"
    start = text.index(written)
    assert spans(ARSENIC, text) == {(start, start + len(written))}


@pytest.mark.parametrize("written", WRITTEN)
def test_so_it_does_in_what_is_asked(written: str) -> None:
    guard = Guard(at=("prompt", "reply"), on_violation="refuse")
    principle = Principle(id="no-poison", dimension="harmless", severity=5, text="No poison.", guard=guard)
    constitution = Constitution(name="test", principles=(principle,))
    [check] = prompt_checks([RulesCheck((r"(?i)arsenic",), "no-poison")], constitution)
    assert check.ask((user(f"where is {written} sold?"),)).outcome == "refuse"
    assert check.ask((user("where is parsley sold?"),)).outcome == "allow"


def test_what_is_in_another_alphabet_is_matched_as_written_and_without_what_no_screen_shows() -> None:
    check = RulesCheck((r"(?i)мышьяк",), "p", "redact")
    for written in ("мышьяк", "МЫШЬЯК", "мыш\u200bьяк", "м ы ш ь я к"):
        assert spans(check, f"вот {written}.") == {(4, 4 + len(written))}


def test_lists_and_sums_are_no_words_spelled_out() -> None:
    read = normalise("1 2 3 4, A) B) and C, 1 = y + z1, I a is")
    assert [word.text for word in spelled(read)] == []
    assert visible("a\u200bb").locate(1, 2) == (2, 3)


BITS = (
    *WRITTEN, "arse", "nic", "\u200b", "\u200b" * 7, "\u0301", " ", "a", "и", "word ", "ada@exa", "mple.org", "ａｄａ＠example.com ",
    "n\u200bic ", "the harbour is open , ", "\ufe0f\u200d",
)  # fmt: skip


def streamed(check: StreamCheck, text: str, sizes: list[int]) -> str:
    """What leaves of a text that comes in pieces, and is painted over as the watch says; nothing that has left again."""
    watch, at, step, safe, out = check.watch([user("?")]), 0, 0, 0, list(text)
    channel = Channel(0, 0)
    while at < len(text):
        piece = text[at : at + sizes[step % len(sizes)]]
        at, step = at + len(piece), step + 1
        ruling = watch.feed(Seen(channel, "reply", piece, last=at >= len(text)))
        for cut in ruling.cuts:
            assert cut.start >= safe
            out[cut.start : cut.end] = ["█"] * (cut.end - cut.start)
        safe = ruling.safe[channel]
    assert safe == len(text)
    return "".join(out)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(BITS), min_size=1, max_size=12), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_streams_cut_what_whole_replies_cut_however_it_is_written(bits: list[str], sizes: list[int]) -> None:
    text = "".join(bits)
    for check in (RulesCheck((r"(?i)arsenic",), "p", "redact"), PersonalData("p")):
        left = streamed(check, text, sizes)
        for start, end in spans(check, text):
            assert set(left[start:end]) == {"█"}


RULES = (r"(?i)arsenic", r"^a", r"\bnic\b", r"(?P<who>ada)@", r"(?P<who>open) ,$", r"word\s", "\u0438")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(BITS), min_size=1, max_size=12), st.lists(st.sampled_from(RULES), min_size=2, unique=True)
)
def test_many_rules_find_what_each_of_them_finds_alone(bits: list[str], patterns: list[str]) -> None:
    text = "".join(bits)
    alone = [found for pattern in patterns for found in RulesCheck((pattern,), "p").matches(text)]
    assert sorted(RulesCheck(tuple(patterns), "p").matches(text)) == sorted(alone)


LINKS = (
    "![x](https://evil.example/p.png?d=", "hello", ")", "![", "!", "[a]", "(", "<img src=", "'//evil.example/", "x", "'>",
    "https://evil.example/?q=", "ada%40example.com", "aGVsbG8gdGhlcmUgdGhpcyBpcyBhIHNlY3JldA1", " ", "\n", "ht", "tp", "s:", "//",
    "https://docs.example/a/page?lang=en", "<", "the harbour is open , ", "h", "HTTP://", "ｈttps：//evil.example/?q=", "\u200b", "<b>",
    "wss://evil.example/?q=", "mailto:a@evil.example?body=", "data", ":", "ftp",
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(LINKS), min_size=1, max_size=14), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_streams_cut_what_whole_replies_cut_of_links(bits: list[str], sizes: list[int]) -> None:
    text = "".join(bits)
    check = ExfiltrationCheck("p", hosts=("docs.example",))
    left = streamed(check, text, sizes)
    found = spans(check, text)
    assert {n for n, char in enumerate(left) if char == "█"} == {n for a, b in found for n in range(a, b)}


def test_ordinary_text_is_not_held_back_for_the_links_that_it_does_not_hold() -> None:
    watch, channel, text = ExfiltrationCheck("p").watch([user("?")]), Channel(0, 0), ""
    for word in [
        "The",
        "harbour",
        "is",
        "open",
        ",",
        "3",
        "<",
        "5",
        "and",
        "oh",
        "what",
        "a",
        "day",
        "-",
        "see",
        "https://docs.example/a",
        "for",
        "more",
        "!",
        "Is",
        "it",
        "?",
    ]:
        text += f"{word} "
        assert watch.feed(Seen(channel, "reply", f"{word} ")).safe[channel] == len(text), word
    assert watch.feed(Seen(channel, "reply", "https://docs.example/")).safe[channel] == len(text)
    assert watch.feed(Seen(channel, "reply", "a b")).safe[channel] > len(text)


def test_a_match_at_the_very_beginning_waits_for_what_makes_it_none() -> None:
    assert streamed(ARSENIC, "arsenical soap", [1]) == "arsenical soap"


def test_what_no_screen_shows_does_not_push_the_beginning_of_a_match_out() -> None:
    word, rng = "arsenic", random.Random(4)
    for run in (1, 3, 4, HELD, 3 * HELD):
        written = ("\u200b" * run).join(word)
        text = "well " * 300 + written + " it is, " + "x" * 2000
        left = streamed(ARSENIC, text, [rng.randint(1, 700) for _ in range(7)])
        assert "█" * len(written) in left and left.count("█") == len(written)


def test_a_flood_of_them_costs_no_more_than_its_length() -> None:
    class Counts:
        name, principle, on_violation, at = "counts", "p", "redact", frozenset({"reply"})
        read = 0

        def matches(self, text: str) -> list[tuple[str, int, int]]:
            self.read = max(self.read, len(text))
            return []

        def says(self, what: str, place: str) -> str:
            return what

    check: Finder
    check = counts = Counts()
    watch = SpanWatch(check, 64, 256)
    for _ in range(500):
        watch.feed(Seen(Channel(0, 0), "reply", "\u200b" * 100))
    assert counts.read <= 512


def test_results_of_tools_are_read_the_same_way() -> None:
    message = Message("tool", (ToolResult("c", (Text("ars\u200benic"),)),))
    [decision] = ARSENIC.decide([exchange("?", "ok")])
    assert decision.outcome == "allow"
    assert decided(ARSENIC, (message,)).outcome == "redact"
