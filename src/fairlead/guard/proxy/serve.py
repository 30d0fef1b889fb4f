"""Starts a proxy: binds its ports, runs one worker here or several in processes of their own, and sees to signals.

With several workers each listens on the same port by itself (SO_REUSEPORT: the kernel spreads connections), and this
process keeps the admin port, asks the workers over a pair of sockets, and starts anew one that dies.

SIGTERM, SIGINT   take nothing new, end what is in flight, then stop; a second one stops at once
SIGHUP            reload constitutions, tenants and classifier
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fairlead.errors import FairleadError, InputError, MissingResource
from fairlead.guard.proxy.admin import Admin
from fairlead.guard.proxy.setup import Options, settings_of
from fairlead.guard.proxy.startup import told

Say: TypeAlias = Callable[[str], None]

log = logging.getLogger("fairlead.guard")

_ANSWERS = 10.0  # seconds a worker has to answer a command
_READY = 120.0  # seconds a worker has to start
_AGAIN = 1.0  # seconds before a worker that died is started anew


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proxy listens."""

    host: str = "127.0.0.1"
    port: int = 8080
    admin: int | None = 8081


def serve(options: Options, place: Place, say: Say) -> int:
    """Serves until a signal ends it; the exit code. Raises what is wrong before anything listens."""
    _may_listen(options, place)
    settings = settings_of(options)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    try:
        if settings.workers == 1:
            return _run(_alone(options, place, say))
        return _several(options, place, settings.workers, settings.limits.drain, say)
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


def _run(main: Coroutine[Any, Any, int]) -> int:
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

    async def ask(name: str) -> list[dict[str, Any]]:
        return [await worker.command(name)]

    admin = Admin(ask, 1)
    door = None if place.admin is None else bind("127.0.0.1", place.admin, option="--admin-port")
    back = None if door is None else http_server(admin, worker.app.limits)
    stopped = _signals(worker.stop, lambda: _reload(admin, say))
    for line in told(worker.app.setup):
        say(line)
    _say_where(sock, door, worker.app.setup.all()[0].upstream.shown, say)
    serving = asyncio.create_task(worker.run([sock]))
    beside = None if back is None or door is None else asyncio.create_task(back.serve(sockets=[door]))
    await serving
    if beside is not None and back is not None:
        back.should_exit = True
        await beside
    return 130 if stopped == [signal.SIGINT] else 0


def _say_where(sock: socket.socket, door: socket.socket | None, upstream: str, say: Say) -> None:
    say(f"guard at {_where(sock)}, in front of {upstream}")
    if door is not None:
        say(f"admin at {_where(door)}: /metrics, /reload, /audit/heads, /status")


def _signals(stop: Callable[[], None], reload: Callable[[], Coroutine[Any, Any, None]]) -> list[int]:
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
        task = loop.create_task(reload())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    with contextlib.suppress(ValueError, RuntimeError):  # not the main thread: tests
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end, number)
        loop.add_signal_handler(signal.SIGHUP, again)
    return asked


async def _reload(admin: Admin, say: Say) -> None:
    status, answer = await admin.reload()
    say("reloaded" if status == 200 else f"not reloaded, what was in use stays: {answer['error']}")


# ------------------------------------------------------------------------------------------ several workers


@dataclass
class _Child:
    number: int
    pid: int
    socket: socket.socket
    reader: Any = None
    writer: Any = None
    gate: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ask(self, name: str) -> dict[str, Any] | None:
        """The answer to a command, or None where the worker gives none in time."""
        async with self.gate:
            try:
                self.writer.write(name.encode() + b"\n")
                await self.writer.drain()
                async with asyncio.timeout(_READY if name in ("prepare", "hello") else _ANSWERS):
                    line = await self.reader.readline()
            except (OSError, TimeoutError):
                return None
        return json.loads(line) if line else None


