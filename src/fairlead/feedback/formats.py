"""Read human or AI feedback as it is published; say which format was recognised and why, and what was in it.

`read_preferences`, `read_triples`, `read_comparisons`, `read_demonstrations`, `read_rated`, `read_steps`,
`read_prompts` and `read_tasks` take a file, several, or a folder. The first bad row stops the reading with its file and
line; with `skip_bad_rows=True` bad rows are counted in the `Report` instead. Rows keep their place (`file:line`), so
that a later refusal (too long for the model, say) can still name it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Generic, TypeVar

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Message, Preference, Rated, Stepped
from fairlead.feedback.files import BadRow, Paths, Table, find_files, read_lines, read_table
from fairlead.feedback.rankings import COMPARISONS, RANKINGS, Comparison
from fairlead.feedback.shapes import DEMONSTRATIONS, LABELLED, PROMPTS, RATED, TIE
from fairlead.feedback.shapes_pairs import PREFERENCES, Pair, Shape
from fairlead.feedback.steps import STEPS
from fairlead.feedback.tasks import TASKS
from fairlead.feedback.triples import TRIPLES

T = TypeVar("T")

_BY_LINE = ("prompts", "tasks")  # what may stand in a .txt file, one per line
LOOKED_AT = 20  # rows that vote on a file's format


@dataclass(frozen=True, slots=True)
class FileReport:
    """What one file was read as."""

    path: Path
    container: str
    format: str
    why: str
    rows: int
    skipped: int
    first_skipped: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What was read, in numbers; `lines()` says it aloud. Ties, identical and empty rows are kept, not dropped."""

    what: str
    files: tuple[FileReport, ...]
    ignored_files: tuple[Path, ...] = ()
    ties: int = 0
    first_of_ties: int = 0
    identical: int = 0
    empty_replies: int = 0
    blank_lines: int = 0
    good: int = 0
    bad: int = 0
    undecided: int = 0
    labelled_steps: int = 0
    unlabelled_steps: int = 0

    @property
    def rows(self) -> int:
        return sum(f.rows for f in self.files)

    @property
    def skipped(self) -> int:
        return sum(f.skipped for f in self.files)

    def lines(self) -> tuple[str, ...]:
        """Plain sentences for the terminal and the log. Never holds a row's text."""
        said = [f"{f.path}: {f.format} ({f.container}; {f.why}), {f.rows:,} {self.what}" for f in self.files]
        said += [
            f"{f.path}: {f.skipped:,} bad rows skipped, the first at {f.first_skipped}" for f in self.files if f.skipped
        ]
        counts = {
            "ties, kept with strength 0.5": self.ties,
            "ties, of which the first reply is taken": self.first_of_ties,
            "pairs with two identical replies": self.identical,
            "empty replies, kept": self.empty_replies,
            "blank lines": self.blank_lines,
            "files in named folders that are not data, not read": len(self.ignored_files),
            "good replies": self.good,
            "bad replies": self.bad,
            "pairs of which neither reply is better (ties, identical replies), left out": self.undecided,
            "labelled steps": self.labelled_steps,
            "steps without a label": self.unlabelled_steps,
        }
        return (*said, *(f"{count:,} {what}" for what, count in counts.items() if count))


@dataclass(frozen=True, slots=True)
class PreferenceSet:
    """Preferences with what belongs to each row: place, group (rows that must fall on one side of a split), writers."""

    rows: tuple[Preference, ...]
    places: tuple[str, ...]
    groups: tuple[str, ...]
    generators: tuple[tuple[str, str] | None, ...]  # who wrote (chosen, rejected), where the file says
    report: Report

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class RowSet(Generic[T]):
    """Rows of any other kind, each with its place."""

    rows: tuple[T, ...]
    places: tuple[str, ...]
    report: Report

    def __len__(self) -> int:
        return len(self.rows)


def read_preferences(paths: Paths, *, skip_bad_rows: bool = False) -> PreferenceSet:
    """Preference pairs from published files. Raises `InputError` (exit 2) naming file and line.

    Where no group is given, a row's group is its prompt: pairs of one prompt never straddle a split.
    """
    return _pairs(paths, PREFERENCES, "preference pairs", skip_bad_rows)


def read_triples(paths: Paths, *, skip_bad_rows: bool = False) -> PreferenceSet:
    """Preference pairs with a gold reply beside each (TPO), in any format of `read_preferences` with a `reference`.

    A ranking of three replies is one too: the best is the gold reply, the second chosen, the third rejected.
    """
    return _pairs(paths, TRIPLES, "preference pairs with a gold reply", skip_bad_rows)


