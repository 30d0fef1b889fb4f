"""Whether anybody still waits for what a model is asked: looked at between two tokens, by who draws them.

    with while_(lambda: not client_has_left.is_set()):
        model.generate(prompts)        # raises Unwanted at the next token

Models that draw their tokens here call `check` (local weights, the apprentice). A model at a provider does not look:
its answer is paid for once it was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ASKED: ContextVar[Callable[[], bool] | None] = ContextVar("fairlead_wanted", default=None)


class Unwanted(Exception):
    """Nobody waits for this reply any more: it was given up between two tokens."""


@contextmanager
def while_(wanted: Callable[[], bool]) -> Iterator[None]:
    """Inside, and in this thread, `check` raises once `wanted` says no."""
    before = _ASKED.set(wanted)
    try:
        yield
    finally:
        _ASKED.reset(before)


def check() -> None:
    wanted = _ASKED.get()
    if wanted is not None and not wanted():
        raise Unwanted
