"""The matrix: every cell through a real proxy, with the official SDKs as clients."""

from __future__ import annotations

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")
pytest.importorskip("openai", reason="openai is missing: pip install 'fairlead[dev]'")
pytest.importorskip("anthropic", reason="anthropic is missing: pip install 'fairlead[dev]'")

from guard.conformance import cells
from guard.conformance.bench import Bench


@pytest.mark.parametrize("cell", cells.pairs(), ids=lambda cell: cell.id)
def test_cell(matrix: Bench, cell: cells.Cell) -> None:
    assert matrix.run(cell) == []


def test_what_is_no_cell_says_why() -> None:
    assert all(cells.reason(cell) == "" for cell in cells.CELLS)
    left_out = [cell for cell in cells.every() if cell not in set(cells.CELLS)]
    assert len(left_out) + len(cells.CELLS) == 5184
    assert all(cells.reason(cell) for cell in left_out)
    for name, values in cells.AXES.items():
        assert {getattr(cell, name) for cell in cells.CELLS} == set(values)
