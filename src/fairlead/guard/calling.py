"""A tool call, once it is whole: whether it may be one at all, and its arguments and id as they may leave."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

from fairlead.guard.alternative import Alternative
from fairlead.guard.arguments import spelled
from fairlead.guard.holding import Held
from fairlead.guard.wire import ids

if TYPE_CHECKING:
    from fairlead.guard.release import Release

UNDECLARED = "call of a tool that was not declared"
NAME = re.compile(r"[A-Za-z0-9_.:/@+-]{1,256}")
"""What may stand as a name or an id, which nobody reads."""


def called(release: Release, choice: Alternative, text: Held) -> str | None:
    """The arguments of a call, spelled anew, as `text` holds them from now on; None where it is withheld, and
    counted."""
    arguments = spelled("".join(piece for piece, _ in text.pieces))
    if arguments is None or (why := _no_call(release, text.name)):
        release.tally.withheld["tool call that is no JSON" if arguments is None else why] += 1
        choice.withheld += text.drop()
        choice.lost_call = True
        return None
    if not NAME.fullmatch(text.id):
        text.id = f"call_{release.ledger.fresh()}" if text.id else ""
    text.id = ids.numbered(text.id, text.name, partial(choice.number, text, release.messages))
    text.pieces.clear()
    text.seen = 0
    if text.kept is not None:
        text.kept.clear()
    if arguments:
        text.add(arguments)
    return arguments


def _no_call(release: Release, name: str) -> str:
    """Why nothing can be called by that name, for the counts; "" where something can."""
    if not NAME.fullmatch(name):
        return "tool call without a name"
    return "" if release.tools is None or name in release.tools else UNDECLARED
