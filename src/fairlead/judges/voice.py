"""Does a reply sound like a team's own texts? A judge of simple features, with its bound set on texts held out.

Features: words in a sentence, letters in a word, exclamation marks and questions per sentence, emoji, contractions, and
how often reader ("you") and writer ("we") are addressed, per hundred words. It hears the surface of a style alone: a
reply may keep all of them and still be dull, or say what the brand would never say.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fairlead.exchange import Exchange
from fairlead.judges.rules import Rule, find_emoji, plain, rule

KEPT = 0.9  # share of the team's own texts, each held out in turn, that the bound lets pass
FARTHEST = 4.0  # standard deviations at which one feature counts as far as it can
SHORTEST = 5  # words; less has no style

# What each feature is called, and the least spread it is given: texts that never use an emoji have no spread at all.
FEATURES: Mapping[str, tuple[str, float]] = {
    "sentence": ("words in a sentence", 2.0),
    "letters": ("letters in a word", 0.25),
    "exclamations": ("exclamation marks in a sentence", 0.1),
    "questions": ("questions in a sentence", 0.1),
    "emoji": ("emoji in 100 words", 1.0),
    "contractions": ("contractions in 100 words", 1.5),
    "reader": ("times the reader is addressed in 100 words", 2.0),
    "writer": ("times the writer speaks of themselves in 100 words", 2.0),
}


def features(text: str) -> dict[str, float]:
    """The features of a text of at least one word; see FEATURES for their units."""
    straight = plain(text)
    words = re.findall(r"[^\W_](?:[\w'-]*[^\W_])?", straight)
    ends = max(1, len(re.findall(r"[.!?…]+(?=\s|$|[\"')])", straight)))
    small = [word.casefold() for word in words]
    per = 100.0 / max(1, len(words))
    return {
        "sentence": len(words) / ends,
        "letters": sum(len(word) for word in words) / max(1, len(words)),
        "exclamations": straight.count("!") / ends,
        "questions": straight.count("?") / ends,
        "emoji": len(find_emoji(text)) * per,
        "contractions": sum(bool(re.search(r"[a-z]'(?:s|t|re|ve|ll|d|m)$", word)) for word in small) * per,
        "reader": sum(word.split("'")[0] in ("you", "your", "yours", "yourself") for word in small) * per,
        "writer": sum(word.split("'")[0] in ("we", "us", "our", "ours", "i", "me", "my") for word in small) * per,
    }


@dataclass(frozen=True, slots=True)
class Style:
    """Mean and spread of each feature over some texts, and how far from them their own kind lies."""

    mean: Mapping[str, float]
    spread: Mapping[str, float]
    bound: float = math.inf

    def apart(self, found: Mapping[str, float]) -> dict[str, float]:
        """Standard deviations of some features from the mean, signed, at most `FARTHEST` either way."""
        return {
            name: max(-FARTHEST, min(FARTHEST, (found[name] - self.mean[name]) / self.spread[name]))
            for name in FEATURES
        }

    def distance(self, found: Mapping[str, float]) -> float:
        """Root mean square over the features, in standard deviations."""
        return math.sqrt(sum(z * z for z in self.apart(found).values()) / len(FEATURES))


def style_of(texts: Sequence[str]) -> Style:
    """The style of some texts, with the distance within which nine in ten of them lie, each held out in its turn.

    The bound is the conformal quantile, the ceil(0.9 (n + 1))-th smallest of n distances (Vovk et al. 2005), or the
    largest where n is below 9; each distance is that of a text from all the others.
    """
    if len(texts) < 3:
        raise ValueError(f"{len(texts)} texts have no style to speak of: give at least 3")
    rows = [features(text) for text in texts]
    own = sorted(_fitted([*rows[:i], *rows[i + 1 :]]).distance(row) for i, row in enumerate(rows))
    whole = _fitted(rows)
    at = min(len(own), math.ceil(KEPT * (len(own) + 1)))
    return Style(whole.mean, whole.spread, own[at - 1])


def _fitted(rows: Sequence[Mapping[str, float]]) -> Style:
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in FEATURES}
    spread = {
        name: max(FEATURES[name][1], math.sqrt(sum((row[name] - mean[name]) ** 2 for row in rows) / (len(rows) - 1)))
        for name in FEATURES
    }
    return Style(mean, spread)


def voice_of(texts: Sequence[str]) -> Rule:
    """1 = the reply lies within the bound of the style of these texts; 0 = beyond, with the feature most apart."""
    style = style_of(texts)

    def score(item: Exchange) -> tuple[float | None, str]:
        words = len(item.reply_text.split())
        if words < SHORTEST:
            return None, f"{words} words are too few to have a style"
        found = features(item.reply_text)
        return (1.0, "") if style.distance(found) <= style.bound else (0.0, off(style, found))

    code = hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()
    return rule("rule:voice", score, text="sounds like the samples", code=code)


def off(style: Style, found: Mapping[str, float]) -> str:
    """The feature that is farthest from the style, in words."""
    apart = style.apart(found)
    name = max(FEATURES, key=lambda feature: abs(apart[feature]))
    return f"{found[name]:.1f} {FEATURES[name][0]}, the samples have {style.mean[name]:.1f}"
