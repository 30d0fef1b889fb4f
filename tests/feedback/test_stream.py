"""Rows of large files: every row once, at its place, the middle reached without reading what is before it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from fairlead.errors import InputError
from fairlead.feedback import stream as streaming
from fairlead.feedback.files import BadRow, read_table
from fairlead.feedback.stream import stream, survey


def rows(n: int, first: int = 0) -> bytes:
    return b"".join(json.dumps({"i": i, "text": "é" * (i % 7)}).encode() + b"\n" for i in range(first, first + n))


def test_reads_what_the_whole_reader_reads(tmp_path: Path) -> None:
    plain, packed, table, array = (tmp_path / n for n in ("a.jsonl", "b.jsonl.gz", "c.parquet", "d.json"))
    plain.write_bytes(b"\xef\xbb\xbf" + rows(5) + b"\n\r\n" + rows(3, 5) + b"{bad\n" + rows(1, 8).rstrip(b"\n"))
    packed.write_bytes(gzip.compress(rows(40)))
    parquet.write_table(arrow.table({"i": list(range(30))}), table)
    array.write_text(json.dumps([{"i": 1}, {"i": 2}]))
    files = [plain, packed, table, array]
    got = list(stream(files))
    want = [row for path in files for row in read_table(path).rows]
    assert [raw.index for raw in got] == list(range(len(want)))
    for raw, row in zip(got, want, strict=True):
        assert raw.place == row.place
        assert str(raw.value()) == str(row.value) if isinstance(row.value, BadRow) else raw.value() == row.value
    assert isinstance(got[8].value(), BadRow)


def test_a_survey_counts_hashes_and_draws_evenly(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_bytes(rows(600) + b"\n")
    b.write_bytes(rows(400))
    found = survey([a, b], sample=100)
    assert (found.rows, found.blank, len(found.sample), len(found.head)) == (1000, 1, 100, 20)
    assert [raw.index for raw in found.sample] == sorted({raw.index for raw in found.sample})
    assert 20 < sum(raw.index >= 600 for raw in found.sample) < 60  # 40 expected
    (tmp_path / "c.jsonl").write_bytes(rows(600) + b"\n")
    assert survey([tmp_path / "c.jsonl", b]).sha256 == found.sha256  # by content, not by name
    b.write_bytes(rows(399) + b'{"i":399,"text":"x"}\n')
    assert survey([a, b]).sha256 != found.sha256


def test_the_middle_is_reached_by_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "MARK_EVERY", 10)
    a, b, c = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz", tmp_path / "c.jsonl"
    a.write_bytes(b"\n" + rows(55))
    b.write_bytes(gzip.compress(rows(25)))
    c.write_bytes(rows(20))
    found = survey([a, b, c])
    everything = list(stream(found.files))
    assert [m.row for m in found.marks] == [0, 10, 20, 30, 40, 50, 55, 80, 90]
    for first in (0, 1, 9, 10, 54, 55, 60, 79, 80, 99, 100):
        assert list(stream(found.files, first, found.marks)) == everything[first:]
    a.write_bytes(b"?" * found.marks[4].offset + a.read_bytes()[found.marks[4].offset :])
    assert list(stream(found.files, 41, found.marks)) == everything[41:]  # what is before the mark is not looked at


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "no rows"),
        ("a.jsonl", b"<html>", "web page"),
        ("a.jsonl", "{}".encode("utf-16"), "UTF-16"),
        ("a.jsonl.gz", gzip.compress(rows(5000))[:-20], "cut-off gzip"),
        ("a.parquet", b"PAR1 and no more", "damaged Parquet"),
    ],
)
def test_damage_is_found_before_a_job_starts(tmp_path: Path, name: str, body: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(InputError, match=words):
        survey(tmp_path / name)


def test_a_large_array_is_refused_with_the_way_to_convert_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "LARGEST_ARRAY", 10)
    (tmp_path / "a.json").write_text(json.dumps([{"i": i} for i in range(10)]))
    with pytest.raises(InputError, match=r"jq -c '.\[\]' a.json > a.jsonl"):
        survey(tmp_path / "a.json")
