"""What a finished run leaves beside its numbers: the report, and a card in the folder of the model that came out."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.cli.align import _report
from report import example


@pytest.mark.parametrize("weights", [True, False])
def test_the_model_that_came_out_gets_its_card(weights: bool, tmp_path: Path) -> None:
    body, lines = example.results(n=20)
    folder = Path(example.write(tmp_path / "run", body, lines))
    if weights:
        (folder / "model").mkdir(exist_ok=True)
    _report(folder)
    assert (folder / "report.html").is_file()
    card = folder / "model" / "README.md"
    assert card.exists() is weights
    if weights:
        assert "library_name: transformers" in card.read_text(encoding="utf-8")
