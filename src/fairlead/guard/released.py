"""What comes out of a release: events of the wire, and three things that only a guard says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from fairlead.guard.wire.events import Event, Reason, Told


@dataclass(frozen=True, slots=True)
class Noted:
    """What was done about an alternative that ends well-formed: stands right before its `Finish`, where it is not
    `allow`. One that is answered in the words of a principle finishes as `content_filter`."""

    choice: int
    told: Told


@dataclass(frozen=True, slots=True)
class Stop:
    """Nothing more of an alternative that is already on its way: its format's ending, and why. No `Finish` follows."""

    choice: int
    reason: Reason
    told: Told


@dataclass(frozen=True, slots=True)
class Broken:
    """A check failed closed before anything left: the request ends here, with a status that says whose fault it is
    (503). Nothing follows. `check` is the name of the check, "" where it was none."""

    told: Told
    why: str
    check: str = ""


Out: TypeAlias = Event | Noted | Stop | Broken
