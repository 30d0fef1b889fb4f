"""Judges that run the reply's code: in processes of their own, with limits, without a network. Evidence by truth.

What holds the code (Linux; `code_jail.py` does it, by the kernel's namespaces, without a container tool):

- no network, not even loopback; no view of other processes, so none to signal or to read; no rights, not root's either
- its own files: system libraries and Python's standard library read-only, three devices, an empty /tmp in memory as
  working folder. The outer files are not there, but for /usr (and /bin, /lib), which can be read
- a clean environment, closed file descriptors, and `Limits` on time, memory, files, processes and output. It ends with
  the process that asked, however that ends

What does not: there is no system-call filter, so a hole in the kernel is one here; memory is limited per process (so at
most `processes` times over); caches and timing are shared with the machine. Code from strangers belongs on a machine
that holds nothing of worth. Where the kernel refuses namespaces (many containers do), nothing is run and the verdict is
missing, unless `network="block-in-python"`. That is weaker: limits, and a hook in the interpreter against sockets and
processes, which code that tries gets around; outer files can be read and, where the user may, written.

How the code might fake a pass, and does not: the tests run in another process than the code (`code_inside.py`) and get
plain values from it (numbers, texts, lists, dicts and kin). So leaving early (`sys.exit(0)`, `os._exit(0)`), overriding
`__eq__`, the error of `assert`, built-ins or modules, printing what a harness prints, reading frames, memory or files
for the tests change nothing. What remains possible: to know the tests' arguments when called, and answer those alone
(use tests that the training text does not hold, and many); to answer by other means than asked; to meet a test that is
too weak. With "block-in-python" also: to read tests that lie in a file or in the memory of the process that asks.
"""

from __future__ import annotations

import ast
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Verdict
from fairlead.judges import code_inside
from fairlead.judges.lineage import leaf
from fairlead.judges.rules import Judged

Network: TypeAlias = Literal["cut", "block-in-python"]

NO_TESTS = "the case has no tests to run"
START_S = 60.0  # seconds a sandbox may take to start on a busy machine; none of the code's own time
SOURCE = Path(__file__).resolve().parents[2]  # where the inner half is imported from
START = "from fairlead.judges.code_inside import main; main()"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
}  # the same each time


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run of the code may use.

    seconds       of wall clock, for all the tests of a case or one program; a busy machine eats into it, so let it be
                  well above `cpu_seconds`
    cpu_seconds   whole seconds of CPU time of a process
    memory_mb     MiB of address space of a process
    file_mb       MiB of all files together (they lie in memory)
    processes     processes and threads; with "block-in-python" none but the first
    output_kb     KiB of output that are read
    """

    seconds: float = 20.0
    cpu_seconds: int = 5
    memory_mb: int = 512
    file_mb: int = 16
    processes: int = 16
    output_kb: int = 256

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise InputError(f"limits: {name} is {value}; it must be above 0")


class NoSandbox(Exception):
    """The sandbox did not start; the text says why."""


class BadTests(ValueError):
    """The case's tests cannot judge anything; the text says why."""


def passes_tests(
    *,
    share: bool = False,
    in_place: bool = False,
    limits: Limits = Limits(),
    network: Network = "cut",
    workers: int = 0,
) -> Judged:
    """1 = the reply's code passes all of the case's `meta["tests"]`, 0 = it does not, or does not come to an end.

    A test is a text of Python statements with `assert` in them, or a pair (stdin, stdout): the code as a program, whose
    output must be the same but for space at the ends of lines and of the whole. Statements run in order in one
    namespace, where built-ins and the usual modules (math, re, ...) are the real ones. They get copies of plain values;
    other objects of the code's can be called and asked for attributes, items and length, but not compared: such a test
    does not hold.

    share       `raw` is the share of tests passed, where it is else the score
    in_place    what the code does to a list, dict or set it is given is seen by the test. It can then cheat a test that
                compares with its own argument after the call
    network     "cut", or the weaker "block-in-python" (see the head of this file)
    workers     replies judged side by side; by default as many as there are cores, at most 8

    No tests, tests that cannot be run and a sandbox that does not start are no verdict, never a zero.
    """
    if network not in ("cut", "block-in-python"):
        raise InputError(f"network is {network!r}; it is 'cut' or 'block-in-python'")
    side_by_side = workers or min(8, os.cpu_count() or 1)
    name = "verifier:code"

    def one(item: Exchange) -> Verdict:
        try:
            tests = case_tests(item.meta)
            passed, reason = run_tests(code_of(item.reply_text), tests, limits, network=network, in_place=in_place)
        except (BadTests, NoSandbox) as error:
            return Verdict(None, reason=str(error), judge=name)
        score = float(passed == len(tests))
        return Verdict(score, raw=passed / len(tests) if share else score, reason=reason, judge=name)

    def judge(exchanges: Sequence[Exchange]) -> list[Verdict]:
        with ThreadPoolExecutor(side_by_side) as pool:
            return list(pool.map(one, exchanges))

    made = json.dumps([share, in_place, network, asdict(limits)])
    return Judged(name, judge, leaf("verifier", text="code passes its tests", code=made, exact=True))


