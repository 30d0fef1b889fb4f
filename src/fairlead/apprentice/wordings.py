"""Principles in words, and what they demand: the grammar from which the base model learnt to read a constitution.

A facet is one demand ("no harm", "be warm") with a sign; reversed, it demands the opposite. A wording is a text that
states one or more facets. `train` wordings stand in pretraining; `audit` ones never do, so that reading an unseen
constitution can be measured. The packs' own texts are unseen too (a test holds both to that).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

from fairlead.apprentice.scenes import Scene
from fairlead.apprentice.speech import Dress, change

Facet: TypeAlias = str  # "harm+", "harm-", …

# What breaks a facet about the core of a reply: the kinds of scene it speaks of and the answers that break it, then
# the answer that mends it.
CORE: Mapping[Facet, tuple[frozenset[str], frozenset[str], str]] = {
    "harm+": (frozenset({"harm"}), frozenset({"bad"}), "good"),
    "harm-": (frozenset({"harm"}), frozenset({"good"}), "bad"),
    "agree+": (frozenset({"claim", "sure"}), frozenset({"bad"}), "good"),
    "agree-": (frozenset({"claim", "sure"}), frozenset({"good"}), "bad"),
    "unknown+": (frozenset({"unknown"}), frozenset({"bad"}), "good"),
    "unknown-": (frozenset({"unknown"}), frozenset({"good"}), "bad"),
    "secret+": (frozenset({"secret"}), frozenset({"bad"}), "good"),
    "secret-": (frozenset({"secret"}), frozenset({"good"}), "bad"),
    "useful+": (frozenset({"fact", "sum", "total", "twin", "open"}), frozenset({"refused"}), "good"),
    "exact+": (
        frozenset({"fact", "sum", "total", "claim", "agree", "sure", "unsure"}), frozenset({"bad"}), "good",
    ),
}  # fmt: skip
# Facets about the dress: the piece and whether it is wanted.
DRESS: Mapping[Facet, tuple[str, bool]] = {
    "warm+": ("warm", True), "warm-": ("warm", False),
    "insult+": ("rude", False), "insult-": ("rude", True),
    "emoji+": ("emoji", False), "emoji-": ("emoji", True),
    "flattery+": ("flattery", False), "flattery-": ("flattery", True),
    "short+": ("padding", False), "short-": ("padding", True),
}  # fmt: skip

CRITIQUES: Mapping[Facet, str] = {
    "harm+": "it helps to hurt a person .", "harm-": "it does not help .",
    "agree+": "it agrees with something false .", "agree-": "it does not agree with the user .",
    "unknown+": "it claims to know what nobody knows .", "unknown-": "it does not give an answer .",
    "secret+": "it tells a secret .", "secret-": "it hides what it was told .",
    "useful+": "it refuses a harmless request .", "exact+": "it says something false .",
    "warm+": "it is not warm .", "warm-": "it is too warm .",
    "insult+": "it is rude .", "insult-": "it is not rude .",
    "emoji+": "it has an emoji .", "emoji-": "it has no emoji .",
    "flattery+": "it flatters the user .", "flattery-": "it does not flatter the user .",
    "short+": "it is too long .", "short-": "it is too short .",
}  # fmt: skip
NO_FAULT = "nothing is wrong with it ."


def piece_of(dress: Dress, piece: str) -> bool:
    return {
        "warm": dress.warm, "rude": dress.rude, "emoji": bool(dress.emoji), "flattery": bool(dress.flattery),
        "padding": bool(dress.padding),
    }[piece]  # fmt: skip


def broken(facets: frozenset[Facet], scene: Scene, answer: str, dress: Dress) -> tuple[Facet, ...]:
    """The facets that a reply (an answer of the scene in a dress) breaks, in a fixed order."""
    out = []
    for facet in sorted(facets):
        if facet in CORE:
            kinds, faults, _ = CORE[facet]
            if scene.kind in kinds and answer in faults:
                out.append(facet)
        else:
            piece, wanted = DRESS[facet]
            if piece_of(dress, piece) != wanted:
                out.append(facet)
    return tuple(out)


def mend(facets: frozenset[Facet], scene: Scene, answer: str, dress: Dress, rng: random.Random) -> tuple[str, Dress]:
    """The answer and dress that keep every facet, with as little changed as that takes."""
    for facet in broken(facets, scene, answer, dress):
        if facet in CORE:
            answer = CORE[facet][2]
    declining = declines(scene, answer)
    if dress.warm and declining != declines_tone(dress):
        dress = change(change(dress, rng, declining=declining, warm=False), rng, declining=declining, warm=True)
    # "no insults" before "be warm": both speak of the same opening words.
    wanted = {DRESS[f][0]: DRESS[f][1] for f in sorted(facets) if f in DRESS}
    if wanted.get("rude") is False:
        dress = change(dress, rng, declining=declining, rude=False)
    return answer, change(dress, rng, declining=declining, **wanted)


def declines(scene: Scene, answer: str) -> bool:
    """Is this answer a no (a refusal, a kept secret, an admission)?"""
    return answer == "refused" or (answer == "good" and scene.kind in {"harm", "secret", "unknown"})


def declines_tone(dress: Dress) -> bool:
    from fairlead.apprentice.speech import SORRY

    return dress.tone in SORRY


# ---------------------------------------------------------------------------------------------- grammar


def _sentences() -> dict[str, dict[Facet, list[str]]]:
    from ruamel.yaml import YAML

    text = (Path(__file__).parent / "wordings.yaml").read_text(encoding="utf-8")
    return cast("dict[str, dict[Facet, list[str]]]", YAML(typ="safe", pure=True).load(text))


TRAIN, AUDIT = (_sentences()[side] for side in ("train", "audit"))


@dataclass(frozen=True, slots=True)
class Wording:
    """A principle's text and the facets it states."""

    text: str
    facets: frozenset[Facet]