def _pairs(paths: Paths, shapes: Sequence[Shape[Pair]], what: str, skip_bad_rows: bool) -> PreferenceSet:
    pairs, places, report = _read(paths, shapes, what, skip_bad_rows)
    values = [pair.value for pair in pairs]
    sides = [(v.chosen, v.rejected, *((v.gold,) if v.gold else ())) for v in values]
    report = replace(
        report,
        ties=sum(v.strength == 0.5 for v in values),
        identical=sum(v.chosen == v.rejected for v in values),
        empty_replies=sum(_is_empty(reply) for replies in sides for reply in replies),
    )
    groups = tuple(pair.group or prompt_text(pair.value.messages) for pair in pairs)
    return PreferenceSet(tuple(values), places, groups, tuple(p.generators for p in pairs), report)


def read_comparisons(paths: Paths, *, skip_bad_rows: bool = False) -> RowSet[Comparison]:
    """Whatever a reward model learns from: pairs in any format of `read_preferences`, and rankings of several replies.

    Each file is one or the other, and the report says which. See `rankings` for how ties are read.
    """
    rows, places, report = _read(paths, COMPARISONS, "comparisons", skip_bad_rows)
    sides = [(r.chosen, r.rejected) if isinstance(r, Preference) else r.replies for r in rows]
    report = replace(
        report,
        ties=sum(isinstance(r, Preference) and r.strength == 0.5 for r in rows),
        identical=sum(a == b for replies in sides for a, b in combinations(replies, 2)),
        empty_replies=sum(_is_empty(reply) for replies in sides for reply in replies),
    )
    return RowSet(tuple(rows), places, report)


def read_steps(paths: Paths, *, skip_bad_rows: bool = False) -> RowSet[Stepped]:
    """Replies in steps, each step right, wrong or without a label, from published files of stepwise supervision."""
    rows, places, report = _read(paths, STEPS, "replies in steps", skip_bad_rows)
    unknown = sum(row.labels.count(None) for row in rows)
    every = sum(len(row.labels) for row in rows)
    return RowSet(tuple(rows), places, replace(report, labelled_steps=every - unknown, unlabelled_steps=unknown))


def read_demonstrations(paths: Paths, *, skip_bad_rows: bool = False) -> RowSet[Exchange]:
    """Exchanges to imitate from published files: conversations, or the chosen side of preference pairs.

    A file whose replies are all empty holds prompts and is refused. Of a tie the first reply is taken, and counted.
    """
    rows, places, report = _read(paths, DEMONSTRATIONS, "demonstrations", skip_bad_rows)
    empty = sum(_is_empty(row.reply) for row in rows)
    if empty == len(rows):
        raise InputError(f"{report.files[0].path}: every reply is empty: these are prompts, not demonstrations")
    ties = sum(bool(row.meta.get(TIE)) for row in rows)
    return RowSet(tuple(rows), places, replace(report, empty_replies=empty, first_of_ties=ties))


def read_rated(paths: Paths, *, skip_bad_rows: bool = False) -> RowSet[Rated]:
    """Replies rated good or bad from published files; of preference pairs, chosen is good and rejected is bad.

    A pair of which neither reply is better says nothing about either: it is left out and counted as undecided.
    A pair's two replies stand at `file:line chosen` and `file:line rejected`.
    """
    rows, at, report = _read(paths, RATED, "rows of rated replies", skip_bad_rows)
    flat = [(place + side, value) for sides, place in zip(rows, at, strict=True) for side, value in sides]
    if not flat:
        raise InputError(f"{report.files[0].path}: not one of {len(rows):,} pairs has a better reply")
    values = tuple(value for _, value in flat)
    good = sum(value.good for value in values)
    report = replace(
        report,
        empty_replies=sum(_is_empty(value.reply) for value in values),
        good=good,
        bad=len(values) - good,
        undecided=sum(not sides for sides in rows),
    )
    return RowSet(values, tuple(place for place, _ in flat), report)


def read_prompts(paths: Paths, *, skip_bad_rows: bool = False) -> RowSet[tuple[Message, ...]]:
    """Prompts from published files; a `.txt` file holds one prompt per line."""
    rows, places, report = _read(paths, PROMPTS, "prompts", skip_bad_rows)
    return RowSet(tuple(rows), places, report)


def read_tasks(paths: Paths, *, skip_bad_rows: bool = False) -> RowSet[Exchange]:
    """Prompts with what judges read of them under `meta` (tasks.py), the reply empty; `.txt` as in `read_prompts`."""
    rows, places, report = _read(paths, TASKS, "tasks", skip_bad_rows)
    return RowSet(tuple(rows), places, report)


