"""What runs inside the sandbox of `code.py`, in a bare Python; here and below, the standard library only.

    python -S -P -c "...; main()" CONFIG STATUS     two file descriptors: the settings (JSON), and where trouble is told

It shuts itself in, writes "ready" to STATUS, closes it, and only then takes up its role:

    run     run a program on stdin and stdout, as a main program
    solve   run the code under test as a module, then answer questions about it over a socket
    check   run the tests, in which each name of the code is a stand-in that asks the process that solves

Between the two processes of the last go plain values only (`code_values.py`). Whatever the code overrides, it overrides
in its own process.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import socket
import sys
import types
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from fairlead.judges.code_jail import shut_in
from fairlead.judges.code_values import NotPlain, decode, encode, receive, send

T = TypeVar("T")
ITEMS = 100_000  # items that are taken from an iterator
TEST_MODULES = frozenset(
    ("bisect", "cmath", "collections", "copy", "datetime", "functools", "heapq", "itertools", "json", "math",
     "operator", "random", "re", "statistics", "string")
)  # fmt: skip

# -------------------------------------------------------------------------------------------------- solving


def run(code: str) -> int:
    """Run the program; its exit code."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(code, "<reply>", "exec"), module.__dict__)
    return 0


def solve(code: str, link: socket.socket) -> None:
    """Run the code as a module, then answer until the other side has no more questions."""
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    dead: list[Any] | None = None
    try:
        exec(compile(code, "<reply>", "exec"), module.__dict__)
    except BaseException as error:  # noqa: BLE001  (the code may raise anything, and it is told)
        dead = _told(error)
    held: list[Any] = []

    def hold(value: Any) -> Any:
        held.append(value)
        return ["h", len(held) - 1]

    while True:
        try:
            question = receive(link)
        except EOFError:
            return
        if dead is not None:
            send(link, {"dead": dead})
            continue
        try:
            answer, arguments = _answer(module, question, held)
            reply = {"value": encode(answer, hold), "arguments": encode(arguments, hold)}
            send(link, reply)
        except BaseException as error:  # noqa: BLE001  (likewise)
            send(link, {"raised": _told(error)})


def _answer(module: types.ModuleType, question: dict[str, Any], held: list[Any]) -> tuple[Any, list[Any]]:
    """What the question asks for, and the arguments of a call as it left them."""
    if question["ask"] == "name":
        return module.__dict__[question["name"]], []
    arguments = decode(question["arguments"], held.__getitem__)
    of = held[question["of"]]
    if question["ask"] == "call":
        return of(*arguments, **decode(question["named"], held.__getitem__)), arguments
    ask: dict[str, Callable[..., Any]] = {
        "get": getattr, "len": len, "item": lambda v, k: v[k], "in": lambda v, k: k in v, "str": str, "repr": repr,
        "items": lambda v: [item for item, _ in zip(v, range(ITEMS), strict=False)],
    }  # fmt: skip
    return ask[question["ask"]](of, *arguments), []


def _told(error: BaseException) -> list[Any]:
    """The built-in exceptions that this one is, the nearest first, and its message."""
    names = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    try:
        text = str(error)[:500]
    except Exception:  # noqa: BLE001  (its own __str__ may raise anything)
        text = ""
    return [names, f"{type(error).__name__}: {text}" if names[:1] != [type(error).__name__] else text]


# ------------------------------------------------------------------------------------------------- checking


class Lost(BaseException):
    """The code's process is gone, or says nothing that can be read. No test's `except Exception` takes it."""


class Link:
    """Questions to the process that solves. `lost`, `missing`: why, once no answer counts any more."""

    def __init__(self, link: socket.socket, in_place: bool) -> None:
        self.link, self.in_place = link, in_place
        self.lost = self.missing = ""

    def ask(self, what: str, of: Remote | None, *arguments: Any, named: Any = None, name: str = "") -> Any:
        try:
            question = {
                "ask": what, "of": None if of is None else of._number, "name": name,
                "arguments": encode(list(arguments), _handle), "named": encode(named or {}, _handle),
            }  # fmt: skip
        except NotPlain as error:
            self.missing = self.missing or str(error)
            raise
        raised: Exception | None = None
        value: Any = None
        after: list[Any] = []
        try:
            send(self.link, question)
            reply = receive(self.link)
            if "dead" in reply:
                self.lost = f"the code stops with {_error_of(reply['dead'])!r}"
            elif "raised" in reply:
                raised = _error_of(reply["raised"])
            else:
                value = decode(reply["value"], lambda number: Remote(self, number))
                after = decode(reply["arguments"], lambda number: Remote(self, number))
        except (EOFError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, MemoryError):
            self.lost = self.lost or "the code ended, or answered with nothing that can be read"
        if self.lost:
            raise Lost(self.lost)
        if raised is not None:
            raise raised
        if self.in_place and what == "call":
            for mine, theirs in zip(arguments, after, strict=False):
                if type(mine) is type(theirs) and isinstance(mine, list | dict | set):
                    mine.clear()
                    (mine.extend if isinstance(mine, list) else mine.update)(theirs)
        return value


def _handle(value: Any) -> Any:
    if isinstance(value, Remote):
        return ["h", value._number]
    raise NotPlain(f"the test hands the code a {type(value).__name__}, which cannot be handed to another process")


