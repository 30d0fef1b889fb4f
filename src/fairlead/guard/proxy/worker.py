"""One worker: the application on its socket, in one loop, and the commands that an operator's port gives it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from fairlead.errors import FairleadError
from fairlead.guard.audit import AuditLog, open_log
from fairlead.guard.audit import Options as AuditOptions
from fairlead.guard.plan import required
from fairlead.guard.proxy.app import App
from fairlead.guard.proxy.metrics import with_tally
from fairlead.guard.proxy.protocol import bounded
from fairlead.guard.proxy.settings import Limits
from fairlead.guard.proxy.setup import Inputs, Keep, Options, Setup, read_setup
from fairlead.guard.proxy.startup import told
from fairlead.guard.proxy.tracing import find_tracer


class Quiet(uvicorn.Server):
    """uvicorn's server, which leaves signals to us."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()  # once it listens: who comes meanwhile waits, and is not refused
        gc.freeze()  # what is here from the start stays: nobody goes over it again and again for what has died

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
    """Reads its setup when it is made, or goes by what another has read; raises what is wrong with it."""

    def __init__(self, options: Options, number: int = 0, inputs: Inputs | None = None) -> None:
        self.options, self.number = options, number
        self.keep = Keep()
        setup = read_setup(options, self.keep, inputs=inputs)
        self.log = _open_log(setup)
        self.app = App(setup, log=self.log, tracer=find_tracer())
        self._note_policy()
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
            if self.log is not None:
                await asyncio.to_thread(self.log.close)

    def stop(self) -> None:
        """Takes nothing new and ends what there is."""
        self.app.draining = True
        if self.server is not None:
            self.server.should_exit = True

    async def command(self, name: str, inputs: Inputs | None = None) -> dict[str, Any]:
        """metrics, status, heads, and a reload in two steps: prepare, then commit or drop. `inputs` are what to prepare
        where another has read the files."""
        match name:
            case "metrics":
                self.app.metrics.gauges["in_flight"] = float(self.app.in_flight)
                if self.log is not None:
                    health, counts = self.log.health(), self.app.metrics.counts
                    self.app.metrics.gauges["audit_waiting"] = float(health.waiting)
                    counts["audit_lost",], counts["audit_failures",] = health.lost, health.failures
                    counts["heads_failures",] = health.heads_failures
                return with_tally(self.app.metrics.snapshot(), self.app.tally)
            case "status":
                up = self.server is not None and self.server.started
                busy = self.app.busy() if up else ["starting"]
                return {**self._known(), "ready": not busy, "busy": busy, "in_flight": self.app.in_flight}
            case "heads":
                return {"heads": [] if self.log is None else [self._head()]}
            case "shadow":
                return {"shadow": [[*key, n] for key, n in self.app.tally.shadow.items()]}
            case "prepare":
                try:
                    # read in a thread: files, and perhaps a classifier's weights
                    self._next = await asyncio.to_thread(read_setup, self.options, self.keep, self.app.setup, inputs)
                except FairleadError as error:
                    self.app.metrics.counts["reloads", "refused"] += 1
                    return {"error": str(error)}
                return {**self._known(), "classifier": self._next.all()[0].book.classifier}
            case "refused":
                self.app.metrics.counts["reloads", "refused"] += 1
                return self._known()
            case "hello":
                setup = self.app.setup
                return {
                    **self._known(), "classifier": setup.all()[0].book.classifier, "told": told(setup),
                    "upstream": setup.all()[0].upstream.shown,
                }  # fmt: skip
            case "commit":
                if self._next is not None:
                    self.app.setup, self._next = self._next, None
                    self.app.metrics.counts["reloads", "done"] += 1
                    self._note_policy()
                return {**self._known(), "told": told(self.app.setup)}
            case "drop":
                self._next = None
                return self._known()
            case _:
                return {"error": f"unknown command {name!r}"}

    def _known(self) -> dict[str, Any]:
        books = sorted({account.book.sha256 for account in self.app.setup.all()})
        return {"worker": self.number, "pid": os.getpid(), "constitutions": books}

    def _head(self) -> dict[str, Any]:
        """The end of this worker's chain, as the log knows it now."""
        assert self.log is not None
        health = self.log.health()
        return {
            "log": self.log.name, "chain": self.log.chain, "written": health.written, "waiting": health.waiting,
            "lost": health.lost, "why": health.why, "heads_failures": health.heads_failures,
            "heads_why": health.heads_why,
        }  # fmt: skip

    def _note_policy(self) -> None:
        """Which checks have to pass, in the log itself: what `fairlead guard audit verify` holds the rest against."""
        if self.log is not None:
            for book in {id(account.book): account.book for account in self.app.setup.all()}.values():
                self.log.policy(book.sha256, book.classifier, required(book.plan))


def _open_log(setup: Setup) -> AuditLog | None:
    audit = setup.settings.audit
    if audit.file is None:
        return None
    kept = audit.retention_days * 86_400 if audit.store_text else 0.0
    options = AuditOptions(
        strict=audit.strict, window_s=audit.loss, heads=str(audit.file.with_suffix(".heads")),
        heads_url=audit.heads_url or "", keep_s=kept, queue_s=audit.queue_days * 86_400,
    )  # fmt: skip
    return open_log(audit.file, options=options)