_FENCE = re.compile(r"^```[ \t]*(\w*)[^\n]*\n(.*?)(?:^```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)


def code_of(text: str) -> str:
    """The last block fenced as Python (or as nothing) of a reply, else the whole text."""
    blocks = [body for language, body in _FENCE.findall(text) if language.lower() in ("", "python", "py", "python3")]
    return blocks[-1] if blocks else text


Test: TypeAlias = str | tuple[str, str]


def case_tests(meta: Mapping[str, Any]) -> list[Test]:
    """The tests of a case. Raises BadTests where there are none, or where one could not fail."""
    given = meta.get("tests")
    if not given:
        raise BadTests(NO_TESTS)
    if not isinstance(given, str | list | tuple):
        raise BadTests(f"the tests are {type(given).__name__}, neither a text of assertions nor a list")
    tests: list[Test] = []
    named = False
    for number, test in enumerate([given] if isinstance(given, str) else given):
        if isinstance(test, str):
            try:
                tree = ast.parse(test)
            except (SyntaxError, ValueError) as error:
                raise BadTests(f"test {number} is no Python: {error}") from error
            if not any(isinstance(node, ast.Assert) for node in ast.walk(tree)):
                raise BadTests(f"test {number} asserts nothing, so it could not fail")
            loads, _ = code_inside.names_of(test)
            named = named or any(not code_inside.ours(name) for name in loads)
            tests.append(test)
        elif isinstance(test, list | tuple) and len(test) == 2 and all(isinstance(side, str) for side in test):
            tests.append((test[0], test[1]))
        else:
            raise BadTests(f"test {number} is neither a text of assertions nor a pair of texts (stdin, stdout)")
    if not named and all(isinstance(test, str) for test in tests):
        raise BadTests("the tests use no name that the code could define; they would test Python itself")
    return tests


def run_tests(
    code: str, tests: Sequence[Test], limits: Limits, *, network: Network = "cut", in_place: bool = False
) -> tuple[int, str]:
    """How many of the tests pass, and what the first that does not says. Raises NoSandbox, BadTests."""
    asserts = [test for test in tests if isinstance(test, str)]
    passed, reasons = 0, []
    if asserts:
        passed, reason = _checked(code, asserts, limits, network, in_place)
        reasons.append(reason)
    for number, test in enumerate(tests):
        if not isinstance(test, str):
            problem = _printed(code, test, limits, network)
            passed += not problem
            reasons.append(f"test {number}: {problem}" if problem else "")
    return passed, next(filter(None, reasons), "")


def _checked(code: str, tests: Sequence[str], limits: Limits, network: Network, in_place: bool) -> tuple[int, str]:
    """Assertions: one process runs the code, another the tests."""
    with ExitStack() as stack:
        theirs, ours = socket.socketpair()
        told, tell = os.pipe()
        stack.callback(os.close, told)
        try:
            solver = _start(stack, "solve", code, limits, network, keep=[theirs.fileno()])
            # what the code cannot reach may take the time that the wall clock leaves it
            patient = Limits(**{**asdict(limits), "cpu_seconds": int(limits.seconds) + 2})
            checker = _start(
                stack, "check", list(tests), patient, network, keep=[ours.fileno(), tell], in_place=in_place
            )
        finally:
            theirs.close()
            ours.close()
            os.close(tell)
        _ready(solver)
        _ready(checker)
        read, ended = _read({told: 1 << 22}, time.monotonic() + limits.seconds)
    lines = [json.loads(line) for line in read[told].split(b"\n")[:-1]]  # a line that was cut is none
    for line in lines:
        if "missing" in line:
            raise BadTests(line["missing"])
    passed = sum(line["passed"] for line in lines)
    reason = next((line["reason"] for line in lines if line["reason"]), "")
    if len(lines) < len(tests):
        if ended:
            raise NoSandbox("the process that runs the tests ended before they were done; is memory short?")
        reason = reason or f"test {len(lines)}: not done in {limits.seconds:g} seconds"
    return passed, reason


def _printed(code: str, test: tuple[str, str], limits: Limits, network: Network) -> str:
    """What is wrong with what the program prints, or ""."""
    with ExitStack() as stack:
        given = stack.enter_context(tempfile.TemporaryFile())
        given.write(test[0].encode("utf-8", "replace"))
        given.seek(0)
        run = _start(stack, "run", code, limits, network, stdin=given.fileno())
        _ready(run)
        assert run.process.stdout is not None and run.process.stderr is not None
        out, err = run.process.stdout.fileno(), run.process.stderr.fileno()
        most = limits.output_kb * 1024
        read, ended = _read({out: most, err: most}, time.monotonic() + limits.seconds)
        if max(map(len, read.values())) > most:
            return f"prints more than {limits.output_kb} KiB"
        if not ended:
            return f"not done in {limits.seconds:g} seconds"
        ending = run.process.wait()
    if ending:
        last = read[err].decode("utf-8", "replace").strip().rpartition("\n")[2][:300]
        killed = "killed: out of CPU time, or by itself" if ending in (128 + signal.SIGKILL, -signal.SIGKILL) else ""
        return killed or f"ends with code {ending}" + (f": {last}" if last else "")
    printed = read[out].decode("utf-8", "replace")
    return "" if _lines(printed) == _lines(test[1]) else f"prints {printed[:100]!r}, not {test[1][:100]!r}"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


# ---------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True, slots=True)
class Started:
    """A sandbox on its way; `status` is where it tells that it stands."""

    process: subprocess.Popen[bytes]
    status: int


def _start(
    stack: ExitStack,
    role: Literal["run", "solve", "check"],
    body: str | list[str],
    limits: Limits,
    network: Network,
    *,
    keep: Sequence[int] = (),
    stdin: int = subprocess.DEVNULL,
    in_place: bool = False,
) -> Started:
    """Start a sandbox; what leaves the stack ends it and all in it."""
    if not sys.platform.startswith("linux") and network == "cut":
        raise NoSandbox("only Linux can cut the network off; choose network='block-in-python', which is weaker")
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="fairlead-code-", ignore_cleanup_errors=True))
    settings = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  (the stack is its context)
    about = {"role": role, "body": body, "network": network, "folder": folder, "keep": list(keep), "in_place": in_place}
    settings.write(json.dumps({**about, **asdict(limits)}).encode())
    settings.seek(0)
    status, tell = os.pipe()
    stack.callback(os.close, status)
    output = subprocess.PIPE if role == "run" else subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            [sys.executable, "-S", "-P", "-c", START, str(settings.fileno()), str(tell)],
            stdin=stdin, stdout=output, stderr=output, cwd=folder, env={**ENVIRONMENT, "PYTHONPATH": str(SOURCE)},
            start_new_session=True, pass_fds=[settings.fileno(), tell, *keep],
        )  # fmt: skip
    except OSError as error:
        raise NoSandbox(f"the sandbox could not start: {error}") from error
    finally:
        os.close(tell)
    stack.callback(_end, process)
    return Started(process, status)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _ready(started: Started) -> None:
    read, _ = _read({started.status: 4096}, time.monotonic() + START_S)
    said = read[started.status].decode("utf-8", "replace")
    if said != "ready":
        raise NoSandbox(
            f"the sandbox could not start: {said or 'it does not say why'}. Nothing was run. Allow user namespaces "
            "(in a container: its seccomp or AppArmor profile), or choose network='block-in-python', which is weaker"
        )


def _read(most: Mapping[int, int], deadline: float) -> tuple[dict[int, bytes], bool]:
    """What comes out of these descriptors, up to a few bytes more than so many of each; whether all were ended."""
    got = {fd: bytearray() for fd in most}
    with selectors.DefaultSelector() as waiting:
        for fd in most:
            waiting.register(fd, selectors.EVENT_READ)
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                more = os.read(key.fd, 1 << 16)
                got[key.fd] += more
                if not more:
                    waiting.unregister(key.fd)
                elif len(got[key.fd]) > most[key.fd]:
                    return {fd: bytes(text) for fd, text in got.items()}, False
        ended = not waiting.get_map()
    return {fd: bytes(text) for fd, text in got.items()}, ended
