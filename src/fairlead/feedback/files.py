"""From a path to rows: JSON, JSON Lines and Parquet, plain or gzipped, with every failure named by file and line.

What a file *is* is read from its bytes, not believed from its name. Nothing is guessed about text: UTF-8 (with or
without a byte order mark) is read, every other encoding is refused with the command that converts it.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import orjson

from fairlead.errors import InputError

Paths: TypeAlias = str | Path | Sequence[str | Path]

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet")

WEB_PAGE = "this looks like a web page (HTML), not data: was it saved from an error page?"
_UNREADABLE = {
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\x28\xb5\x2f\xfd": "zstandard-compressed: unpack it first (zstd -d)",
    b"\xfd7zXZ": "xz-compressed: unpack it first (xz -d)",
    b"BZh": "bzip2-compressed: unpack it first (bzip2 -d)",
    b"\x80\x04": "a Python pickle, which is never loaded: export it as JSON Lines",
    b"version https://git-lfs": "a Git LFS pointer, not the data: fetch it (git lfs pull)",
}
_OTHER_BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


class BadRow(ValueError):
    """One row cannot be used; the message says why. The reader adds file and line."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record and where it stands: `place` is `file:line`, or `file row n` where rows have no line of their own."""

    place: str
    value: Any  # the parsed record, or a BadRow saying why there is none


@dataclass(frozen=True, slots=True)
class Table:
    """One file's rows. `container` says what it was read as; `blank` counts empty lines."""

    path: Path
    container: str
    rows: tuple[Row, ...]
    blank: int = 0
    byte_order_mark: bool = False


def find_files(paths: Paths) -> tuple[list[Path], list[Path]]:
    """The data files named by `paths`, and the files of named folders that are not data (said aloud, not read).

    A folder is searched in full, in sorted order. A missing path, and a folder without data, are `InputError`s.
    """
    named = [paths] if isinstance(paths, str | Path) else list(paths)
    if not named:
        raise InputError("no data file given: name at least one file or folder")
    files: list[Path] = []
    ignored: list[Path] = []
    for name in map(Path, named):
        if name.is_dir():
            inside = sorted(p for p in name.rglob("*") if p.is_file())
            data = [p for p in inside if _is_data(p)]
            if not data:
                raise InputError(f"{name}: no data file in this folder; read are {', '.join(DATA_SUFFIXES)} (and .gz)")
            files += data
            ignored += [p for p in inside if not _is_data(p)]
        elif name.exists():
            files.append(name)
        else:
            raise InputError(f"{name}: no such file or folder")
    repeated = {p for p in files if files.count(p) > 1}
    if repeated:
        raise InputError(f"{sorted(repeated)[0]}: named twice; its rows would count double")
    return files, ignored


