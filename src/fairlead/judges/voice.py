"""Does a reply sound like a team's own texts? A judge of simple features (`constitution/style.py`), its
bound set on texts held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fairlead.constitution.style import SHORTEST, features, off, style_of
from fairlead.exchange import Exchange
from fairlead.judges.rules import Rule, rule


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
