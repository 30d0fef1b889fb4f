"""The background event loop that all remote models of a process share, and running many calls on it."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the background loop and wait for it; an interrupt cancels it first."""
    global _loop
    with _loop_lock:
        if _loop is None or _loop.is_closed():
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="fairlead-remote", daemon=True).start()
    future = asyncio.run_coroutine_threadsafe(work, _loop)
    try:
        return future.result()
    except KeyboardInterrupt:
        future.cancel()
        raise


async def together(jobs: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all; on the first error cancel the rest, wait for them to end, and raise it."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def close_with(owner: object, client: Any) -> None:
    """Close an SDK's async client on the background loop once `owner` is gone.

    A client that is collected while still open closes its sockets twice, the second time after their descriptors belong
    to somebody else's connection, which then never hears its answer. The finaliser holds the client until it is closed.
    """
    weakref.finalize(owner, _close_later, client).atexit = False


def _close_later(client: Any) -> None:
    if _loop is not None and not _loop.is_closed():
        asyncio.run_coroutine_threadsafe(client.close(), _loop)
