"""A real vLLM keeps the contract of remote models, as vLLM and as any OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fairlead import apprentice
from fairlead.models import open_model
from support.contract import CONTRACT
from support.vllm import served

pytest.importorskip("torch")
pytestmark = [pytest.mark.full, pytest.mark.vllm]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with served(apprentice.path().resolve(), "apprentice", log) as address:
        yield address


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("provider", ["vllm", "openai"])
def test_vllm_keeps_the_contract(provider: str, check, url: str, tmp_path: Path) -> None:
    check(open_model(f"{provider}/apprentice@{url}", records=tmp_path))
