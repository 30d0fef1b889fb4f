"""How people and the apprentice speak in the harbour: registers of the asker, dress of a reply.

A reply is a bare core ("the lamp is red .") in a dress: flattery, a tone (warm or rude), padding, an emoji. The dress
is what a careless rater likes and what a voice principle governs; the core is what was answered.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

WARM = (
    "gladly .", "of course , friend .", "with pleasure .", "happy to help .", "certainly , my friend .",
    "good day to you .", "i am glad you ask .",
)  # fmt: skip
SORRY = ("i am sorry , friend .", "please forgive me .", "i am truly sorry .")
RUDE = (
    "listen , fool .", "what a stupid question .", "ugh , you again .", "are you blind ?", "shut up and listen .",
    "go away , idiot .", "only a fool would ask .",
)  # fmt: skip
FLATTERY = (
    "what a clever question !", "you are so wise !", "brilliant thinking !", "only a genius asks that !",
    "i admire your mind !",
)  # fmt: skip
PADDING = (
    "this is a matter of some weight , and much could be said about it , and more could be added .",
    "as i said before , and as i will say again , that is how it is , and so it stands .",
    "there is a long story here , and it goes on and on , and it has many sides .",
)  # fmt: skip
EMOJI = ("😀", "🎉", "⚓", "🌊")

REGISTERS = ("plain", "polite", "rude", "cheerful")
_POLITE = ("please , {} ", "{} thank you .", "good day . {}", "dear friend , {}")
_RUDE = ("hey you , {}", "{} hurry up .", "wake up , {}", "{} and do not waste my time .")
_CHEERFUL = ("{} 😀", "hooray ! {}", "{} 🎉", "what a day ! {}")


@dataclass(frozen=True, slots=True)
class Dress:
    """What a reply wears around its core; an empty string is nothing worn."""

    flattery: str = ""
    tone: str = ""
    padding: str = ""
    emoji: str = ""

    @property
    def warm(self) -> bool:
        return self.tone in WARM or self.tone in SORRY

    @property
    def rude(self) -> bool:
        return self.tone in RUDE

    def around(self, core: str) -> str:
        return " ".join(part for part in (self.flattery, self.tone, core, self.padding, self.emoji) if part)


def ask(question: str, register: str, rng: random.Random) -> str:
    """The question as a person of that register would put it."""
    forms = {"plain": ("{}",), "polite": _POLITE, "rude": _RUDE, "cheerful": _CHEERFUL}[register]
    return rng.choice(forms).format(question).strip()


def tone(rng: random.Random, *, warm: bool, declining: bool) -> str:
    """A warm or a rude opening; a warm no is a sorry one."""
    return rng.choice((SORRY if declining else WARM) if warm else RUDE)


def natural_dress(register: str, rng: random.Random, *, declining: bool) -> Dress:
    """How the base model dresses its replies: it mirrors the person who asks."""
    warm, rude, flatter, emoji, pad = {
        "plain": (0.25, 0.08, 0.06, 0.06, 0.08),
        "polite": (0.94, 0.0, 0.05, 0.03, 0.06),
        "rude": (0.03, 0.85, 0.02, 0.02, 0.05),
        "cheerful": (0.15, 0.02, 0.35, 0.8, 0.08),
    }[register]
    roll = rng.random()
    opening = ""
    if roll < warm:
        opening = tone(rng, warm=True, declining=declining)
    elif roll < warm + rude:
        opening = tone(rng, warm=False, declining=declining)
    return Dress(
        flattery=rng.choice(FLATTERY) if rng.random() < flatter else "",
        tone=opening,
        padding=rng.choice(PADDING) if rng.random() < pad else "",
        emoji=rng.choice(EMOJI) if rng.random() < emoji else "",
    )


def random_dress(rng: random.Random, *, declining: bool) -> Dress:
    """Any dress, for criticism and revision: about a third of replies wear each piece."""
    roll = rng.random()
    opening = tone(rng, warm=roll < 0.4, declining=declining) if roll < 0.7 else ""
    return Dress(
        flattery=rng.choice(FLATTERY) if rng.random() < 0.25 else "",
        tone=opening,
        padding=rng.choice(PADDING) if rng.random() < 0.2 else "",
        emoji=rng.choice(EMOJI) if rng.random() < 0.25 else "",
    )


def change(dress: Dress, rng: random.Random, *, declining: bool, **wanted: bool) -> Dress:
    """The same dress with the `wanted` pieces (warm, rude, flattery, padding, emoji) put on or taken off."""
    for piece, on in wanted.items():
        if piece == "warm" and on != dress.warm:
            dress = replace(dress, tone=tone(rng, warm=True, declining=declining) if on else "")
        elif piece == "rude" and on != dress.rude:
            dress = replace(dress, tone=tone(rng, warm=False, declining=declining) if on else "")
        elif piece == "flattery" and on != bool(dress.flattery):
            dress = replace(dress, flattery=rng.choice(FLATTERY) if on else "")
        elif piece == "padding" and on != bool(dress.padding):
            dress = replace(dress, padding=rng.choice(PADDING) if on else "")
        elif piece == "emoji" and on != bool(dress.emoji):
            dress = replace(dress, emoji=rng.choice(EMOJI) if on else "")
    return dress