def _error_of(told: list[Any]) -> Exception:
    """The exception that the code raised, as the nearest built-in one.

    One that would end a loop here quietly, or end this process, is told as a RuntimeError.
    """
    names, text = told
    for name in names:
        kind = getattr(builtins, str(name), None)
        if isinstance(kind, type) and issubclass(kind, StopIteration | StopAsyncIteration):
            break
        if isinstance(kind, type) and issubclass(kind, Exception):
            with suppress(TypeError):
                return kind(str(text))
    return RuntimeError(": ".join(str(part) for part in (*names[:1], text) if part))


class Remote:
    """A thing of the code's that is no plain value: it can be called and asked, never compared or taken as true."""

    def __init__(self, link: Link, number: int) -> None:
        self._link, self._number = link, number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._link.ask("call", self, *arguments, named=named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask("get", self, name)

    def __len__(self) -> int:
        return _of_type(int, self._link.ask("len", self))

    def __iter__(self) -> Any:
        return iter(_of_type(list, self._link.ask("items", self)))

    def __getitem__(self, key: Any) -> Any:
        return self._link.ask("item", self, key)

    def __contains__(self, key: Any) -> bool:
        return _of_type(bool, self._link.ask("in", self, key))

    def __str__(self) -> str:
        return _of_type(str, self._link.ask("str", self))

    def __repr__(self) -> str:
        return _of_type(str, self._link.ask("repr", self))

    def _refused(self, *_: Any) -> NoReturn:
        raise TypeError("the code gives an object where the test compares values")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refused
    __hash__ = __bool__ = __add__ = __radd__ = __sub__ = __rsub__ = _refused


def _of_type(kind: type[T], value: Any) -> T:
    if type(value) is not kind:
        raise TypeError(f"the code gives no {kind.__name__} where one is needed")
    return value


def check(tests: Sequence[str], link: socket.socket, in_place: bool, tell: Callable[[dict[str, Any]], None]) -> None:
    """Run the tests in order, in one namespace, and tell of each whether it passed, or what it said."""
    asked = Link(link, in_place)
    space: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    mine: set[str] = set()  # names that the tests themselves have made
    for number, test in enumerate(tests):
        said = ""
        try:
            loads, makes = names_of(test)
            mine |= makes
            for name in loads - mine:
                _provide(asked, space, name)
            exec(compile(test, f"<test {number}>", "exec"), space)
        except AssertionError as error:
            said = f"does not hold: {' '.join(test.split())[:200]}" + (f" ({error})" if str(error) else "")
        except Lost:
            pass
        except BaseException as error:  # noqa: BLE001  (a test that raises has not passed, and says why)
            said = f"{type(error).__name__}: {error}"
        if asked.missing:
            tell({"missing": f"test {number}: {asked.missing}"})
            return
        said = asked.lost or said  # whatever the test made of it
        tell({"passed": not said, "reason": f"test {number}: {said[:400]}" if said else ""})


def names_of(test: str) -> tuple[set[str], set[str]]:
    """The names that a test reads, and those it makes itself."""
    import ast  # slow to import, and only the side that tests needs it

    loads: set[str] = set()
    makes: set[str] = set()
    for node in ast.walk(ast.parse(test)):
        if isinstance(node, ast.Name):
            (loads if isinstance(node.ctx, ast.Load) else makes).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            makes.add(node.name)
        elif isinstance(node, ast.arg):
            makes.add(node.arg)
        elif isinstance(node, ast.alias):
            makes.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            makes.add(node.name)
    return loads - makes, makes


def ours(name: str) -> bool:
    """Whether a name in a test is ours whatever the code calls so: built-ins and the usual modules."""
    return hasattr(builtins, name) or name in TEST_MODULES


def _provide(link: Link, space: dict[str, Any], name: str) -> None:
    if name in TEST_MODULES:
        space[name] = importlib.import_module(name)
    elif not ours(name):
        with suppress(KeyError):  # a name that nobody has: the test will say so
            space[name] = link.ask("name", None, name=name)


# ----------------------------------------------------------------------------------------------------- main


def main() -> None:
    """End this process with the code of the role's."""
    sys.exit(_main())


def _main() -> int:
    sys.path.remove(os.environ.pop("PYTHONPATH"))  # what the code imports is Python's own
    with open(int(sys.argv[1]), encoding="utf-8") as file:
        settings = json.load(file)
    status, keep = int(sys.argv[2]), settings["keep"]
    role, body = settings["role"], settings["body"]
    link = socket.socket(fileno=keep[0]) if keep else None
    try:
        shut_in(settings, status, keep)
    except Exception as error:  # noqa: BLE001  (whatever it is, it is told, and nothing is run)
        os.write(status, str(error).encode())
        os._exit(1)
    os.write(status, b"ready")
    os.close(status)
    if role == "run" or link is None:
        try:
            return run(body)
        except SystemExit:
            raise
        except BaseException:  # noqa: BLE001  (as Python does at the end of a program)
            import traceback

            traceback.print_exc(limit=-3)
            return 1
    with link:
        if role == "solve":
            solve(body, link)
        else:
            check(body, link, settings["in_place"], lambda what: _write_line(keep[1], what))
    return 0


def _write_line(fd: int, what: dict[str, Any]) -> None:
    os.write(fd, json.dumps(what).encode() + b"\n")
