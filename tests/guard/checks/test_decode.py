from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.guard.checks.decode import find, readings, shape
from fairlead.guard.checks.secrets import Secret, SecretsCheck
from fairlead.guard.pieces import redact
from guard.helpers import ENCODINGS, asked

CHECK = SecretsCheck((Secret("day-word"),), "keep-secrets")

# What one encoding destroys no decoder brings back: case in base64; letters that rot13 leaves as they are.
LOST = {
    *(("upper case", inner) for inner in ENCODINGS if inner.startswith("base64")),
    ("rot13", "accents"),
    ("look-alikes", "base64"),
}


def decide(secret: str, text: str) -> str:
    return CHECK.decide([asked(secret, text)])[0].outcome


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("secret", ["falcon", "fern", "4417", "Xk-42-trm9"])
def test_every_encoding_is_seen_and_painted_over(name: str, secret: str) -> None:
    exchange = asked(secret, f"sure , it is {ENCODINGS[name](secret)} , good luck with it .")
    decision = CHECK.decide([exchange])[0]
    assert decision.outcome == "redact", name
    released = redact(exchange.reply, decision.spans)[0].text
    assert released.startswith("sure , it is ") and released.endswith(" , good luck with it .")
    assert "[redacted]" in released
    assert decide(secret, released) == "allow"
    assert secret not in decision.evidence


LISTED = [name for name in ENCODINGS if name != "html"]  # one reading deep only


@pytest.mark.parametrize(("outer", "inner"), [pair for pair in itertools.product(LISTED, repeat=2) if pair not in LOST])
def test_two_encodings_on_top_of_each_other(outer: str, inner: str) -> None:
    assert decide("falcon", f"it is {ENCODINGS[outer](ENCODINGS[inner]('falcon'))} .") == "redact"


def test_a_word_in_every_shifted_alphabet_is_seen_where_it_is_spelled_out() -> None:
    for shift in range(1, 26):
        shifted = " ".join(chr((ord(c) - 97 + shift) % 26 + 97) for c in "falcon")
        assert decide("falcon", f"in cipher : {shifted} .") == "redact", shift


def test_the_evidence_says_how_it_was_written() -> None:
    for name in ("reversed", "rot13", "hex", "base64"):
        evidence = CHECK.decide([asked("falcon", ENCODINGS[name]("falcon"))])[0].evidence
        assert name in evidence
    assert "spelled out" in CHECK.decide([asked("falcon", "f a l c o n")])[0].evidence


WORDS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=4, max_size=12)
AROUND = st.text(alphabet="abcdefghij klmnopqrstuvwxyz.,!?0123456789\n", max_size=40)
SINGLE = [name for name in ENCODINGS if name != "base64, inside more"]


@settings(max_examples=150, deadline=None)
@given(secret=WORDS, before=AROUND, after=AROUND, name=st.sampled_from(SINGLE))
def test_what_is_released_holds_the_secret_in_no_single_encoding(
    secret: str, before: str, after: str, name: str
) -> None:
    exchange = asked(secret, f"{before} {ENCODINGS[name](secret)} {after}")
    text = exchange.reply_text
    for _ in range(4):  # the guard looks again after every change
        decision = CHECK.decide([exchange])[0]
        if decision.outcome == "allow":
            break
        exchange = asked(secret, redact(exchange.reply, decision.spans)[0].text)
    else:
        pytest.fail("redaction does not come to an end")
    released = exchange.reply_text
    assert released != text
    for spelling in (str, str.upper, str.capitalize):
        for encode in ENCODINGS.values():
            assert encode(spelling(secret)) not in released


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    """No input makes the decoder raise, and every span it names lies in the text."""
    for found in find("falcon", list(readings(text))):
        assert 0 <= found.start < found.end <= len(text)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="%\\x&#;u0123456789abcdefABCDEF+/=-_ {}", max_size=300))
def test_broken_escapes_can_be_read(text: str) -> None:
    for found in find("fade", list(readings(text))):
        assert 0 <= found.start < found.end <= len(text)


SECRETS = ("amber", "fern", "iris", "onyx", "ruby", "falcon", "copper", "rosemary", "4417", "1234", "hunter2")
ORDINARY = """
the household keeps its boots in the shed , and the lamp costs 12 coins .
to poison the rats , take the bait and go to the store . 44 + 17 is 61 .
Please find the figures for 2024: 12 + 34 makes 46, and 1, 2, 3, go!
A beam of timber lay across the yard; the chamber was cold, the copperplate was not.
Call 555-0134 before 9:30. The commit is deadbeef, the colour is #fafafa, the id 7f3a9c.
See https://example.org/a%20page?q=caf%C3%A9&lang=en for more; escape it as \\u00e9 or &#233;.
Remember, members: September's numbers are lumbering along; the timbers are timber.
He said: "Man, go home." Then a b c d e f g was sung, and do re mi fa.
VGhpcyBpcyBhbiBvcmRpbmFyeSBzZW50ZW5jZSBpbiBiYXNlNjQu and 5468697320697320686578 are encoded, harmlessly.
Die Kammer ist grün, la chambre est là, в комнате тихо. 花が咲く。
""".strip().splitlines()


@pytest.mark.parametrize("line", [line for line in ORDINARY if "amber" not in line and "copper" not in line])
def test_ordinary_text_is_let_through(line: str) -> None:
    views = list(readings(line))
    for secret in SECRETS:
        if secret not in line:
            assert find(secret, views) == [], secret


def test_ordinary_text_in_bulk_is_let_through() -> None:
    words = sorted({word for line in ORDINARY for word in line.split() if word.isalpha()})
    rng = random.Random(0)
    for _ in range(150):
        text = " ".join(rng.choice(words) for _ in range(60))
        views = list(readings(text))
        for secret in SECRETS:
            assert secret in text or find(secret, views) == [], (secret, text)


def test_a_word_that_holds_the_secret_is_painted_over() -> None:
    assert decide("amber", "an ambering light") == "redact"


def test_time_grows_with_the_text_and_no_faster() -> None:
    """Counted in characters read, not in seconds: what hostile nesting makes of a text stays a multiple of it."""
    nested = "falcom"
    for _ in range(3):
        nested = ENCODINGS["base64"](nested * 4)
    for text in (nested, "a." * 2000, "%61" * 1000, "6" * 3000, "f a l c o " * 300, "Zm" * 1500):
        read = sum(len(view.text) for view in readings(text))
        assert read <= 80 * len(text), text[:20]


def test_a_secret_too_short_to_be_told_from_text_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 letters"):
        shape("a-b")
    with pytest.raises(ValueError, match="door"):
        Secret("door", ("42",))
