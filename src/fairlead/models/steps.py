"""Where the steps of a reply end, in characters and in tokens. A step is what stands between two separators."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from fairlead.errors import InputError
from fairlead.models.render import decode_reply


def ends_in_text(text: str, separator: str) -> list[int]:
    """The character after each step of a text. Steps without a visible character are none."""
    ends, at = [], 0
    for piece in text.split(separator):
        if piece.strip():
            ends.append(at + len(piece))
        at += len(piece) + len(separator)
    return ends


def ends_in_tokens(tokenizer: Any, ids: Sequence[int], text: str, separator: str) -> list[int]:
    """The index of the token that completes each step, for the ids of the whole reply.

    The reply is encoded as the model itself would say it, not step by step: a token may complete one step and begin the
    next. Raises InputError where the tokenizer does not give the text back, or two steps end in one token.
    """
    ends: list[int] = []
    for end in ends_in_text(text, separator):
        upto = text[:end]
        # Once the decoded beginning holds the step it goes on holding it, so the first such token is found by halving.
        k = bisect_left(range(1, len(ids) + 1), True, key=lambda k: decode_reply(tokenizer, ids[:k]).startswith(upto))
        if k == len(ids):
            raise InputError(f"the tokenizer does not give the reply's text back, so its steps have no end: {upto!r}")
        if ends and ends[-1] == k:
            raise InputError(f"two steps end in one token: choose another separator than {separator!r}")
        ends.append(k)
    return ends
