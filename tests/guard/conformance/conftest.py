"""The proxies of the matrix, once for each file; at the end their audit logs are verified."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from guard.conformance.bench import Bench


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    from guard.conformance.bench import bench

    with bench(tmp_path_factory.mktemp("conformance")) as made:
        yield made
    assert made.faults() == []
    print(f"\n{made.table()}")
