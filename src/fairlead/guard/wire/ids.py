"""Names that leave the guard and were not scanned: made anew, or shown to be one of ours.

An id is text too: some servers let the model write the ids of its tool calls. A client needs only that the same thing
keeps the same id, so that what is written is a digest of what was read.
"""

from __future__ import annotations

import re
import secrets
from hashlib import blake2b

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,128}")
_NINE = re.compile(r"[A-Za-z0-9]{9}")
_DATED = re.compile(r"[-@]\d[\d-]{3,9}")


def made(prefix: str, given: str, keep: bool = False) -> str:
    """An id for what the provider calls `given`: the same for the same, of 24 hex digits; by chance for "".

    With `keep` a plain id passes as it is, for requests that may refer to it (`previous_response_id`).
    """
    if keep and _PLAIN.fullmatch(given):
        return given
    return prefix + (blake2b(given.encode(), digest_size=12).hexdigest() if given else secrets.token_hex(12))


def of_call(prefix: str, given: str, tool: str) -> str:
    """The id of a tool call. Two shapes are kept, since their servers ask for them: nine letters or digits (Mistral),
    made anew as such, and `functions.NAME:INDEX` (Kimi) where NAME is the tool's, which is scanned."""
    head, colon, index = given.rpartition(":")
    if colon and head == f"functions.{tool}" and index.isdecimal() and index.isascii() and len(index) <= 3:
        return given
    new = made(prefix, given)
    return new.removeprefix(prefix)[:9] if _NINE.fullmatch(given) else new


def model(asked: str, given: str) -> str:
    """The model that answered: the name that was asked for, with a date behind it where the provider adds one."""
    return given if given.startswith(asked) and _DATED.fullmatch(given, len(asked)) else asked