def _is_data(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return name.endswith(DATA_SUFFIXES) and not path.name.startswith(".")


def read_table(path: Path) -> Table:
    """All rows of one file. Raises `InputError` where the file as a whole cannot be read.

    A row that is not valid JSON is kept as a `BadRow`, so that the caller decides between stopping and counting.
    """
    data, gzipped = _read_bytes(path)
    packed = ", gzip" if gzipped else ""
    if data[:4] == b"PAR1":
        return Table(path, "Parquet" + packed, tuple(parquet_rows(path, io.BytesIO(data))))
    marked = data.startswith(b"\xef\xbb\xbf")
    data = data[3:] if marked else data
    _check_text(path, data)
    body = data.lstrip()
    if not body:
        raise InputError(f"{path}: the file is empty" + (" (only white space)" if data else ""))
    if body[:1] == b"<":
        raise InputError(f"{path}: {WEB_PAGE}")
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        raise InputError(f"{path}: CSV is not read (its quoting is ambiguous): export it as JSON Lines or Parquet")
    lines_by_name = name.endswith((".jsonl", ".ndjson"))
    if not lines_by_name and (body[:1] == b"[" or (body[:1] == b"{" and not is_json_line(body))):
        container, rows = _whole_document(path, body)
        return Table(path, container + packed, tuple(rows), byte_order_mark=marked)
    rows, blank = _json_lines(path, data)
    return Table(path, "JSON Lines" + packed, tuple(rows), blank, marked)


def read_lines(path: Path) -> Table:
    """A plain text file as rows of one prompt each: {"prompt": line}. Blank lines are counted."""
    data, gzipped = _read_bytes(path)
    marked = data.startswith(b"\xef\xbb\xbf")
    data = data[3:] if marked else data
    _check_text(path, data)
    lines = data.decode("utf-8").removesuffix("\n").split("\n")
    rows = tuple(Row(f"{path}:{i}", {"prompt": line.strip()}) for i, line in enumerate(lines, 1) if line.strip())
    if not rows:
        raise InputError(f"{path}: the file is empty (only white space)")
    return Table(path, "text lines" + (", gzip" if gzipped else ""), rows, len(lines) - len(rows), marked)


def _read_bytes(path: Path) -> tuple[bytes, bool]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise InputError(f"{path}: the file is empty")
    gzipped = data[:2] == b"\x1f\x8b"
    if path.name.lower().endswith(".gz") and not gzipped:
        raise InputError(f"{path}: named .gz but is not gzip: rename it, or fetch it again")
    if gzipped:
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InputError(f"{path}: damaged or cut-off gzip file ({error}): fetch it again") from error
        if not data:
            raise InputError(f"{path}: the file is empty (inside its gzip)")
    return data, gzipped


def not_text(path: Path, head: bytes) -> str:
    """What the first bytes of a file say against reading it as UTF-8 text, in words; "" where nothing does."""
    for magic, what in _UNREADABLE.items():
        if head.startswith(magic):
            return f"{path}: this is {what}"
    for mark, encoding in _OTHER_BOMS.items():
        if head.startswith(mark):
            return f"{path}: encoded as {encoding}, not UTF-8: convert it, e.g. `{_iconv(encoding, path)}`"
    if b"\x00" in head[:4096]:
        likely = "UTF-16LE" if head[1:2] == b"\x00" else "UTF-16BE" if head[:1] == b"\x00" else None
        help_ = f"it looks like {likely}: convert it, e.g. `{_iconv(likely, path)}`" if likely else "a binary file?"
        return f"{path}: holds NUL bytes, so it is not UTF-8 text; {help_}"
    return ""


def _check_text(path: Path, data: bytes) -> None:
    """Refuse anything that is not UTF-8, with the encoding it looks like and the command that converts it."""
    wrong = not_text(path, data)
    if wrong:
        raise InputError(wrong)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); it may be Latin-1 or Windows-1252: "
            f"convert it, e.g. `{_iconv('WINDOWS-1252', path)}`"
        ) from error


def _iconv(encoding: str, path: Path) -> str:
    return f"iconv -f {encoding} -t UTF-8 {path.name}"


def is_json_line(body: bytes) -> bool:
    """Whether the first line stands alone as JSON: then the file is JSON Lines, whatever its name says."""
    first, _, rest = body.partition(b"\n")
    try:
        orjson.loads(first)
    except orjson.JSONDecodeError:
        return False
    return bool(rest.strip())


def _whole_document(path: Path, body: bytes) -> tuple[str, list[Row]]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {reason_of(error)}, column {error.colno}") from error
    container = "JSON array"
    if isinstance(document, dict):
        lists = [key for key in ("data", "rows", "examples") if isinstance(document.get(key), list)]
        container = f"JSON array under {lists[0]!r}" if lists else "one JSON object"
        document = document[lists[0]] if lists else [document]
    if not document:
        raise InputError(f"{path}: the array is empty: there is no row to read")
    return container, [Row(f"{path} row {i}", value) for i, value in enumerate(document, start=1)]


def _json_lines(path: Path, data: bytes) -> tuple[list[Row], int]:
    # Only \n separates rows: str.splitlines would also cut at U+2028, which is legal inside JSON strings.
    rows: list[Row] = []
    blank = 0
    lines = data.split(b"\n")
    if not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            blank += 1
            continue
        try:
            value: Any = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            value = BadRow(f"not valid JSON: {reason_of(error)}, column {error.colno}")
        rows.append(Row(f"{path}:{number}", value))
    return rows, blank


def reason_of(error: orjson.JSONDecodeError) -> str:
    return error.msg.split(": line ")[0]


def parquet_rows(path: Path, source: Path | BinaryIO) -> Iterator[Row]:
    """The rows of a Parquet file, read batch by batch; `path` names it in messages."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    number = 0
    try:
        file = parquet.ParquetFile(source)
        for batch in file.iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield Row(f"{path} row {number}", value)
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged Parquet file after row {number}: {error}") from error
    if not number:
        raise InputError(f"{path}: the table has no rows")
