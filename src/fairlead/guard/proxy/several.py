"""Several workers, each a process of its own that listens on the same port (SO_REUSEPORT: the kernel spreads them).

The parent reads the files and keeps what was committed last. Workers are made of that, at the start, at a reload and
when one that died is started anew, so that all of them go by the same whatever the files say in between. It keeps the
admin port too, and asks the workers over a pair of sockets: a line of JSON each way, under a number.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import pickle
import signal
import socket
import stat
import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from fairlead.errors import FairleadError, InputError, MissingResource
from fairlead.guard.proxy.admin import Admin
from fairlead.guard.proxy.serve import BACKLOG, Place, Say, bind, reload, run, say_where, signals
from fairlead.guard.proxy.setup import Inputs, Options, read_inputs

ANSWERS = 10.0  # seconds a worker has to answer a command
READY = 120.0  # seconds a worker has to start, or to prepare a reload
AGAIN, RARELY = 1.0, 60.0  # seconds before one that died is started anew; twice as long each time, at most this
LINE = 1 << 26  # bytes of one answer
STARTING = "it is being started"


def several(options: Options, place: Place, say: Say) -> int:
    """Forks the workers before any loop or thread is there, then watches over them; the exit code."""
    inputs = read_inputs(options)
    held = bind(place.host, place.port, share=True)  # keeps the port; it does not listen
    door = None if place.admin is None else bind("127.0.0.1", place.admin, option="--admin-port")
    house = House(options, inputs, place.host, held, door, say)
    try:
        for seat in house.seats:
            house.fork(seat)
    except OSError as problem:
        for child in house.children():
            _kill(child, signal.SIGKILL)
        what = f"cannot start {len(house.seats)} workers: {problem.strerror}"
        raise MissingResource(f"{what}; take fewer (--workers), or let this user have more processes") from None
    return run(house.watch())


@dataclass
class Child:
    """A worker's process. `inputs` are what it was made of, until a reload."""

    pid: int
    socket: socket.socket
    inputs: Inputs
    reader: Any = None
    writer: Any = None
    asked: int = 0
    gone: bool = False  # its end of the sockets is closed
    gate: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ask(self, name: str, inputs: Inputs | None = None) -> dict[str, Any] | None:
        """The answer to a command, or None where the worker gives none in time."""
        async with self.gate:
            self.asked += 1
            line: dict[str, Any] = {"n": self.asked, "ask": name}
            if inputs is not None:
                line["inputs"] = base64.b64encode(pickle.dumps(inputs)).decode()
            try:
                self.writer.write(json.dumps(line).encode() + b"\n")
                await self.writer.drain()
            except (OSError, RuntimeError):  # RuntimeError: the loop has seen that the other end is closed
                self.gone = True
                return None
            return await self.heard(self.asked, READY if name == "prepare" else ANSWERS)

    async def heard(self, number: int, seconds: float) -> dict[str, Any] | None:
        """The answer with this number. An earlier one, that came too late, is passed over."""
        try:
            async with asyncio.timeout(seconds):
                while line := await self.reader.readline():
                    answer: dict[str, Any] = json.loads(line)
                    if answer.pop("n") == number:
                        return answer
            self.gone = True
        except TimeoutError:  # an OSError, and no sign of an end
            pass
        except (OSError, RuntimeError, ValueError):  # ValueError: longer than any answer
            self.gone = True
        return None


@dataclass
class Seat:
    """A worker's place. `child` is None between its death and the next start; `up` once it has said hello."""

    number: int
    child: Child | None = None
    up: bool = False
    since: float = 0.0
    failed: int = 0  # in a row
    due: float = 0.0  # the next start, by the steady clock
    why: str = STARTING
    greeting: asyncio.Task[Any] | None = None


