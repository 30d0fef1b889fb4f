"""The contract against a provider, with a real key and for real money: run by `make live` alone (tests/live/run.py)."""

from __future__ import annotations

import os

import pytest

from fairlead.models import Budget, open_model
from fairlead.models.remote import RemoteModel
from support.contract import CONTRACT

MODELS = os.environ.get("FAIRLEAD_LIVE_MODELS", "").split()
BUDGET = Budget(tokens=100_000)  # of all checks on all models together


@pytest.mark.skipif(not MODELS, reason="asks a provider for money: only `make live` names the models")
@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("spec", MODELS or ["none"])
def test_a_provider_keeps_the_contract(spec: str, check) -> None:
    model = open_model(spec, budget=BUDGET)
    assert isinstance(model, RemoteModel)
    check(model)
