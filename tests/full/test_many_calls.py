"""A thousand calls at once, one in ten failing: none lost, none duplicated, the budget never exceeded."""

from __future__ import annotations

import pytest

from support.many import ask_with_faults

pytestmark = pytest.mark.full


@pytest.mark.parametrize("provider", ["openai", "openai-responses", "anthropic"])
def test_a_thousand_calls_with_faults_none_lost_none_twice_the_budget_kept(provider: str) -> None:
    ask_with_faults(provider, 1000)