class House:
    """The workers and what was committed last (`inputs`)."""

    def __init__(
        self, options: Options, inputs: Inputs, host: str, held: socket.socket, door: socket.socket | None, say: Say
    ) -> None:
        self.options, self.inputs, self.host, self.held, self.door, self.say = options, inputs, host, held, door, say
        self.port: int = held.getsockname()[1]
        self.seats = [Seat(number) for number in range(inputs.settings.workers)]
        self._next: Inputs | None = None

    # ------------------------------------------------------------------------------------ starting and ending

    def fork(self, seat: Seat) -> None:
        """Starts a worker of what was committed. Raises OSError where the machine has no process, or no file, left."""
        ours, theirs = socket.socketpair()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if not pid:
            _work(self, seat.number, theirs)
        theirs.close()
        seat.child, seat.up, seat.why = Child(pid, ours, self.inputs), False, STARTING

    async def greet(self, seat: Seat) -> dict[str, Any] | None:
        """Waits until a worker that was started says hello: its words, or None, and then the seat knows why."""
        child = seat.child
        assert child is not None
        child.reader, child.writer = await asyncio.open_connection(sock=child.socket, limit=LINE)
        hello = await child.heard(0, READY)
        if hello is None or "failed" in hello:
            seat.why = hello["failed"] if hello else "it ended, or said nothing in time"
            _kill(child, signal.SIGKILL)
            return hello
        if child.inputs is not self.inputs:  # something was committed while it started
            _kill(child, signal.SIGKILL)
            return None
        seat.up, seat.since = True, time.monotonic()
        return hello

    async def watch(self) -> int:
        from fairlead.guard.proxy.settings import Limits
        from fairlead.guard.proxy.worker import http_server

        hellos = await asyncio.gather(*(self.greet(seat) for seat in self.seats))
        for hello in hellos:
            if hello is None or "failed" in hello:
                for child in self.children():
                    _kill(child, signal.SIGTERM)
                problem = "a worker did not start" if hello is None else hello["failed"]
                raise InputError(problem) if hello and hello["code"] == 2 else MissingResource(problem)
        first = hellos[0]
        assert first is not None
        self._commit(replace(self.inputs, classifier=first["classifier"]))
        for line in first["told"]:
            self.say(line)
        say_where(self.held, self.door, f"{first['upstream']}, {len(self.seats)} workers", self.say)
        admin = Admin(self.ask, len(self.seats))
        back = None if self.door is None else http_server(admin, Limits())
        ending = asyncio.Event()
        stopped = signals(ending.set, lambda: reload(admin, self.say))
        beside = None if back is None or self.door is None else asyncio.create_task(back.serve(sockets=[self.door]))
        while not ending.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), 0.2)
            for seat in self.seats:
                if not ending.is_set():
                    self.look_after(seat)
        await self._end()
        if back is not None and beside is not None:
            back.should_exit = True
            await beside
        return 130 if stopped == [signal.SIGINT] else 0

    def look_after(self, seat: Seat) -> None:
        """Starts anew a worker that died, later each time if it goes on dying."""
        now = time.monotonic()
        if seat.child is None:
            if now >= seat.due:
                try:
                    self.fork(seat)
                except OSError as problem:
                    seat.why = f"no process can be started for it: {problem.strerror}"
                    self._later(seat, now)
                    return
                seat.greeting = asyncio.get_running_loop().create_task(self.greet(seat))
            return
        if seat.greeting is not None and not seat.greeting.done():
            return  # its last words are still to be read
        if not _dead(seat.child.pid):
            return
        seat.child.writer.close()
        if not seat.up and seat.child.inputs is not self.inputs:  # no fault of its own: it was of files that went
            seat.child, seat.failed, seat.due = None, 0, now
            return
        if seat.up and now - seat.since > RARELY:
            seat.failed = 0
        self._later(seat, now)

    def _later(self, seat: Seat, now: float) -> None:
        """When it is started anew: each time that it failed in a row it takes twice as long."""
        seat.failed += 1
        wait = min(RARELY, AGAIN * 2.0 ** (seat.failed - 1))
        if seat.up:
            seat.why = "it died"
            self.say(f"worker {seat.number} died; it is started anew in {wait:g} s")
        else:
            self.say(f"worker {seat.number} does not start: {seat.why}; it is tried again in {wait:g} s")
        seat.child, seat.up, seat.due = None, False, now + wait

    async def _end(self) -> None:
        for child in self.children():
            _kill(child, signal.SIGTERM)
        until = time.monotonic() + self.inputs.settings.limits.drain + 5
        left = self.children()
        while (left := [child for child in left if not _dead(child.pid)]) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        for child in left:
            self.say(f"the worker with pid {child.pid} does not end; it is killed")
            _kill(child, signal.SIGKILL)

    def children(self) -> list[Child]:
        return [seat.child for seat in self.seats if seat.child is not None]

    # ------------------------------------------------------------------------------------------ commands

    async def ask(self, name: str) -> list[dict[str, Any]]:
        """Every worker's answer to a command, as `Admin` wants them."""
        inputs: Inputs | None = None
        if name == "prepare":
            try:
                inputs = self._next = read_inputs(self.options)
            except FairleadError as error:
                await self.ask("refused")
                return [{"error": str(error)}]
        elif name == "commit" and self._next is not None:
            self._commit(self._next)  # first: one that dies on the way is started by it
        elif name == "drop":
            self._next = None
        found = await asyncio.gather(*(self._asked(seat, name, inputs) for seat in self.seats))
        answers = [answer for answer in found if answer is not None]
        if inputs is not None:
            seen = {answer["classifier"] for answer in answers if "classifier" in answer}
            if len(seen) > 1:
                return [{"error": f"{inputs.settings.checks.model}: changed while it was read; reload again"}]
            self._next = replace(inputs, classifier=next(iter(seen), ""))
        return answers

    async def _asked(self, seat: Seat, name: str, inputs: Inputs | None) -> dict[str, Any] | None:
        if seat.child is not None and seat.up:
            answer = await seat.child.ask(name, inputs)
            if answer is not None or not seat.child.gone:
                return answer
        return {"worker": seat.number, "ready": False, "down": seat.why if not seat.up else "it died"}

    def _commit(self, inputs: Inputs) -> None:
        self.inputs, self._next = inputs, None
        for seat in self.seats:
            if seat.up and seat.child is not None:
                seat.child.inputs = inputs
            seat.due = 0.0  # what kept a worker from starting may be mended


