"""Text that hides nothing: what steers a terminal, turns the direction of reading or shows no sign gets a name."""

from __future__ import annotations

import unicodedata

_KEPT = frozenset("\n\t\u200d\ufe0e\ufe0f")  # the last three join and dress emoji; alone they change nothing


def visible(text: str) -> str:
    """Control, bidirectional, invisible and unassigned characters as `⟦U+202E⟧`; everything else as it is.

    The result is plain text, to be escaped like any other. CR LF becomes LF.
    """
    text = text.replace("\r\n", "\n")
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(char if _shown(char) else f"⟦U+{ord(char):04X}⟧" for char in text)


def _shown(char: str) -> bool:
    if char in _KEPT:
        return True
    # Cc control, Cf format (bidi, zero width, tags), Cs lone surrogates, Co private, Cn unassigned, Zl/Zp line breaks
    return unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
