"""The whole matrix of the guard: every valid combination, where the usual suite runs a covering part of it."""

from __future__ import annotations

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")
pytest.importorskip("openai", reason="openai is missing: pip install 'fairlead[dev]'")
pytest.importorskip("anthropic", reason="anthropic is missing: pip install 'fairlead[dev]'")

from guard.conformance import cells
from guard.conformance.bench import bench

pytestmark = pytest.mark.full


def test_every_cell(tmp_path_factory: pytest.TempPathFactory) -> None:
    with bench(tmp_path_factory.mktemp("conformance")) as matrix:
        broken = {cell.id: faults for cell in cells.CELLS if (faults := matrix.run(cell))}
    print(matrix.table())
    assert broken == {}
    assert matrix.faults() == []
