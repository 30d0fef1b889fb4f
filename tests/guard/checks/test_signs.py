"""The quick looks that stand before a full reading: they never say "nothing" where the full reading finds something."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.exchange import user
from fairlead.guard.checks import decode, signs, words
from fairlead.guard.checks.canary import Needles, needles
from fairlead.guard.checks.normalise import normalise
from fairlead.guard.checks.personal import ENTITIES, PersonalData
from fairlead.guard.checks.reader import compiled, plain
from fairlead.guard.checks.secrets import Secret, SecretsCheck
from fairlead.guard.checks.spans import SpanWatch
from fairlead.guard.watch import Seen
from fairlead.guard.wire.events import Channel
from support.leaks import case, said

PROSE = (
    "The harbour opens at six and the keeper logs each boat by name. ", "In 2019 there were 44 boats, 3 of them blue. ",
    "Ask iPhone support, or McDonald & Sons; it costs $4.50. ", "Être ou ne pas être, за час до рассвета. ", "",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ rhythms, one by one


def fits(letters: bytes, tables: Sequence[bytes], kinds: int) -> list[list[set[int]]]:
    """For each place in a quartet the kinds of inner text (by their bit) that each character fits into."""
    return [[{b for b in range(8) if table[c] >> b & 1 and kinds >> b & 1} for c in letters] for table in tables]


def follows(letters: bytes, tables: Sequence[bytes], pattern: str, kinds: int = 0xFF) -> bool:
    """Whether somewhere characters of one kind stand at the places of a quartet that `pattern` names ("1234123412")."""
    at = fits(letters, tables, kinds)
    return any(
        set.intersection(*(at[int(place) - 1][start + n] for n, place in enumerate(pattern)))
        for start in range(len(letters) - len(pattern) + 1)
    )


SHORT = {False: ("1234123412", "4123412341", "3412341234"), True: ("12341234", "3412341", "4123412")}
LONG = {
    False: ("123412341234", "412341234123", "341234123412", "234123412341"),
    True: ("123412341", "412341234", "34123412"),
}


def short(letters: bytes, few: bool) -> bool:
    return any(follows(letters, signs._SHORT, pattern) for pattern in SHORT[few])


def long(letters: bytes, few: bool) -> bool:
    """Of printable characters three quartets; of letters and digits less."""
    return follows(letters, signs._LONG, "123412341234", 0xF0) or any(
        follows(letters, signs._LONG, pattern, 0x0F) for pattern in LONG[few]
    )


def coded(rng: random.Random) -> bytes:
    """Letters with pieces of base64 of hex digits, words and printable characters in them, turned or not."""
    inner = rng.choice((b"0123456789abcdef", b"nopqrs0123456789", b"etaoinshrdlu", bytes(range(32, 127))))
    text = base64.b64encode(bytes(rng.choice(inner) for _ in range(rng.randint(4, 14))))[: rng.randint(5, 16)]
    text = text[::-1] if rng.random() < 0.3 else text
    noise = bytes(rng.choice(b"etaoinshrdluXQ7") for _ in range(rng.randint(0, 12)))
    return signs.glued(noise + text + noise[::-1])


@pytest.mark.parametrize("few", [False, True])
def test_a_rhythm_is_found_where_a_naive_loop_finds_it(few: bool) -> None:
    rng = random.Random(3 + few)
    found = [0, 0]
    for _ in range(500):
        letters = coded(rng)
        for n, (quick, naive) in enumerate(((signs._short_rhythm, short), (signs._long_rhythm, long))):
            expected = naive(letters, few)
            found[n] += expected
            assert quick(letters, few) == expected, (quick.__name__, letters)
    assert min(found) > 40 and max(found) < 460


# ------------------------------------------------------------------------------------------- canaries, against `read`


def among_prose(rng: random.Random, text: str) -> str:
    """A piece of a text, as it stands or between other words."""
    if rng.random() < 0.5:
        a, b = sorted(rng.randint(0, len(text)) for _ in range(2))
        text = text[a:b]
    return rng.choice(PROSE) + text + rng.choice((" ", "", ". ")) + rng.choice(PROSE)


def told(known: Needles, text: str) -> list[str]:
    """What a full reading finds that counts: a fragment under a decoder, or one as long as 32 bits are."""
    least = known.least + 2 * known.few
    return [hit.how for hit in known.read(text) if hit.decoded or hit.last - hit.first >= least]


@pytest.mark.parametrize("few", [False, True])
def test_where_the_first_look_sees_nothing_the_full_reading_finds_no_canary(few: bool) -> None:
    rng = random.Random(11 + few)
    nothing = something = 0
    for _ in range(250):
        made = case(rng, rng.choice((1, 2, 3)), rng.choice(("whole", "fragment", "turns")))
        known = needles((made.secret,), few=few)
        text = among_prose(rng, said(rng.choice(made.turns)[0]))
        if known.maybe(signs.sight(text)) == (False, False):
            nothing += 1
            assert told(known, text) == [], text
        else:
            something += 1
            found = {hit.how for hit in known.scan(text, signs.Eye())}
            assert not told(known, text) or found, text
    assert nothing > 25 and something > 100


def test_planted_a_first_look_without_base64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "_short_rhythm", lambda *_: False)
    monkeypatch.setattr(signs, "_long_rhythm", lambda *_: False)
    with pytest.raises(AssertionError):
        test_where_the_first_look_sees_nothing_the_full_reading_finds_no_canary(False)


@pytest.mark.parametrize("separator", [" . ", " - ", ", ", ""])
def test_what_no_screen_shows_between_separators_hides_nothing(separator: str) -> None:
    secret = "99480bc624bb07ead7a816e7d3c0415f"
    hidden = f"{separator}\u2060{separator}".join(secret)
    known, text = needles((secret,)), "I think that was\n" + base64.b64encode(hidden.encode()).decode()
    assert told(known, text) and known.scan(text)


def test_an_eye_sees_each_text_as_it_is() -> None:
    eye = signs.Eye()
    for text in ("", "a harbour", "YTZkN2E5", "a harbour", "р\u0430ss 9f8c1d2e", "YTZkN2E5", ""):
        seen, fresh = eye(text), signs.sight(text)
        assert (seen.read, seen.letters, seen.bare) == (fresh.read, fresh.letters, fresh.bare)
        assert [seen.encoded(few) for few in (True, False)] == [fresh.encoded(few) for few in (True, False)]
        assert [other.read for other in seen.others] == [other.read for other in fresh.others]


# ------------------------------------------------------------------------------------------- words, against `readings`

VALUES = ("saltmarsh-lantern-4417", "amber", "4417", "Red Oak", "xk-42-zz")


def disguised(rng: random.Random, text: str) -> str:
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        match rng.randrange(8):
            case 0:
                text = base64.b64encode(text.encode()).decode().rstrip(rng.choice(("", "=")))
            case 1:
                text = rng.choice(("", " ")).join(f"{byte:02x}" for byte in text.encode())
            case 2:
                text = "".join(f"%{ord(c):02x}" if rng.random() < 0.5 and ord(c) < 128 else c for c in text)
            case 3:
                text = decode.rot13(decode.View(text, (), lambda i, j: (i, j))).text
            case 4:
                text = text[::-1]
            case 5:
                text = rng.choice((" ", "-", ". ")).join(text)
            case 6:
                text = rng.choice((str.upper, str.lower, str.title))(text)
            case _:
                text = text.translate(str.maketrans("aeios", rng.choice(("43105", "аеіоѕ"))))
    return text


def test_where_the_first_look_sees_nothing_the_readings_find_no_word() -> None:
    rng = random.Random(12)
    nothing = found = 0
    for _ in range(250):
        value = rng.choice(VALUES)
        text = among_prose(rng, disguised(rng, value if rng.random() < 0.8 else "lamplight"))
        maybe = words.look(value).maybe(signs.sight(text))
        hits = decode.find(value, list(decode.readings(text))) if rng.random() < 0.5 or not maybe else []
        nothing += not maybe
        found += bool(hits)
        assert maybe or not hits, (value, text, [hit.how for hit in hits])
    assert nothing > 30 and found > 30


def test_readings_too_short_for_a_word_are_left_out_and_nothing_else() -> None:
    rng = random.Random(14)
    found = fewer = 0
    for n in range(120):
        value = VALUES[n % len(VALUES)]
        hidden = disguised(rng, disguised(rng, value))
        if n % 4 == 0:  # folded from fewer characters than it has letters
            value, hidden = "rads2rads2viii", base64.b64encode(base64.b64encode("㎯㎯ⅷ".encode())).decode()
        text = among_prose(rng, hidden) if n % 3 else f"{PROSE[n % 5]}{hidden} {PROSE[n % 4]}"
        every = list(decode.readings(text))
        some = list(decode.readings(text, least=len(decode.shape(value).letters)))
        hits = decode.find(value, every)
        found += bool(hits)
        fewer += len(some) < len(every)
        assert decode.find(value, some) == hits, (value, text)
    assert found > 40 and fewer > 80


@given(st.sets(st.text("ab1", min_size=1, max_size=4).map(str.encode), min_size=1, max_size=6), st.text("ab1 "))
@settings(max_examples=200, deadline=None)
def test_one_pattern_for_all_forms_is_any_of_them(forms: set[bytes], text: str) -> None:
    assert (words._any_of(forms).search(text.encode()) is not None) == any(form in text.encode() for form in forms)


def test_a_row_of_hex_digits_has_a_letter_among_ten() -> None:
    rng = random.Random(13)
    plain_runs = [compiled(rb"[0-9a-f]{10,}"), compiled(rb"[0-9n-s]{10,}")]
    both = [0, 0]
    for _ in range(2000):
        low = "".join(rng.choice("01" if rng.random() < 0.8 else "abcqx") for _ in range(rng.randint(5, 24))).encode()
        naive = any(not run[0].isdigit() for pattern in plain_runs for run in pattern.finditer(low))
        both[naive] += 1
        assert (words._HEX.search(low) is not None) == naive or words._HEX.search(low)[0].isdigit(), low
    assert min(both) > 200


# ---------------------------------------------------------------------------------------- personal data, by its hints


@pytest.mark.parametrize("n", range(len(ENTITIES)))
def test_a_hint_is_there_wherever_its_pattern_matches(n: int) -> None:
    entity, hint = ENTITIES[n], compiled(ENTITIES[n].hint)
    around = st.text("a9Z.-: é\u0430ß@(+x\n", max_size=3)

    @given(around, st.from_regex(entity.pattern), around)
    @settings(max_examples=60, deadline=None)
    def holds(before: str, middle: str, after: str) -> None:
        text = before + middle + after
        if entity.pattern.search(normalise(text).text):
            assert hint.search(plain(text)), text

    holds()


def test_personal_data_is_the_same_with_and_without_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        "write to ada.l+x@example.co.uk or call +44 20 7946 0958, ssn 219-09-9999", "DE89 3704 0044 0532 0130 00",
        "card 4111 1111 1111 1111 from 192.168.1.77 and 2001:db8:0:0:1:0:0:1", "in 2019, at 10:30, room 12-A", *PROSE,
        "-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END", "ａｄａ＠example.com, é219-09-9999", "SSN: 219099999",
    ]  # fmt: skip
    quick = [PersonalData().matches(text) for text in texts]
    always = compiled(b"")
    monkeypatch.setattr("fairlead.guard.checks.personal._ANY", always)
    monkeypatch.setattr("fairlead.guard.checks.personal._HINTS", (always,) * len(ENTITIES))
    assert quick == [PersonalData().matches(text) for text in texts] and sum(map(bool, quick)) == 6


# ------------------------------------------------------------------------------------------------------- ends


class Counting:
    """A finder that says where "x" stands, and how often it was asked."""

    name, principle, on_violation, at, asked = "x", "", "redact", frozenset({"reply"}), 0

    def matches(self, text: str) -> list[tuple[str, int, int]]:
        self.asked += 1
        return [("x", n, n + 1) for n, char in enumerate(text) if char == "x"]

    def says(self, what: str, place: str) -> str:
        return what


def pieces_of(text: str, sizes: Sequence[int]) -> Iterator[Seen]:
    at = 0
    for size in sizes:
        yield Seen(Channel(0, 0), "reply", text[at : at + size])
        at += size
    yield Seen(Channel(0, 0), "reply", text[at:])
    yield Seen(Channel(0, 0), "reply", "", last=True)


@pytest.mark.parametrize("sizes", [[], [3, 1, 5], [20, 0, 20]])
def test_a_text_that_has_ended_is_not_gone_over_again(sizes: list[int]) -> None:
    text = "one x, and another x at the very end of it: x"
    check = Counting()
    watch = SpanWatch(check, held=4, back=16)  # type: ignore[arg-type]
    rulings = [watch.feed(seen) for seen in pieces_of(text, sizes)]
    cuts = [(cut.start, cut.end) for ruling in rulings for cut in ruling.cuts]
    assert cuts == [(n, n + 1) for n, char in enumerate(text) if char == "x"]
    assert rulings[-1].safe[Channel(0, 0)] == len(text)
    assert check.asked <= sum(bool(seen.text) for seen in pieces_of(text, sizes)) + 1  # once more where it was cut


def test_the_last_word_is_weighed_when_the_end_comes_by_itself() -> None:
    """As a proxy tells of a reply: its text, and then, without one, that it is whole."""
    check = SecretsCheck((Secret("c", ("9f8c1d2e7b6a5f4e3d2c1b0a99887766",), anywhere=True),))
    text = "The first part of it is 9f8c1d2 as I was told to say, and the one that comes after is e7b6a5f"
    for pieces in ([text], [text[:60], text[60:]], [text[:-3], text[-3:]]):
        watch = check.watch([user("?")])
        rulings = [watch.feed(Seen(Channel(0, 0), "reply", piece)) for piece in pieces]
        rulings.append(watch.feed(Seen(Channel(0, 0), "reply", "", last=True)))
        assert (len(text) - 7, len(text)) in {(c.start, c.end) for ruling in rulings for c in ruling.cuts}


def test_a_word_without_end_is_weighed_where_it_stands() -> None:
    """More letters in a row than are remembered: what follows keeps its place."""
    check = SecretsCheck((Secret("c", ("9f8c1d2e7b6a5f4e3d2c1b0a99887766",), anywhere=True),))
    watch = check.watch([user("?")])
    rulings = [watch.feed(Seen(Channel(0, 0), "reply", "m" * 100)) for _ in range(40)]
    tail = " the first is 9f8c1, then comes d2e7b, and 6a5f4 is the last."
    rulings.append(watch.feed(Seen(Channel(0, 0), "reply", tail, last=True)))
    parts = {(4000 + tail.index(part), 4000 + tail.index(part) + 5) for part in ("9f8c1", "d2e7b", "6a5f4")}
    assert parts <= {(c.start, c.end) for ruling in rulings for c in ruling.cuts}