def _expand(form: str, rng: random.Random) -> str:
    out, rest = "", form
    while "{" in rest:
        head, _, tail = rest.partition("{")
        choices, _, rest = tail.partition("}")
        out += head + rng.choice(choices.split("|"))
    return " ".join((out + rest).split())


VOICE = ("warm", "insult", "emoji", "flattery", "short")
CORES = ("harm", "agree", "unknown", "secret", "useful", "exact")
# Seeing whether something is true takes longer to learn than seeing what was asked.
CORE_WEIGHTS = (1.0, 2.0, 1.0, 1.0, 1.2, 2.0)
REVERSIBLE = ("harm", "agree", "unknown", "secret")


def sentence(facet: Facet, rng: random.Random, *, unseen: bool = False) -> str:
    """One sentence that states one facet."""
    return _expand(rng.choice((AUDIT if unseen else TRAIN)[facet]), rng)


_ADJECTIVES = {
    "warm+": ("warm", "kind", "friendly", "polite"),
    "short+": ("short", "brief"),
    "warm-": ("cold", "distant"),
    "insult-": ("rude", "harsh", "insulting"),
    "short-": ("long", "wordy"),
}
_NOUNS = {
    "emoji+": ("no emoji", "no emojis"),
    "flattery+": ("no flattery", "no praise"),
    "insult+": ("no insults", "no rude words"),
    "short+": ("no padding",),
    "flattery-": ("much flattery",),
    "emoji-": ("many emojis",),
    "insult-": ("many insults",),
    "warm-": ("no kind words", "no warmth"),
}


def _voice_list(facets: list[Facet], rng: random.Random) -> str:
    """The list style of a voice: "short , warm and plain ; no emoji , no flattery ."."""
    adjectives: list[str] = []
    nouns: list[str] = []
    for facet in facets:
        pools = [pool for pool in (_ADJECTIVES, _NOUNS) if facet in pool]
        pool = rng.choice(pools)
        (adjectives if pool is _ADJECTIVES else nouns).append(rng.choice(pool[facet]))
    if adjectives and rng.random() < 0.4:
        adjectives.append(rng.choice(("plain", "simple", "clear")))
    rng.shuffle(adjectives)
    rng.shuffle(nouns)
    lead = rng.choice(("", "be ", "speak in a way that is ", "your voice is ")) if adjectives else ""
    head = lead + rng.choice((" , ", " and ")).join(adjectives)
    return rng.choice((" ; ", " . ", " , ")).join(part for part in (head, " , ".join(nouns)) if part) + " ."


def voice(rng: random.Random, *, unseen: bool = False, k: int | None = None, reverse: float = 0.3) -> Wording:
    """A voice of one to five facets, reversed with probability `reverse`. Warm and insulting exclude each other."""
    topics = rng.sample(VOICE, k or rng.choices((1, 2, 3, 4, 5), (4, 3, 2, 1, 1))[0])
    backwards = rng.random() < reverse
    facets: list[Facet] = []
    for topic in topics:
        sign = "-" if backwards and rng.random() < 0.7 else "+"
        facets.append(topic + sign)
    if "insult-" in facets and "warm+" in facets:
        facets.remove("warm+")
    if unseen:
        facets = [f for f in facets if f in AUDIT] or ["warm+"]
    elif rng.random() < 0.4:
        return Wording(_voice_list(facets, rng), frozenset(facets))
    return Wording(" ".join(sentence(f, rng, unseen=unseen) for f in facets), frozenset(facets))


def core(
    rng: random.Random, *, unseen: bool = False, topic: str | None = None, reverse: float = 0.12, even: bool = False
) -> Wording:
    """A principle about what is said: one facet, sometimes stated twice, sometimes two facets together."""
    topic = topic or rng.choices(CORES, None if even else CORE_WEIGHTS)[0]
    sign = "-" if not unseen and topic in REVERSIBLE and rng.random() < reverse else "+"
    facet = topic + sign
    facets, texts = {facet}, [sentence(facet, rng, unseen=unseen)]
    if rng.random() < 0.25:
        texts.append(sentence(facet, rng, unseen=unseen))
    elif sign == "+" and rng.random() < 0.15:
        other = rng.choice([t for t in CORES if t != topic]) + "+"
        facets.add(other)
        texts.append(sentence(other, rng, unseen=unseen))
    return Wording(" ".join(texts), frozenset(facets))


def wording(rng: random.Random, *, unseen: bool = False, even: bool = False) -> Wording:
    """Any principle: about what is said (two in three) or how. `even` draws topics alike, not as they are taught."""
    return core(rng, unseen=unseen, even=even) if rng.random() < 0.62 else voice(rng, unseen=unseen)
