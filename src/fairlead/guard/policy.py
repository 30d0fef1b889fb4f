"""What the guard needs to know of a principle besides its checks."""

from __future__ import annotations

from dataclasses import dataclass

from fairlead.guard.pieces import PLACES

SAY = "I can't help with that."
ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Policy:
    """One principle, as the guard acts on it.

    text      its words: what a revision is asked for
    say       what the user reads instead of a reply
    on_error  what happens when a check of it fails: refuse | allow
    stream    buffer: nothing of the places `at` leaves before an alternative is whole; window: what the checks let go
    at        places of `pieces.py`
    shadow    nothing is done: what would have been done is counted
    """

    text: str = ""
    say: str = SAY
    on_error: str = "refuse"
    stream: str = "buffer"
    at: frozenset[str] = PLACES
    shadow: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("on_error", self.on_error, ("refuse", "allow")),
            ("stream", self.stream, ("buffer", "window")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value}: use {known[0]!r} or {known[1]!r}")
