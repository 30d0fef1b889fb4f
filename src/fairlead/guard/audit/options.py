"""How a log is kept, how it is, and the error of one that takes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fairlead.errors import InputError, MissingResource


class AuditClosed(MissingResource):
    """The log takes no record: nothing may be released that would need one."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a log is kept. Degenerate values raise InputError.

    strict         commit at once; releases wait for `settled`
    window_s       seconds that records gather before a commit: the stated loss window
    batch          records in one commit at most
    queue          records that may wait while the disk does not take them
    queue_bytes    the same in bytes
    on_failure     stop: no new request once writing has failed for `give_up_s` (strict: at once); count: go on, and
                   count what was lost when the queue is full
    give_up_s      seconds
    heads          file for the heads; "" for none
    heads_url      where they are posted to; "" for nowhere
    heads_every_s  seconds between two heads of a chain at least: a cut of the tail within it may go unseen
    keep_s         seconds that texts are kept; 0 keeps none
    queue_s        seconds that an escalated exchange is kept for people to read, also where other texts are not
    """

    strict: bool = False
    window_s: float = 0.05
    batch: int = 512
    queue: int = 20_000
    queue_bytes: int = 64 << 20
    on_failure: Literal["stop", "count"] = "stop"
    give_up_s: float = 5.0
    heads: str = ""
    heads_url: str = ""
    heads_every_s: float = 1.0
    keep_s: float = 0.0
    queue_s: float = 30 * 86_400.0

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 4096:
            raise InputError(f"audit: batch is {self.batch}: between 1 and 4096 records go into one commit")
        if self.queue < self.batch or self.queue_bytes < 1 << 16:
            raise InputError("audit: the queue must hold one batch at least, and 64 KiB")
        for name in ("window_s", "give_up_s", "heads_every_s", "keep_s", "queue_s"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise InputError(f"audit: {name} is {getattr(self, name)}: give seconds, 0 or more")
        if self.heads_url and not self.heads_url.startswith(("http://", "https://")):
            raise InputError(f"audit: heads_url is {self.heads_url!r}: give an http or https address")


@dataclass(frozen=True, slots=True)
class Health:
    """How the log is: for /readyz and the metrics. `why` names the last failure; `failing_s` is 0 while all is well."""

    accepting: bool
    waiting: int
    written: int
    lost: int
    failures: int
    failing_s: float
    why: str
    heads_failures: int
    heads_why: str
