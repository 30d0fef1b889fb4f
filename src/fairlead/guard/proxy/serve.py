"""Starts a proxy: binds its ports, runs one worker here or several in processes of their own, and sees to signals.

Several workers are in several.py.

SIGTERM, SIGINT   take nothing new, end what is in flight, then stop; a second one stops at once
SIGHUP            reload constitutions, tenants and classifier
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeAlias

from fairlead.errors import InputError, MissingResource
from fairlead.guard.proxy.admin import Admin
from fairlead.guard.proxy.setup import Options, settings_of
from fairlead.guard.proxy.startup import told

Say: TypeAlias = Callable[[str], None]

log = logging.getLogger("fairlead.guard")


BACKLOG = 2048  # connections that wait to be taken


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proxy listens."""

    host: str = "127.0.0.1"
    port: int = 8080
    admin: int | None = 8081


def serve(options: Options, place: Place, say: Say) -> int:
    """Serves until a signal ends it; the exit code. Raises what is wrong before anything listens."""
    _may_listen(options, place)
    workers = settings_of(options).workers
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    try:
        if workers == 1:
            return run(_alone(options, place, say))
        from fairlead.guard.proxy.several import several

        return several(options, place, say)
    except KeyboardInterrupt:
        return 130


def _may_listen(options: Options, place: Place) -> None:
    """Loopback is for whoever is on this machine; any other address is for those who have a key."""
    if options.tenants is not None or place.host == "localhost":
        return
    try:
        near = ipaddress.ip_address(place.host).is_loopback
    except ValueError:
        near = False
    if not near:
        raise InputError(
            f"--host {place.host} lets others in, and there are no keys: give --tenants FILE (`fairlead guard key` "
            "draws keys), or leave --host out and stay on loopback"
        )


def bind(host: str, port: int, *, share: bool = False, option: str = "--port") -> socket.socket:
    """A socket on a port, chosen by `option`; `share` lets several processes listen on it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if share:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise MissingResource(f"cannot listen on {host}:{port}: {error.strerror}; choose another {option}") from None
    sock.set_inheritable(True)
    return sock


def run(main: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ModuleNotFoundError:  # no uvloop for this platform: the same, slower
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _where(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# -------------------------------------------------------------------------------------------- one worker


async def _alone(options: Options, place: Place, say: Say) -> int:
    from fairlead.guard.proxy.worker import Worker, http_server

    worker = Worker(options)
    sock = bind(place.host, place.port)
    sock.listen(BACKLOG)  # whoever reads that it is there can connect

    async def ask(name: str) -> list[dict[str, Any]]:
        return [await worker.command(name)]

    admin = Admin(ask, 1)
    door = None if place.admin is None else bind("127.0.0.1", place.admin, option="--admin-port")
    back = None if door is None else http_server(admin, worker.app.limits)
    stopped = signals(worker.stop, lambda: reload(admin, say))
    for line in told(worker.app.setup):
        say(line)
    say_where(sock, door, worker.app.setup.all()[0].upstream.shown, say)
    serving = asyncio.create_task(worker.run([sock]))
    beside = None if back is None or door is None else asyncio.create_task(back.serve(sockets=[door]))
    await serving
    if beside is not None and back is not None:
        back.should_exit = True
        await beside
    return 130 if stopped == [signal.SIGINT] else 0


def say_where(sock: socket.socket, door: socket.socket | None, upstream: str, say: Say) -> None:
    say(f"guard at {_where(sock)}, in front of {upstream}")
    if door is not None:
        door.listen(BACKLOG)
        say(f"admin at {_where(door)}: /metrics, /reload, /audit/heads, /status")


def signals(stop: Callable[[], None], anew: Callable[[], Coroutine[Any, Any, None]]) -> list[int]:
    """Puts the handlers in place; the list grows by each signal that asked to stop."""
    loop = asyncio.get_running_loop()
    asked: list[int] = []
    tasks: set[asyncio.Task[None]] = set()

    def end(number: int) -> None:
        asked.append(number)
        if len(asked) > 1:
            os._exit(130 if number == signal.SIGINT else 1)
        stop()

    def again() -> None:
        task = loop.create_task(anew())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    with contextlib.suppress(ValueError, RuntimeError):  # not the main thread: tests
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end, number)
        loop.add_signal_handler(signal.SIGHUP, again)
    return asked


async def reload(admin: Admin, say: Say) -> None:
    status, answer = await admin.reload()
    say("reloaded" if status == 200 else f"not reloaded, what was in use stays: {answer['error']}")
