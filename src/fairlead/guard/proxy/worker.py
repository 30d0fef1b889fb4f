"""One worker: the application on its socket, in one loop, and the commands that an operator's port gives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from fairlead.errors import FairleadError
from fairlead.guard.proxy.app import App
from fairlead.guard.proxy.protocol import bounded
from fairlead.guard.proxy.settings import Limits
from fairlead.guard.proxy.setup import Keep, Options, Setup, read_setup
from fairlead.guard.proxy.startup import told
from fairlead.guard.proxy.tracing import find_tracer


class Quiet(uvicorn.Server):
    """uvicorn's server, which leaves signals to us."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: Any, limits: Limits) -> Quiet:
    """A server for an application; it listens on the sockets that `serve` is given."""
    config = uvicorn.Config(
        app, http=bounded(limits), ws="none", lifespan="off", interface="asgi3", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=max(1, round(limits.keep_alive)),
        timeout_graceful_shutdown=max(1, round(limits.drain)), backlog=2048,
    )  # fmt: skip
    return Quiet(config)


class Worker:
    """Reads its setup when it is made; raises what is wrong with it."""

    def __init__(self, options: Options, number: int = 0) -> None:
        self.options, self.number = options, number
        self.keep = Keep()
        setup = read_setup(options, self.keep)
        self.app = App(setup, share=setup.settings.workers, tracer=find_tracer())
        self._next: Setup | None = None
        self.server: Quiet | None = None

    async def run(self, sockets: list[socket.socket]) -> None:
        """Serves until it is told to stop; then lets go what is in flight, for so long as the limits say."""
        self.server = http_server(self.app, self.app.limits)
        try:
            await self.server.serve(sockets=sockets)
        finally:
            for upstream in (*self.keep.upstreams.values(), self.keep.local):
                if upstream is not None:
                    await upstream.close()

    def stop(self) -> None:
        """Takes nothing new and ends what there is."""
        self.app.draining = True
        if self.server is not None:
            self.server.should_exit = True

    async def command(self, name: str) -> dict[str, Any]:
        """metrics, status, heads, and a reload in two steps: prepare, then commit or drop."""
        match name:
            case "metrics":
                self.app.metrics.gauges["in_flight"] = float(self.app.in_flight)
                return self.app.metrics.snapshot()
            case "status":
                up = self.server is not None and self.server.started and not self.app.draining
                full = self.app.in_flight >= self.app.limits.in_flight
                return {**self._known(), "ready": up and not full, "in_flight": self.app.in_flight}
            case "heads":
                return {"heads": []}
            case "prepare":
                try:
                    # read in a thread: files, and perhaps a classifier's weights
                    self._next = await asyncio.to_thread(read_setup, self.options, self.keep, self.app.setup)
                except FairleadError as error:
                    self.app.metrics.counts["reloads", "refused"] += 1
                    return {"error": str(error)}
                return self._known()
            case "commit":
                if self._next is not None:
                    self.app.setup, self._next = self._next, None
                    self.app.metrics.counts["reloads", "done"] += 1
                return {**self._known(), "told": told(self.app.setup)}
            case "drop":
                self._next = None
                return self._known()
            case _:
                return {"error": f"unknown command {name!r}"}

    def _known(self) -> dict[str, Any]:
        books = sorted({account.book.sha256 for account in self.app.setup.all()})
        return {"worker": self.number, "pid": os.getpid(), "constitutions": books}
