"""Every kind of tampering is found, and the report says where."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fairlead.errors import InputError
from fairlead.guard.audit import Verdict
from fairlead.guard.audit.chain import row_number
from fairlead.guard.audit.entry import policy_digest
from fairlead.guard.audit.heads import heads_beside
from guard.audit.helpers import CONSTITUTION, edit, entry, log_of, opened, released, replace_rows, rows, verified, whats

ROW = row_number(1, 0)


def test_a_log_that_nobody_touched_is_whole(tmp_path: Path) -> None:
    report = verified(log_of(tmp_path, 5))
    assert whats(report) == []
    assert (report.records, report.chains, report.exchanges, report.bytes) == (7, 1, 5, 40)
    assert (report.heads, report.cut, report.crashes, report.open) == ("match", False, 0, 0)


def test_without_heads_a_cut_tail_would_go_unseen_and_the_report_says_so(tmp_path: Path) -> None:
    path = log_of(tmp_path)
    edit(path, f"delete from records where row > {ROW + 4}")
    report = verified(path, heads=False)
    assert report.whole and report.heads == "none" and report.cut


@pytest.mark.parametrize(
    ("how", "what"),
    [
        (f"update records set body = replace(body, 'allow', 'hold') where row = {ROW + 3}", "record 3: was changed"),
        (f"update records set body = body || ' ' where row = {ROW + 3}", "record 3: was changed"),
        (f"update records set code = zeroblob(32) where row = {ROW + 3}", "record 3: was changed"),
        (f"delete from records where row = {ROW + 3}", "record 3: record 3 is missing"),
        (f"delete from records where row between {ROW + 2} and {ROW + 4}", "record 2: records 2 to 4 are missing"),
        (f"delete from records where row = {ROW + 1}", "record 1: record 1 is missing"),
        (f"delete from records where row > {ROW + 4}", "ends at record 4, its head is record 7: 3 were cut off"),
        ("delete from records", "the whole chain is gone"),
        (f"insert into records select row + 1, code, body from records where row = {ROW + 7}", "record 8: was changed"),
        (f"insert into records select row + 9, code, body from records where row = {ROW + 7}", "8 to 15 are missing"),
        (f"insert into records select row - 5, code, body from records where row = {ROW + 3}", "outside of every chain"),
        (f"insert into records select row << 1, code, body from records where row = {ROW + 3}", "chain 2, record 1: records 1 to 5 are missing"),
        ("update log set key = 'another'", "wrong key"),
        ("update log set id = 'another'", "record 1: was changed"),
        ("delete from log", "record 1: was changed"),
        ("insert into anchors values (1, 3, zeroblob(32), 1.0, '[]', 'forged')", "the mark of where it begins was changed"),
    ],
)  # fmt: skip
def test_what_was_done_to_the_rows_is_found(tmp_path: Path, how: str, what: str) -> None:
    path = log_of(tmp_path)
    edit(path, how)
    report = verified(path)
    assert not report.whole
    assert any(what in told for told in whats(report)), whats(report)


def test_swapped_records_are_found(tmp_path: Path) -> None:
    path = log_of(tmp_path)
    swap = f"update records set row = case row when {ROW + 3} then -{ROW} else row end"
    edit(path, swap, f"update records set row = {ROW + 3} where row = {ROW + 4}")
    edit(path, f"update records set row = {ROW + 4} where row = -{ROW}")
    assert "chain 1, record 3: was changed, moved or put in: its code does not fit" in whats(verified(path))


def test_records_renumbered_over_a_hole_are_found(tmp_path: Path) -> None:
    path = log_of(tmp_path)
    edit(path, f"delete from records where row = {ROW + 3}", f"update records set row = row - 1 where row > {ROW + 3}")
    assert any("record 3: was changed" in told for told in whats(verified(path)))


def test_another_key_is_found(tmp_path: Path) -> None:
    path = log_of(tmp_path)
    key = path.with_suffix(".key")
    key.write_text("0" * 64 + "\n")
    assert "wrong key" in whats(verified(path, heads=False))[0]
    edit(path, "update log set key = ?", values=(_key_id(key),))  # and who hides that still fits nothing
    told = whats(verified(path, heads=False))
    assert "not one record fits" in told[-1]


def _key_id(path: Path) -> str:
    from fairlead.guard.audit.chain import read_key

    return read_key(path).id


def test_a_head_that_was_forged_is_an_answer_of_no(tmp_path: Path) -> None:
    path = log_of(tmp_path)
    heads = heads_beside(path)
    heads.write_bytes(heads.read_bytes().replace(b'"seq":7', b'"seq":5'))
    with pytest.raises(InputError, match="this head was changed") as told:
        verified(path)
    assert told.value.exit_code == 1


def test_an_older_copy_of_the_whole_log_is_found_by_its_head(tmp_path: Path) -> None:
    path = log_of(tmp_path)
    old = tmp_path / "old.db"
    shutil.copy(path, old)
    log = opened(tmp_path)
    log.record(entry(9))
    log.close()
    shutil.copy(old, path)
    assert any("were cut off" in told for told in whats(verified(path)))


def test_another_log_made_with_the_same_key_is_found_by_its_head(tmp_path: Path) -> None:
    path = log_of(tmp_path)
    heads = heads_beside(path).read_bytes()
    path.unlink()
    heads_beside(path).unlink()
    log_of(tmp_path)
    heads_beside(path).write_bytes(heads)
    assert any("its head is of another log" in told for told in whats(verified(path)))


# ------------------------------------------------------------------------------------------------ coverage


def _with(tmp_path: Path, *entries: object, required: dict[str, list[str]] | None = None) -> list[str]:
    log = opened(tmp_path)
    if required is not None:
        log.policy(CONSTITUTION, "", required)
    for one in entries:
        log.record(one)  # type: ignore[arg-type]
    log.close()
    return whats(verified(tmp_path / "audit.db"))


def test_bytes_without_a_verdict_are_found(tmp_path: Path) -> None:
    [told] = _with(tmp_path, entry(1, released=(released("good day", ()),)))
    assert "record 2: request 0000000000000001: reply 0.0 [0, 8): 8 bytes not covered by a verdict" in told


def test_an_exchange_is_held_against_the_policy_that_it_began_under(tmp_path: Path) -> None:
    """A check more is asked for while it runs. One that names no policy, as old logs have it, goes by the last."""
    before, after = {"reply": ["rules", "secrets"]}, {"reply": ["rules", "secrets", "more"]}
    log = opened(tmp_path)
    log.policy(CONSTITUTION, "", before)
    log.policy(CONSTITUTION, "", after)
    for number, policy in enumerate((policy_digest(before), policy_digest(after), "", "f" * 16)):
        log.record(entry(number, policy=policy))
    log.close()
    after_told, old_told, unknown = whats(verified(tmp_path / "audit.db"))
    assert "request 0000000000000001" in after_told and "no verdict of more" in after_told
    assert "request 0000000000000002" in old_told and "no verdict of more" in old_told
    assert f"no policy {'f' * 16} was written down before it" in unknown


def test_a_verdict_that_is_not_there_covers_nothing(tmp_path: Path) -> None:
    [told] = _with(tmp_path, entry(1, released=(released("good day", ("v-elsewhere",)),)))
    assert "v-elsewhere is not among its verdicts" in told


def test_a_verdict_that_holds_covers_nothing(tmp_path: Path) -> None:
    held = Verdict("v-1", "secrets", outcome="hold")
    [told] = _with(tmp_path, entry(1, verdicts=(held,), released=(released("good day", ("v-1",)),)))
    assert "secrets said hold" in told


def test_bytes_without_the_verdict_of_a_check_that_had_to_look_are_found(tmp_path: Path) -> None:
    required = {"reply": ["secrets", "rules", "classifier"]}
    [told] = _with(tmp_path, entry(1), required=required)
    assert "no verdict of classifier" in told
    fine = {"reply": ["secrets", "rules"], "tool_call": ["classifier"]}
    (tmp_path / "b").mkdir()
    assert _with(tmp_path / "b", entry(1), required=fine) == []


def test_a_hole_between_ranges_is_found(tmp_path: Path) -> None:
    ids = tuple(v.id for v in entry(1).verdicts)
    parts = (released("good", ids), released("day", ids, start=5))
    told = _with(tmp_path, entry(1, released=parts, written=7))
    assert "does not go on where the text stood at 4" in told[0]


def test_more_bytes_written_than_covered_are_found(tmp_path: Path) -> None:
    [told] = _with(tmp_path, entry(1, written=9))
    assert "9 bytes were written to the client, the verdicts cover 8" in told


def test_ranges_of_a_request_go_on_from_entry_to_entry(tmp_path: Path) -> None:
    ids = tuple(v.id for v in entry(1).verdicts)
    first = entry(1, "good", more=True, written=-1)
    last = entry(1, released=(released(" day é", ids, start=4),), written=11)
    assert _with(tmp_path, first, entry(2), last) == []
    (tmp_path / "b").mkdir()
    again = entry(1, released=(released(" day", ids, start=0),), written=8)
    assert "does not go on" in _with(tmp_path / "b", first, again)[0]


def test_what_was_withheld_passed_let_through_and_not_counted_is_told(tmp_path: Path) -> None:
    log = opened(tmp_path)
    failed = Verdict("v-1", "critic", outcome="failed", evidence="late; let through, as on_error says")
    log.record(entry(1, withheld={"opaque reasoning": 2}, passed={"image": 1}))
    log.record(entry(2, withheld={"opaque reasoning": 1}, verdicts=(failed,), released=(released("hm", ("v-1",)),),
                     written=2))  # fmt: skip
    log.record(entry(3, written=-1))
    log.record(entry(4, "cut", more=True))
    log.close()
    report = verified(tmp_path / "audit.db")
    assert report.whole
    assert (dict(report.withheld), dict(report.passed)) == ({"opaque reasoning": 3}, {"image": 1})
    assert (report.open_failed, report.uncounted, report.open) == (1, 1, 1)


# ------------------------------------------------------------------------------------- whatever is done to it


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_byte_of_the_file_is_changed_the_records_are_the_same_or_it_is_found(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "audit.db"
    if not path.exists():
        log_of(tmp_path, 30)
    whole, before = path.read_bytes(), rows(path)
    at = data.draw(st.integers(0, len(whole) - 1), "at")
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255), "flip")
    try:
        path.write_bytes(changed)
        try:
            report = verified(path)
        except InputError:
            return
        assert not report.whole or rows(path) == before
    finally:
        path.write_bytes(whole)
        for rest in ("-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)


Edit = tuple[str, int, int]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(
        st.tuples(st.sampled_from(["delete", "swap", "copy", "body", "code"]), st.integers(1, 12), st.integers(1, 14)),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_is_done_to_the_records_it_is_found(tmp_path: Path, edits: list[Edit]) -> None:
    path = tmp_path / "audit.db"
    if not path.exists():
        log_of(tmp_path, 10)
    whole, before = path.read_bytes(), rows(path)
    table = {row: (code, body) for row, code, body in before}
    for how, a, b in edits:
        one, other = ROW + a, ROW + b
        if one not in table:
            continue
        code, body = table[one]
        if how == "delete":
            del table[one]
        elif how == "swap" and other in table:
            table[one], table[other] = table[other], table[one]
        elif how == "copy":
            table[other] = table[one]
        elif how == "body":
            table[one] = (code, body.replace("allow", "refuse", b) if "allow" in body else body + " ")
        elif how == "code":
            table[one] = (code[:-1] + bytes([code[-1] ^ b]), body)
    after = [(row, code, body) for row, (code, body) in sorted(table.items())]
    try:
        replace_rows(path, after)
        assert verified(path).whole == (after == before)
    finally:
        path.write_bytes(whole)