def prompt_text(messages: Sequence[Message]) -> str:
    """The text of a prompt as one string: what identifies it for grouping."""
    return "\n\n".join(f"{m.role}: {m.text}" for m in messages)


def recognise(records: Sequence[Mapping[str, Any]], shapes: Sequence[Shape[T]]) -> Shape[T] | None:
    """The shape that most of the records fit (the first listed where they are even), or None."""
    votes = Counter(next((i for i, shape in enumerate(shapes) if shape.fits(record)), -1) for record in records)
    votes.pop(-1, None)
    return shapes[min(votes, key=lambda i: (-votes[i], i))] if votes else None


# ------------------------------------------------------------------------------------------------- within


def _read(
    paths: Paths, shapes: Sequence[Shape[T]], what: str, skip_bad_rows: bool
) -> tuple[list[T], tuple[str, ...], Report]:
    files, ignored = find_files(paths)
    values: list[T] = []
    places: list[str] = []
    reports: list[FileReport] = []
    blank = 0
    for path in files:
        table = read_lines(path) if what in _BY_LINE and path.suffix == ".txt" else read_table(path)
        shape = _shape_of(table, shapes, what)
        read = _rows(table, shape, skip_bad_rows)
        if not read.values:
            raise InputError(f"{path}: not one usable row; the first bad one: {read.first_bad}")
        values += read.values
        places += read.places
        blank += table.blank
        first = read.first_bad.split(": ")[0]
        reports.append(FileReport(path, table.container, shape.name, shape.why, len(read.values), read.skipped, first))
    return values, tuple(places), Report(what, tuple(reports), tuple(ignored), blank_lines=blank)


@dataclass(slots=True)
class _Read(Generic[T]):
    values: list[T]
    places: list[str]
    skipped: int = 0
    first_bad: str = ""


def _rows(table: Table, shape: Shape[T], skip_bad_rows: bool) -> _Read[T]:
    read: _Read[T] = _Read([], [])
    for row in table.rows:
        try:
            value = _converted(row.value, shape)
        except BadRow as error:
            message = f"{row.place}: {error}"
            if not skip_bad_rows:
                raise InputError(f"{message} (format: {shape.name}); mend it, or pass --skip-bad-rows") from error
            read.skipped += 1
            read.first_bad = read.first_bad or message
            continue
        read.values.append(value)
        read.places.append(row.place)
    return read


def _converted(record: Any, shape: Shape[T]) -> T:
    if isinstance(record, BadRow):
        raise record
    if not isinstance(record, Mapping):
        raise BadRow(f"a row is an object with named fields, not {type(record).__name__}")
    try:
        return shape.read(record)
    except KeyError as error:
        raise BadRow(f"the row has no {error.args[0]!r}; its keys are {', '.join(map(str, record))}") from error


def _shape_of(table: Table, shapes: Sequence[Shape[T]], what: str) -> Shape[T]:
    records = [row.value for row in table.rows if isinstance(row.value, Mapping)][:LOOKED_AT]
    if not records:
        first = table.rows[0]
        reason = first.value if isinstance(first.value, BadRow) else "a row is an object with named fields"
        raise InputError(f"{first.place}: {reason}; no row of this file can be read as {what}")
    shape = recognise(records, shapes)
    if shape is None:
        raise InputError(
            f"{table.path}: not a known format of {what}: its rows have the keys {', '.join(map(str, records[0]))}. "
            f"Known: {'; '.join(f'{s.name} ({s.why})' for s in shapes)}{_other_use(records, what)}"
        )
    return shape


_USES: Mapping[str, tuple[Sequence[Shape[Any]], str]] = {
    "rankings": (RANKINGS, "read it as comparisons (reward)"),
    "replies in steps": (STEPS, "read it as steps (process-reward)"),
    "rows of rated replies": (LABELLED, "read it as rated replies (kto, bco)"),
    "demonstrations": (DEMONSTRATIONS, "read it as demonstrations"),
}


def _other_use(records: Sequence[Mapping[str, Any]], what: str) -> str:
    for other, (shapes, advice) in _USES.items():
        shape = recognise(records, shapes) if other != what else None
        if shape is not None:
            return f". It does look like {other} ({shape.name}): {advice}"
    return ""


def _is_empty(reply: Sequence[Message]) -> bool:
    return not any(m.text.strip() or any(getattr(p, "name", "") for p in m.parts) for m in reply)
