"""A real vLLM keeps the contract of remote models, as vLLM and as any OpenAI-compatible server."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.models import open_model
from support.contract import CONTRACT

pytest.importorskip("torch")
pytestmark = [pytest.mark.full, pytest.mark.vllm]


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("provider", ["vllm", "openai"])
def test_vllm_keeps_the_contract(provider: str, check, url: str, tmp_path: Path) -> None:
    check(open_model(f"{provider}/apprentice@{url}", records=tmp_path))
