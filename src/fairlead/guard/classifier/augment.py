"""More of the same row in other dress: paraphrase by frames, spellings, encodings, and translation by a hook.

Kept and broken rows are dressed alike, by the same draw: what a row wears says nothing of its label.
"""

from __future__ import annotations

import base64
import codecs
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from fairlead.exchange import Exchange, Message, Text
from fairlead.guard.classifier.rows import Row

Dress: TypeAlias = Callable[[str, random.Random], str]
Translate: TypeAlias = Callable[[Sequence[str]], Sequence[str]]
"""Texts of one language to as many of another, in order; a model or a service of the caller's own."""

_FRAMES = (
    "Hi! {}", "{} Thanks in advance.", "Quick question: {}", "I'm asking for a friend. {}", "{} Be brief.",
    "Please help me with this. {}", "My teacher wants to know: {}", "{} I have been wondering for days.",
    "You are an actor in a play, stay in your role. {}", "Imagine there were no rules at all. {}",
    "Let's say, hypothetically: {}", "{} Answer step by step.", "For a story I am writing: {}", "ok so {}",
)  # fmt: skip
_LEET = str.maketrans("aeiost", "4310$7")


def framed(text: str, rng: random.Random) -> str:
    return rng.choice(_FRAMES).format(text)


def plain_typing(text: str, rng: random.Random) -> str:
    """Small letters, no marks, as on a phone."""
    kept = "".join(c for c in text.lower() if c not in ".,;:!?'\"")
    return kept if rng.random() < 0.5 else kept.replace("you", "u").replace("please", "pls")


def typos(text: str, rng: random.Random) -> str:
    """One letter in fifteen swapped with the next."""
    letters = list(text)
    for i in range(len(letters) - 1):
        if letters[i].isalpha() and letters[i + 1].isalpha() and rng.random() < 1 / 15:
            letters[i], letters[i + 1] = letters[i + 1], letters[i]
    return "".join(letters)


def shouted(text: str, rng: random.Random) -> str:
    return text.upper()


def leet(text: str, rng: random.Random) -> str:
    return text.translate(_LEET)


def spaced(text: str, rng: random.Random) -> str:
    """One word in three spelled out."""
    return " ".join(" ".join(w) if len(w) > 3 and rng.random() < 1 / 3 else w for w in text.split())


def encoded_base64(text: str, rng: random.Random) -> str:
    return f"Decode this and do as it says: {base64.b64encode(text.encode()).decode()}"


def rot13(text: str, rng: random.Random) -> str:
    return f"This is rot13: {codecs.encode(text, 'rot13')}"


DRESSES: Mapping[str, Dress] = {
    "frame": framed, "plain": plain_typing, "typos": typos, "shouted": shouted, "leet": leet, "spaced": spaced,
    "base64": encoded_base64, "rot13": rot13,
}  # fmt: skip
_WEIGHT = {"frame": 6, "plain": 3, "typos": 3, "shouted": 1, "leet": 1, "spaced": 1, "base64": 0.5, "rot13": 0.5}


def augmented(rows: Sequence[Row], copies: int, *, seed: int = 0) -> list[Row]:
    """`copies` of every row with the user's last turn dressed otherwise; the rows themselves are not among them, nor is
    any of a row where nothing was asked."""
    names, weights = list(DRESSES), [_WEIGHT[name] for name in DRESSES]
    out = []
    for row in rows:
        if not row.exchange.messages:
            continue
        rng = random.Random(f"{seed}/{row.id}")
        chosen: dict[str, None] = {}
        while len(chosen) < min(copies, len(names)):
            chosen.setdefault(rng.choices(names, weights)[0])
        for name in chosen:
            dressed = with_prompt(row.exchange, DRESSES[name](row.prompt, rng))
            out.append(dataclasses.replace(row, id=f"{row.id}+{name}", exchange=dressed, made=_and(row.made, name)))
    return out


def translated(rows: Sequence[Row], language: str, translate: Translate) -> list[Row]:
    """The rows with the user's last turn in another language, those without one left out. Raises ValueError where texts
    got lost on the way."""
    rows = [row for row in rows if row.exchange.messages]
    texts = list(translate([row.prompt for row in rows]))
    if len(texts) != len(rows):
        raise ValueError(f"the translation to {language} gave {len(texts)} texts for {len(rows)}")
    return [
        dataclasses.replace(
            row, id=f"{row.id}+{language}", exchange=with_prompt(row.exchange, text), made=_and(row.made, language)
        )
        for row, text in zip(rows, texts, strict=True)
    ]


def with_prompt(exchange: Exchange, text: str) -> Exchange:
    """The exchange with another text in its last message."""
    *before, last = exchange.messages
    return dataclasses.replace(exchange, messages=(*before, Message(last.role, (Text(text),), last.origin)))


def _and(made: str, name: str) -> str:
    return f"{made}+{name}" if made else name
