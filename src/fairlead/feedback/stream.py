"""Rows of files that are too large to be held: one at a time, in order, parsed only when somebody looks.

JSON Lines (plain or gzipped) and Parquet are streamed. A JSON array has no rows before it is read whole, so a large one
is refused with the way to convert it. What a file is is read from its bytes, and what is wrong with it is said, as in
`files`; a bad line is a `BadRow` that keeps its place.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import orjson

from fairlead.errors import InputError
from fairlead.feedback.files import (
    WEB_PAGE,
    BadRow,
    Paths,
    Row,
    find_files,
    is_json_line,
    not_text,
    parquet_rows,
    read_table,
    reason_of,
)

LARGEST_ARRAY = 64 * 2**20  # bytes of a file that is read whole
HEAD = 1 << 16
MARK_EVERY = 1000  # rows


@dataclass(frozen=True, slots=True)
class Raw:
    """One row as it stands in its file. `index` counts the rows of all files, from 0."""

    index: int
    place: str
    body: Any  # a line's bytes, or what a container has parsed already

    def value(self) -> Any:
        """The parsed record, or a `BadRow` that says why there is none."""
        if not isinstance(self.body, bytes):
            return self.body
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            return BadRow(f"not valid JSON: {reason_of(error)}, column {error.colno}")


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a row stands: in which file, at which byte, after how many lines. Of files that cannot be entered in the
    middle (gzip, Parquet) only the first row has one."""

    row: int
    file: int
    offset: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True)
class Survey:
    """What one pass over the input found: its hash, the number of its rows, and a few of them drawn evenly."""

    files: tuple[Path, ...]
    sha256: str
    rows: int
    blank: int
    sample: tuple[Raw, ...]
    head: tuple[Raw, ...]
    marks: tuple[Mark, ...]


def stream(
    files: Sequence[Path], first: int = 0, marks: Sequence[Mark] = (), names: Sequence[str] = ()
) -> Iterator[Raw]:
    """The rows of all files in order, from row `first`; `marks` of the survey make the way there short.

    names  what the files are called in places, where they lie elsewhere than the user named them

    Raises `InputError` where a file as a whole cannot be read.
    """
    start = max((mark for mark in marks if mark.row <= first), key=lambda mark: mark.row, default=Mark(0, 0))
    index = start.row
    for number in range(start.file, len(files)):
        mark = start if number == start.file else Mark(index, number)
        for place, body, _ in _rows(files[number], [], mark):
            if names:
                place = names[number] + place.removeprefix(str(files[number]))
            if index >= first:
                yield Raw(index, place, body)
            index += 1


def survey(paths: Paths, *, sample: int = 200, head: int = 20, seed: int = 0) -> Survey:
    """Read the input once, front to back: `sample` rows drawn evenly (reservoir, Vitter 1985) and the first `head`.

    The hash is over the files' bytes in order; their names do not count. Raises `InputError` for a damaged or an empty
    file, so that a job does not find out in the middle.
    """
    files, _ = find_files(paths)
    draw = random.Random(seed)
    kept: list[Raw] = []
    first: list[Raw] = []
    blank: list[int] = []
    marks: list[Mark] = []
    rows = 0
    for number, path in enumerate(files):
        before = rows
        for place, body, (offset, line) in _rows(path, blank, Mark(rows, number)):
            if rows == before or (line and rows % MARK_EVERY == 0):
                marks.append(Mark(rows, number, offset, line))
            raw = Raw(rows, place, body)
            rows += 1
            if len(first) < head:
                first.append(raw)
            if len(kept) < sample:
                kept.append(raw)
            elif (slot := draw.randrange(rows)) < sample:
                kept[slot] = raw
        if rows == before:
            raise InputError(f"{path}: the file has no rows")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    kept.sort(key=lambda raw: raw.index)
    return Survey(tuple(files), digest.hexdigest(), rows, len(blank), tuple(kept), tuple(first), tuple(marks))


# ------------------------------------------------------------------------------------------------- within


def _rows(path: Path, blank: list[int], start: Mark) -> Iterator[tuple[str, Any, tuple[int, int]]]:
    """(place, body, (byte, line) where it stands) of every row; the numbers of blank lines are added to `blank`."""
    try:
        head = _head(path)
        if head[:4] == b"PAR1":
            yield from ((row.place, row.value, (0, 0)) for row in parquet_rows(path, path))
        elif _is_lines(path, head):
            yield from _lines(path, blank, start)
        else:
            yield from ((row.place, row.value, (0, 0)) for row in _table(path))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged or cut-off gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(path, "rb")) if packed else path.open("rb")


def _head(path: Path) -> bytes:
    with _open(path) as file:
        head = file.read(HEAD)
    if not head:
        raise InputError(f"{path}: the file is empty")
    head = head.removeprefix(b"\xef\xbb\xbf")
    wrong = "" if head[:4] == b"PAR1" else not_text(path, head)
    if not wrong and head.lstrip()[:1] == b"<":
        wrong = f"{path}: {WEB_PAGE}"
    if wrong:
        raise InputError(wrong)
    return head


def _is_lines(path: Path, head: bytes) -> bool:
    if path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        return True
    body = head.lstrip()
    if body[:1] != b"{":
        return False
    if b"\n" in body:
        return is_json_line(body)
    with _open(path) as file:  # a first line longer than the head
        first = file.readline().removeprefix(b"\xef\xbb\xbf")
        return is_json_line(first + file.readline())


def _lines(path: Path, blank: list[int], start: Mark) -> Iterator[tuple[str, bytes, tuple[int, int]]]:
    with _open(path) as file:
        plain = not isinstance(file, gzip.GzipFile)
        file.seek(start.offset)
        offset, number = start.offset, start.line
        for line in file:
            body = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
            if body.strip():
                # a gzip file has no bytes to go to: its rows are marked as if they stood at its beginning
                yield f"{path}:{number + 1}", body.rstrip(b"\r\n"), (offset, number) if plain else (0, 0)
            else:
                blank.append(number + 1)
            offset += len(line)
            number += 1


def _table(path: Path) -> Sequence[Row]:
    size = path.stat().st_size
    if size > LARGEST_ARRAY:
        raise InputError(
            f"{path}: a JSON array of {size / 2**20:,.0f} MiB, which can only be read whole; convert it to JSON Lines: "
            f"`jq -c '.[]' {path.name} > {path.name.split('.')[0]}.jsonl`"
        )
    return read_table(path).rows
