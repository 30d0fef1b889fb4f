"""The surface of a style, as numbers: what a judge of the voice and the guard's check of it both count.

Features: words in a sentence, letters in a word, exclamation marks and questions per sentence, emoji, contractions, and
how often reader ("you") and writer ("we") are addressed, per hundred words. It hears the surface of a style alone: a
text may keep all of them and still be dull, or say what the brand would never say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


def style_of(texts: Sequence[str], kept: float = KEPT) -> Style:
    """The style of some texts, with the distance within which that share of them lies (nine in ten), each held out in
    its turn.

    The bound is the conformal quantile, the ceil(0.9 (n + 1))-th smallest of n distances (Vovk et al. 2005), or the
    largest where n is below 9; each distance is that of a text from all the others.
    """
    if len(texts) < 3:
        raise ValueError(f"{len(texts)} texts have no style to speak of: give at least 3")
    rows = [features(text) for text in texts]
    own = sorted(_fitted([*rows[:i], *rows[i + 1 :]]).distance(row) for i, row in enumerate(rows))
    whole = _fitted(rows)
    at = min(len(own), math.ceil(kept * (len(own) + 1)))
    return Style(whole.mean, whole.spread, own[at - 1])


def _fitted(rows: Sequence[Mapping[str, float]]) -> Style:
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in FEATURES}
    spread = {
        name: max(FEATURES[name][1], math.sqrt(sum((row[name] - mean[name]) ** 2 for row in rows) / (len(rows) - 1)))
        for name in FEATURES
    }
    return Style(mean, spread)


def off(style: Style, found: Mapping[str, float]) -> str:
    """The feature that is farthest from the style, in words."""
    apart = style.apart(found)
    name = max(FEATURES, key=lambda feature: abs(apart[feature]))
    return f"{found[name]:.1f} {FEATURES[name][0]}, the samples have {style.mean[name]:.1f}"


def plain(text: str) -> str:
    """Straight apostrophes and single spaces, line breaks kept: what the patterns are written for."""
    straight = text.replace("\u2019", "'").replace("\u2018", "'").replace("`", "'").replace("\u02bc", "'")
    return "\n".join(" ".join(line.split()) for line in straight.splitlines()).strip()


# Unicode emoji-data: characters shown as emoji by default (Emoji_Presentation) in the Basic Multilingual Plane.
# Python's unicodedata does not carry the property. Planes above are covered by their emoji blocks.
_BMP = (
    "\u231a\u231b\u23e9-\u23ec\u23f0\u23f3\u25fd\u25fe\u2614\u2615\u2648-\u2653\u267f\u2693\u26a1\u26aa\u26ab"
    "\u26bd\u26be\u26c4\u26c5\u26ce\u26d4\u26ea\u26f2\u26f3\u26f5\u26fa\u26fd\u2705\u270a\u270b\u2728\u274c\u274e"
    "\u2753-\u2755\u2757\u2795-\u2797\u27b0\u27bf\u2b1b\u2b1c\u2b50\u2b55"
)
_ASTRAL = (
    "\U0001f004\U0001f0cf\U0001f18e\U0001f191-\U0001f19a\U0001f1e6-\U0001f1ff\U0001f201\U0001f21a\U0001f22f"
    "\U0001f232-\U0001f236\U0001f238-\U0001f23a\U0001f250\U0001f251\U0001f300-\U0001f64f\U0001f680-\U0001f6ff"
    "\U0001f7e0-\U0001f7eb\U0001f7f0\U0001f90c-\U0001f9ff\U0001fa70-\U0001faff"
)
_HEARTS_AND_FACES = "\u2639\u263a\u2665\u2764"  # text by default, yet nobody types them as text
_EMOJI = re.compile(f"[{_BMP}{_ASTRAL}{_HEARTS_AND_FACES}]|[\u00a9\u00ae\u203c-\u3299]\ufe0f|[0-9#*]\ufe0f?\u20e3")
_EMOTICON = re.compile(r"(?<![^\s(])(?:[:;=][-^']?[)(DPp]|<3|\^_\^|[xX]D)(?=$|[\s.,!?)])")


def find_emoji(text: str) -> list[str]:
    """The emoji and simple emoticons in a text, in order. Signs such as ©, ™ or → count only when dressed as emoji."""
    spans = [(m.start(), m.group(0)) for pattern in (_EMOJI, _EMOTICON) for m in pattern.finditer(text)]
    return [found for _, found in sorted(spans)]
