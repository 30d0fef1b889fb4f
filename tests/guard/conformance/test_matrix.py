"""The matrix: every cell through a real proxy, with the official SDKs as clients."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")
pytest.importorskip("openai", reason="openai is missing: pip install 'fairlead[dev]'")
pytest.importorskip("anthropic", reason="anthropic is missing: pip install 'fairlead[dev]'")

from fairlead.guard.audit.verify import verify
from guard.conformance import cells, holds
from guard.conformance.bench import Bench, bench


@pytest.fixture(scope="module")
def proxies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("conformance")) as made:
        yield made
    for name, proxy in made.proxies.items():
        log = made.logs[name].path
        report = verify(log, log.with_suffix(".key"), log.with_suffix(".heads"))
        assert report.whole, (name, report.breaks)
        assert (report.uncovered, report.uncounted, report.gaps) == (0, 0, 0), (name, report)
        assert proxy.worker.app.in_flight == 0
        made.logs[name].read()
        twice = [request for request, entries in made.logs[name].entries.items() if len(entries) != 1]
        assert not twice, f"{len(twice)} requests stand twice in the log of {name}"
    print(f"\n{cells.table(made.done)}\nbroken: {len(made.broken)}")


@pytest.mark.parametrize("cell", cells.pairs(), ids=lambda cell: cell.id)
def test_cell(proxies: Bench, cell: cells.Cell) -> None:
    assert proxies.run(cell) == []


def test_what_is_no_cell_says_why() -> None:
    assert all(cells.reason(cell) == "" for cell in cells.CELLS)
    left_out = [cell for cell in cells.every() if cell not in set(cells.CELLS)]
    assert len(left_out) + len(cells.CELLS) == 5184
    assert all(cells.reason(cell) for cell in left_out)
    for name, values in cells.AXES.items():
        assert {getattr(cell, name) for cell in cells.CELLS} == set(values)