def _kill(child: Child, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, number)


def _dead(pid: int) -> bool:
    try:
        done, _ = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return True
    return done == pid


# ---------------------------------------------------------------------------------------- in the worker's process


def _work(house: House, number: int, line: socket.socket) -> NoReturn:
    """A worker, from its fork to its end. What keeps it from starting is said to the parent. Never returns."""
    code = 70
    try:
        signal.set_wakeup_fd(-1)  # the parent's loop, where there was one: its signals are not ours
        for one in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(one, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which tells us
        _keep_alone(line)
        code = run(_worker(house, number, line))
    except FairleadError as error:
        code = error.exit_code
        _fails(line, str(error), code)
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is told: nobody else would know
        _fails(line, f"{type(error).__name__}: {error}", code)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _keep_alone(line: socket.socket) -> None:
    """Lets go of every socket that came along but the worker's own: what the parent closes has to end, also for who
    holds a connection to its admin port. The numbers stay taken, by nothing, since objects of the parent are still
    about: they could close what is opened under them here."""
    nothing = os.open(os.devnull, os.O_RDWR)
    folder = next(name for name in ("/proc/self/fd", "/dev/fd") if os.path.isdir(name))
    for number in map(int, os.listdir(folder)):
        with contextlib.suppress(OSError):  # the listing's own, which is closed
            if number > 2 and number != line.fileno() and stat.S_ISSOCK(os.fstat(number).st_mode):
                os.dup2(nothing, number, inheritable=False)
    os.close(nothing)


def _fails(line: socket.socket, why: str, code: int) -> None:
    with contextlib.suppress(OSError):
        line.sendall(json.dumps({"n": 0, "failed": why, "code": code}).encode() + b"\n")


async def _worker(house: House, number: int, line: socket.socket) -> int:
    from fairlead.guard.proxy.worker import Worker

    worker = Worker(house.options, number, house.inputs)
    sock = bind(house.host, house.port, share=True)
    sock.listen(BACKLOG)
    reader, writer = await asyncio.open_connection(sock=line, limit=LINE)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)

    async def answer(n: int, name: str, inputs: Inputs | None) -> None:
        writer.write(json.dumps({"n": n, **await worker.command(name, inputs)}).encode() + b"\n")
        await writer.drain()

    async def commands() -> None:
        await answer(0, "hello", None)
        while raw := await reader.readline():
            asked = json.loads(raw)
            given = asked.get("inputs")  # from the parent, over a pair of sockets that no other process has
            await answer(asked["n"], asked["ask"], pickle.loads(base64.b64decode(given)) if given else None)  # noqa: S301
        worker.stop()  # the parent is gone

    listening = asyncio.create_task(commands())
    await worker.run([sock])
    listening.cancel()
    return 0
