"""What checks in shadow mode would have done: counted by exchange, with an interval."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from fairlead.guard.audit import Verdict
from fairlead.guard.audit.shadow import Shadow, shadow
from fairlead.guard.audit.store import connect
from fairlead.stats import wilson
from guard.audit.helpers import entry, opened


def would(*outcomes: str, principle: str = "voice") -> tuple[Verdict, ...]:
    return tuple(Verdict(f"v-{n}", "critic", principle, outcome) for n, outcome in enumerate(outcomes))


def rows(folder: Path, *shadows: tuple[Verdict, ...], **more: object) -> list[Shadow]:
    log = opened(folder)
    for number, one in enumerate(shadows):
        log.record(entry(number, shadow=one))
    log.close()
    with closing(connect(log.path, readonly=True)) as db:
        return shadow(db, **more)  # type: ignore[arg-type]


def test_exchanges_are_counted_once_by_the_most_severe_and_failures_apart(tmp_path: Path) -> None:
    [row] = rows(tmp_path, would("allow"), would("allow", "revise"), would("refuse", "revise"), would("failed"), ())
    assert (row.principle, row.check, row.n, row.acted, row.failed) == ("voice", "critic", 4, 2, 1)
    assert row.outcomes == {"allow": 1, "failed": 1, "refuse": 1, "revise": 1}
    told = wilson(2, 3)
    assert (row.rate, row.low, row.high) == (told.value, told.low, told.high)
    assert (row.at_least, row.at_most) == (0.5, 0.75)


def test_rows_stand_by_rate_and_only_failures_tell_no_rate(tmp_path: Path) -> None:
    often, never = would("refuse", principle="a"), would("failed", principle="b")
    first, second = rows(tmp_path, often + never)
    assert (first.principle, first.rate) == ("a", 1.0)
    assert (second.rate, second.low, second.at_least, second.at_most) == (None, None, 0.0, 1.0)


@pytest.mark.parametrize(("since", "n"), [(0.0, 3), (1_800_000_001.0, 2), (1_800_000_009.0, 0)])
def test_only_what_is_not_older(tmp_path: Path, since: float, n: int) -> None:
    found = rows(tmp_path, *[would("allow")] * 3, since=since)
    assert sum(row.n for row in found) == n
    (tmp_path / "b").mkdir()
    assert rows(tmp_path / "b", would("allow"), constitution="another") == []
