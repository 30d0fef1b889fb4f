"""The table at the end of a run: measures down, layers across, the principle beside each row, verdicts in words.

On a terminal it fits the window: intervals of the middle layers go first, then the middle layers themselves (the page
has them all); elsewhere it is plain lines of whatever width it takes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import IO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from fairlead.report import words
from fairlead.report.run import Run
from fairlead.report.visible import visible

GAP = "   "
STYLE = {"better": "bold blue", "worse": "bold red", "cannot tell": "dim", "not compared": "dim"}
_PLAIN = str.maketrans({"↑": "^", "↓": "v", "≤": "<", "≥": ">", "–": "-", "−": "-", "·": "-", "→": ">", "…": "."})


def print_table(run: Run, console: Console | None = None) -> None:
    """Print the table and what it comes to. Without a terminal: plain lines, never folded."""
    out = console or Console(file=sys.stdout, highlight=False, soft_wrap=True)
    width = out.width if out.is_terminal else None
    for line in [*table(run, width), Text(), *closing(run)]:
        out.print(_encodable(line, out.file), soft_wrap=True, overflow="ignore", crop=False, highlight=False)


def table(run: Run, width: int | None = None) -> list[Text]:
    """The lines of the table, in the richest form that fits `width` (None: any width)."""
    for lines in _forms(run):
        if width is None or max(map(_width, lines)) <= width:
            return lines
    return _stacked(run)


def closing(run: Run) -> list[Text]:
    """What got worse, what slips through, what was not measured."""
    groups = words.sorted_out(run)
    worse = [words.title(m) for m in groups["worse"]]
    slips = words.slips(run)
    lines = [Text("What got worse: ").append(_list(worse) if worse else "nothing that could be told", "bold")]
    if groups["cannot tell"]:
        lines.append(Text("Cannot be told at this n: " + _list([words.title(m) for m in groups["cannot tell"]])))
    if run.told:
        total = sum(slips.values())
        text = f"{total} exchange{'s' if total != 1 else ''} (report, section 4)" if total else "nothing in these cases"
        lines.append(Text("What slips through: " + text))
    lines.append(Text("Not measured: " + _list(words.not_measured(run))))
    weak = [words.title(m) for m in run.measures if run.any_row(m).evidence is not True]
    if weak:
        lines.append(Text("Not independent evidence (*): " + _list(weak)))
    return [line.append(".") for line in lines]


def _list(items: Sequence[str]) -> str:
    return ", ".join(items)


# ----------------------------------------------------------------------------------------------- forms


def _forms(run: Run) -> list[list[Text]]:
    """The grid, from everything to the least that is still worth a grid."""
    every, ends = set(run.layers), {run.first, run.last}
    outer = [name for name in run.layers if name in ends]
    return [
        _grid(run, run.layers, intervals=every),
        _grid(run, run.layers, intervals=ends),
        _grid(run, run.layers, intervals={run.last}),
        _grid(run, run.layers, intervals={run.last}, short=True),
        _grid(run, outer, intervals={run.last}, short=True),
        _grid(run, outer, intervals={run.last}, short=True, principle=False),
    ]


def _grid(
    run: Run, layers: Sequence[str], *, intervals: set[str], short: bool = False, principle: bool = True
) -> list[Text]:
    head = [Text(), *(Text(name, "bold") for name in layers), Text(), Text()]
    rows = [head]
    for measure in run.measures:
        cells = [_name(run, measure)]
        for layer in layers:
            at = run.row(measure, layer)
            cell = Text(words.value(at), "" if layer == run.last else "dim")
            if layer in intervals and words.interval(at):
                cell.append(" " + words.interval(at), "dim")
            cells.append(cell)
        cells.append(Text(run.any_row(measure).principle or "–", "cyan") if principle else Text())
        cells.append(_verdict(run, measure, short=short))
        rows.append(cells)
    columns = [max(_width(cells[n]) for cells in rows) for n in range(len(head))]
    return [_joined(cells, columns) for cells in rows]


def _stacked(run: Run) -> list[Text]:
    """Two lines a measure, for windows too narrow for a grid."""
    lines: list[Text] = []
    for measure in run.measures:
        first, last = (run.row(measure, layer) for layer in (run.first, run.last))
        lines.append(_name(run, measure))
        values = f"  {words.value(first)} → {words.value(last)}" if len(run.layers) > 1 else f"  {words.value(last)}"
        lines.append(Text(values + " " + words.interval(last) + " ").append_text(_verdict(run, measure, short=True)))
    return lines


def _name(run: Run, measure: str) -> Text:
    row = run.any_row(measure)
    name = Text(f"{words.title(measure)} {words.ARROW[row.better]}")
    return name if row.evidence is True else name.append(" *", "yellow")


def _verdict(run: Run, measure: str, *, short: bool = False) -> Text:
    if len(run.layers) < 2:
        return Text()
    effect = run.effect(measure)
    told = words.verdict(effect, run.any_row(measure).better)
    if short:
        told = told.split(" [")[0]
    return Text(told, STYLE["not compared" if effect is None else effect.verdict])


def _joined(cells: Sequence[Text], columns: Sequence[int]) -> Text:
    line = Text()
    for cell, width in zip(cells, columns, strict=True):
        if not width:
            continue
        line.append_text(cell).append(" " * (width - _width(cell)) + GAP)
    line.rstrip()
    return line


def _width(text: Text) -> int:
    return cell_len(text.plain)


def _encodable(line: Text, file: IO[str]) -> Text:
    """Arrows and signs for a terminal that cannot print them; other characters of names as escapes."""
    if visible(line.plain) != line.plain:
        line = Text(visible(line.plain))  # names are data: no escape sequence reaches the terminal
    encoding = getattr(file, "encoding", None) or "utf-8"
    try:
        line.plain.encode(encoding)
    except UnicodeEncodeError:
        plain = line.plain.translate(_PLAIN).encode(encoding, "backslashreplace").decode(encoding)
        return Text(plain)
    return line
