"""What several of the long tests stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fairlead import apprentice
from support.vllm import served


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a real vLLM that serves the apprentice."""
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with served(apprentice.path().resolve(), "apprentice", log) as address:
        yield address
