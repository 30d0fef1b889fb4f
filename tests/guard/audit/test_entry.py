"""What is stored of an exchange, byte by byte."""

from __future__ import annotations

import hashlib

import orjson
import pytest

from fairlead.guard.audit import Verdict
from fairlead.guard.audit.entry import EVIDENCE, encode, keyed
from guard.audit.helpers import entry

KEY = b"k" * 32


def test_what_is_empty_is_left_out_and_verdicts_are_named_by_their_place() -> None:
    body = orjson.loads(encode(entry(1), KEY))
    assert list(body) == [
        "kind",
        "time",
        "request",
        "route",
        "decision",
        "constitution",
        "status",
        "written",
        "verdicts",
        "released",
    ]
    assert body["verdicts"][0] == ["v-000000000010", "secrets", "keep-secrets", "allow", 0.2, ""]
    [(choice, part, place, start, end, size, digest, ids)] = body["released"]
    assert (choice, part, place, start, end, size, ids) == (0, 0, "reply", 0, 8, 8, [0, 1])
    assert digest == keyed(hashlib.sha256(b"good day").hexdigest(), KEY)


def test_a_digest_without_the_key_says_nothing_of_a_text_that_is_guessed() -> None:
    plain = hashlib.sha256(b"good day").hexdigest()
    assert plain[:32] not in encode(entry(1), KEY).decode()
    assert keyed(plain, KEY) != keyed(plain, b"x" * 32)


def test_a_digest_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="64 hex digits, this has 8"):
        encode(entry(1, asked="deadbeef"), KEY)
    with pytest.raises(ValueError, match="hex"):
        encode(entry(1, asked="good day"), KEY)


def test_long_evidence_is_cut_and_says_how_much() -> None:
    told = Verdict("v-1", "rules", evidence="x" * (EVIDENCE + 7))
    assert orjson.loads(encode(entry(1, verdicts=(told,)), KEY))["verdicts"][0][5].endswith("x… (7 more characters)")


def test_halves_of_surrogate_pairs_and_numbers_that_are_none_do_not_stop_the_log() -> None:
    told = Verdict("v-1", "rules", evidence="\ud83d", ms=float("nan"))
    body = orjson.loads(encode(entry(1, verdicts=(told,)), KEY))
    assert body["verdicts"][0][4:] == [None, "\\ud83d"]


def test_everything_that_is_not_empty_is_there() -> None:
    would = Verdict("v-9", "critic", "voice", "revise")
    more = {"classifier": "d" * 64, "tenant": "t", "stream": True, "principle": "p", "verdict": "v-1", "ended": "deadline",
            "withheld": {"opaque reasoning": 1}, "passed": {"image": 2}, "usage": {"prompt_tokens": 3},
            "more": True}  # fmt: skip
    body = orjson.loads(encode(entry(1, shadow=(would,), asked="a" * 64, **more), KEY))
    assert {key: body[key] for key in more} == more
    assert body["shadow"] == [["v-9", "critic", "voice", "revise", 0.0, ""]] and len(body["asked"]) == 32
