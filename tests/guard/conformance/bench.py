"""Runs cells: a mock server, the proxies in front of it, a client on each, and their audit logs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fairlead.guard.audit.verify import verify
from guard.conformance import guarded, holds, upstream
from guard.conformance.cells import Cell, table
from guard.conformance.clients import Heard, Sdk, heard
from guard.conformance.holds import Log
from support.guard_proxy import Proxy
from support.mock_upstream import Mock, Step, json_reply

PATIENCE = 10.0  # seconds for an entry to be on the disk


@dataclass
class Bench:
    mock: Mock
    proxies: dict[str, Proxy]
    sdks: dict[str, Sdk]
    logs: dict[str, Log]
    done: list[Cell] = field(default_factory=list)
    broken: list[Cell] = field(default_factory=list)

    def run(self, cell: Cell) -> list[str]:
        """What is wrong with a cell, in words."""
        name = "shadow" if cell.decision == "shadow" else "window" if cell.reply == "window" else "buffer"
        found = self.ask(name, cell, upstream.answer(cell))
        faults = holds.all_of(cell, found)
        if len(self.mock.seen) != 1:
            faults.append(f"the model was asked {len(self.mock.seen)} times")
        faults += holds.audited(cell, found, self.entries(name, found))
        self.done.append(cell)
        if faults:
            self.broken.append(cell)
        return faults

    def faults(self) -> list[str]:
        """What is wrong with the audit logs, once the proxies have ended, by the guard's own verifier."""
        out = []
        for name, log in self.logs.items():
            report = verify(log.path, log.path.with_suffix(".key"), log.path.with_suffix(".heads"))
            out += [f"{name}: {broken}" for broken in report.breaks]
            if (report.uncovered, report.uncounted, report.gaps, report.open) != (0, 0, 0, 0):
                out.append(f"{name}: {report}")
            log.read()
            out += [f"{name}: {request} stands there twice" for request, e in log.entries.items() if len(e) != 1]
        return out

    def table(self) -> str:
        """Cells by endpoint and decision, and how many of them are broken."""
        return f"{table(self.done)}\nbroken: {len(self.broken)}"

    def ask(self, name: str, cell: Cell, steps: Sequence[Step]) -> Heard:
        """What the client of a proxy hears where the server does this."""
        self.mock.script = lambda _: steps
        self.mock.seen.clear()
        return heard(self.sdks[name], cell)

    def entries(self, name: str, found: Heard) -> list[dict[str, object]]:
        log, until = self.logs[name], time.monotonic() + PATIENCE
        while found.request not in log.entries and time.monotonic() < until:
            log.read()
            time.sleep(0.001)
        return log.entries.get(found.request, [])


@contextmanager
def bench(folder: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        mock = stack.enter_context(Mock(lambda _: json_reply({})))
        proxies = stack.enter_context(guarded.proxies(folder, mock.url))
        sdks = {name: Sdk(proxy.url, 0 if name == "strict" else 2) for name, proxy in proxies.items()}
        for sdk in sdks.values():
            stack.callback(sdk.close)
        yield Bench(mock, proxies, sdks, {name: Log(folder / name / "audit.db") for name in proxies})
