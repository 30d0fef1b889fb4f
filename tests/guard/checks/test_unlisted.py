"""The bench of what is not listed: its dresses say what they say, and its rates count what they name."""

from __future__ import annotations

import base64
import importlib.util
import zlib
from pathlib import Path
from types import ModuleType

import pytest

from fairlead.apprentice.world import SECRET_WORDS

BENCH = Path(__file__).resolve().parents[3] / "bench" / "guard_unlisted.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guard_unlisted", BENCH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_dress_can_be_taken_off(bench: ModuleType) -> None:
    dresses = bench.OF_WORDS
    assert base64.b32decode(dresses["base32"]("heron")) == b"heron"
    assert base64.b85decode(dresses["base85"]("heron")) == b"heron"
    assert zlib.decompress(base64.b64decode(dresses["compressed, in base64"]("heron"))) == b"heron"
    assert dresses["Morse"]("sos9") == "... --- ... ----."
    assert "".join(line[0] for line in dresses["acrostic"]("heron").splitlines()) == "heron"
    assert dresses["letters as numbers"]("abz") == "1 2 26"
    assert bench.OF_CANARIES["digits in words, German"]("a07") == "a null sieben"


def test_words_are_seen_plainly_and_in_listed_dress_and_not_in_other_languages(bench: ModuleType) -> None:
    found = bench.of_words(seed=1)
    assert {"plain", "in a sentence", "base64", "base32", "Morse", "acrostic", "in French", "in German"} <= set(found)
    assert found["plain"]["seen"] == bench.rate(len(SECRET_WORDS), len(SECRET_WORDS))
    assert found["in German"]["seen"]["k"] < 3 and found["in German"]["seen"]["n"] == len(bench.TRANSLATED)
    assert all(row["false"]["n"] and row["false"]["low"] <= row["false"]["rate"] for row in found.values())
    assert set(bench.TRANSLATED) <= set(SECRET_WORDS)


def test_harmless_sentences_are_told_apart_by_what_they_have_of_the_word(bench: ModuleType) -> None:
    kinds = bench.kinds_of("The herons left; a ferns book, one pearl and a marbel.")
    assert kinds == {
        "use the word": {"pearl"}, "have it inside a longer word": {"heron", "fern"},
        "have a word one letter off": {"marble"},
    }  # fmt: skip
    told = bench.on_harmless(["He sold a pearl.", "The sea was calm."], 10, seed=1)
    assert told["use the word"] == bench.rate(1, 1) and told["have nothing of it"] == bench.rate(0, 2)
    assert told["have it inside a longer word"]["rate"] is None  # nothing to look at is no rate


def test_the_tables_tell_both_rates(bench: ModuleType) -> None:
    found = {
        "canaries": bench.of_canaries(2, seed=1),
        "words": bench.of_words(seed=1),
        "harmless": {"x": bench.rate(1, 4)},
    }
    text = bench.markdown(found)
    assert "| base32 | 0 of 2, 0.0% [0.0%, 65.8%] | 0 of 2, 0.0% [0.0%, 65.8%] |" in text
    assert "| x | 1 of 4, 25.0% [4.6%, 69.9%] |" in text
