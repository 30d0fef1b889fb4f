"""Which token of a reply spells which of its characters: what log-probs are told of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairlead.models.render import frame

_CUT = "\ufffd"  # how a tokenizer shows a character of which it has the first bytes alone


def spelling(tokenizer: Any, ids: Sequence[int], text: str) -> list[str] | None:
    """One text for each token that stands in `text`, in order, and together they are `text`; None where that cannot be
    told.

    What ends the turn stands for no text and is left out, and so is all behind a stop string; a token that reaches into
    one is told as far as it shows. A character over several tokens belongs to the last of them.
    """
    shape = frame(tokenizer)
    kept = list(ids)
    while kept and kept[-1] in shape.stops:
        kept.pop()
    texts = _texts(tokenizer, kept)
    whole = "".join(texts)
    skip = len(shape.lead) if shape.lead and whole.startswith(shape.lead) else 0
    if whole[skip : skip + len(text)] != text:
        return None
    out: list[str] = []
    begins, ends = -skip, 0
    for one in texts:
        if ends == len(text):
            break
        ends = max(0, min(begins + len(one), len(text)))
        out.append(text[max(0, begins) : ends])
        begins += len(one)
    return out


def _texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds. Each is decoded after the one before: some tokenizers drop a space at the start."""
    out: list[str] = []
    before, told = 0, 0  # what stands before `told` has been told of; decoding begins at `before`
    for end in range(1, len(ids) + 1):
        known = len(tokenizer.decode(list(ids[before:told]), skip_special_tokens=False)) if told > before else 0
        shown = str(tokenizer.decode(list(ids[before:end]), skip_special_tokens=False))
        if shown.endswith(_CUT) and end < len(ids):
            out.append("")
            continue
        out.append(shown[known:])
        before, told = told, end
    return out