def _several(options: Options, place: Place, workers: int, drain: float, say: Say) -> int:
    """Forks the workers before any loop or thread is there, then watches over them."""
    held = bind(place.host, place.port, share=True)  # keeps the port; it does not listen
    port = held.getsockname()[1]
    door = None if place.admin is None else bind("127.0.0.1", place.admin, option="--admin-port")
    keep = [s.fileno() for s in (held, door) if s is not None]
    children = [_fork(options, place.host, port, number, keep) for number in range(workers)]
    return _run(_watch_over(options, place.host, held, door, children, drain, say))


def _fork(options: Options, host: str, port: int, number: int, close: list[int]) -> _Child:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return _Child(number, pid, ours)
    code = 70
    try:
        ours.close()
        for other in close:
            os.close(other)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which tells us
        code = _run(_child(options, host, port, number, theirs))
    except FairleadError as error:
        theirs.sendall(json.dumps({"failed": str(error), "code": error.exit_code}).encode() + b"\n")
        code = error.exit_code
    finally:
        sys.stderr.flush()
        os._exit(code)


async def _child(options: Options, host: str, port: int, number: int, line: socket.socket) -> int:
    from fairlead.guard.proxy.worker import Worker

    worker = Worker(options, number)
    sock = bind(host, port, share=True)
    reader, writer = await asyncio.open_connection(sock=line)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)

    async def commands() -> None:
        while name := (await reader.readline()).decode().strip():
            if name == "hello":
                answer = {"told": told(worker.app.setup), "upstream": worker.app.setup.all()[0].upstream.shown}
            else:
                answer = await worker.command(name)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        worker.stop()  # the parent is gone

    listening = asyncio.create_task(commands())
    await worker.run([sock])
    listening.cancel()
    return 0


async def _watch_over(
    options: Options, host: str, held: socket.socket, door: socket.socket | None, children: list[_Child], drain: float,
    say: Say,
) -> int:  # fmt: skip
    from fairlead.guard.proxy.settings import Limits
    from fairlead.guard.proxy.worker import http_server

    for child in children:
        child.reader, child.writer = await asyncio.open_connection(sock=child.socket)
    hellos = [await child.ask("hello") for child in children]
    for hello in hellos:
        if hello is None or "failed" in hello:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGTERM)
            problem = "a worker did not start" if hello is None else hello["failed"]
            raise InputError(problem) if hello and hello["code"] == 2 else MissingResource(problem)
    assert hellos[0] is not None
    for line in hellos[0]["told"]:
        say(line)
    _say_where(held, door, f"{hellos[0]['upstream']}, {len(children)} workers", say)

    async def ask(name: str) -> list[dict[str, Any]]:
        answers = await asyncio.gather(*(child.ask(name) for child in children))
        return [answer for answer in answers if answer is not None]

    admin = Admin(ask, len(children))
    back = None if door is None else http_server(admin, Limits())
    ending = asyncio.Event()
    stopped = _signals(ending.set, lambda: _reload(admin, say))
    beside = None if back is None or door is None else asyncio.create_task(back.serve(sockets=[door]))
    fds = [s.fileno() for s in (held, door) if s is not None]
    while not ending.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ending.wait(), 0.2)
        for index, child in enumerate(children):
            if not ending.is_set() and _dead(child.pid):
                say(f"worker {child.number} died; it is started anew")
                await asyncio.sleep(_AGAIN)
                fresh = _fork(options, host, held.getsockname()[1], child.number, fds)
                fresh.reader, fresh.writer = await asyncio.open_connection(sock=fresh.socket)
                children[index] = fresh
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGTERM)
    until = time.monotonic() + drain + 5
    while (left := [child for child in children if not _dead(child.pid)]) and time.monotonic() < until:
        await asyncio.sleep(0.05)
    for child in left:
        say(f"worker {child.number} does not end; it is killed")
        os.kill(child.pid, signal.SIGKILL)
    if back is not None and beside is not None:
        back.should_exit = True
        await beside
    return 130 if stopped == [signal.SIGINT] else 0


def _dead(pid: int) -> bool:
    try:
        done, _ = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return True
    return done == pid
