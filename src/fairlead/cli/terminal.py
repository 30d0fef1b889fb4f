"""What commands print: results on standard output, everything on the way to them as lines or bars beside it.

On a terminal long work shows a bar with the time left; elsewhere plain lines, at most one every few seconds. With
`--json` standard output holds the JSON and nothing else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

LAYER_WIDTH = 12
LINE_WIDTH = 92
PLAIN_EVERY_S = 15.0


@dataclass(slots=True)
class Terminal:
    """`quiet_out` moves every line to standard error, so that `--json` leaves standard output clean."""

    quiet_out: bool = False
    log: Callable[[str], None] | None = None
    _bar: Progress | None = field(default=None, init=False)

    @property
    def live(self) -> bool:
        """Whether a person watches: bars need a terminal."""
        return sys.stderr.isatty()

    @property
    def answers(self) -> bool:
        """Whether a person can be asked: the question is seen, and the answer can be typed."""
        here = sys.stdin is not None and not sys.stdin.closed
        return self.live and here and sys.stdin.isatty()

    @property
    def confirm(self) -> Callable[[str], bool] | None:
        """What asks a person yes or no; None where nobody can be asked."""
        return (lambda question: typer.confirm(question, err=True)) if self.answers else None

    def say(self, text: str) -> None:
        self._line(text)

    def done(self, layer: str, what: str, seconds: float | None) -> None:
        took = "cached" if seconds is None else duration(seconds)
        head = f"{layer:<{LAYER_WIDTH - 1}} "
        self._line(f"{head}{what:<{LINE_WIDTH - len(head) - 8}} {took:>7}")

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[int, int], None]]:
        with self._bars(what) if self.live else self._plain(what) as advance:
            yield advance

    @contextmanager
    def _bars(self, what: str) -> Iterator[Callable[[int, int], None]]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        outer = self._bar
        bar = outer or Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        if outer is None:
            bar.start()
            self._bar = bar
        task = bar.add_task(what, total=None)
        try:
            yield lambda done, total: bar.update(task, completed=done, total=total)
        finally:
            bar.remove_task(task)
            if outer is None:
                bar.stop()
                self._bar = None

    @contextmanager
    def _plain(self, what: str) -> Iterator[Callable[[int, int], None]]:
        last = time.monotonic()
        first: tuple[float, int] | None = None  # work that goes on tells nothing of its speed before it is told of

        def advance(done: int, total: int) -> None:
            nonlocal last, first
            now = time.monotonic()
            if first is None:
                first = (now, done)
                return
            began, before = first
            if now - last < PLAIN_EVERY_S or done <= before or done >= total:
                return
            last = now
            left = (now - began) * (total - done) / (done - before)
            typer.echo(f"  {what}: {done:,} of {total:,}, about {duration(left)} left", err=True)

        yield advance

    def _line(self, text: str) -> None:
        if self.log is not None:
            self.log(text)
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            typer.echo(text, err=self.quiet_out)


def duration(seconds: float) -> str:
    """`0.4 s`, `38 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 60:
        return f"{int(minutes)} min {int(seconds % 60)} s"
    return f"{int(minutes // 60)} h {int(minutes % 60)} min"


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    import orjson

    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode() + "\n")
