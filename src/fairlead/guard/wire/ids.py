"""Names that leave the guard and were not scanned: made anew, or shown to be one of ours.

An id is text too: some servers let the model write the ids of its tool calls, and what a model may choose can be made
to say something, even through a digest (who knows that it is one of a thousand ids tries them all). So the ids of calls
are drawn by chance, and other digests are keyed. A client gives back the ids that it was given, and needs no other.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from hashlib import blake2b

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,128}")
_NINE = re.compile(r"[A-Za-z0-9]{9}")
_DATED = re.compile(r"[-@]\d[\d-]{3,9}")
_KEY = secrets.token_bytes(16)  # of this process: an id is made once, and not looked up again


def made(prefix: str, given: str, keep: bool = False) -> str:
    """An id for what the provider calls `given`: the same for the same, of 24 hex digits; by chance for "".

    With `keep` a plain id passes as it is, for requests that may refer to it (`previous_response_id`).
    """
    if keep and _PLAIN.fullmatch(given):
        return given
    digest = blake2b(given.encode(), digest_size=12, key=_KEY).hexdigest() if given else secrets.token_hex(12)
    return prefix + digest


def of_call(prefix: str, given: str, tool: str) -> str:
    """The id of a tool call, by chance. Two shapes are kept, since their servers ask for them: nine letters or digits
    (Mistral), and `functions.NAME:INDEX` (Kimi) where NAME is the tool's, which is scanned, and INDEX is `numbered`."""
    if _INDEX.fullmatch(_index(given, tool)):
        return given
    return secrets.token_hex(5)[:9] if _NINE.fullmatch(given) else prefix + secrets.token_hex(12)


def of_place(given: str, tool: str, place: str) -> str:
    """`of_call` by the call's place in its conversation and not by chance, for who has to say the same twice."""
    if _INDEX.fullmatch(_index(given, tool)):
        return given
    digest = blake2b(place.encode(), digest_size=12).hexdigest()
    return digest[:9] if _NINE.fullmatch(given) else f"call_{digest}"


_INDEX = re.compile("[0-9]{1,3}")


def _index(given: str, tool: str) -> str:
    """What stands in the place of INDEX in an id of the shape `functions.NAME:INDEX`, "" in any other."""
    head, _, index = given.rpartition(":")
    return index if head == f"functions.{tool}" else ""


def numbered(given: str, tool: str, number: Callable[[], int]) -> str:
    """An id of the shape `functions.NAME:INDEX` with the number that the call has by our own count, any other as it is:
    a figure that the model may choose is text."""
    return f"functions.{tool}:{number()}" if _index(given, tool) else given


def model(asked: str, given: str) -> str:
    """The model that answered: the name that was asked for, with a date behind it where the provider adds one."""
    return given if given.startswith(asked) and _DATED.fullmatch(given, len(asked)) else asked
