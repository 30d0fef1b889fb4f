"""Generation is given up between two tokens once nobody waits, and only then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairlead.exchange import user
from fairlead.models import Sampling, open_model
from fairlead.models.serve import Batcher
from fairlead.models.wanted import Unwanted, check, while_
from support.fakes import Echo

PROMPT = [user("where is the red lamp ?")]


def _after(checks: int) -> tuple[list[int], Callable[[], bool]]:
    """How often it was asked, and a question that says no from the given time on."""
    asked = [0]

    def wanted() -> bool:
        asked[0] += 1
        return asked[0] <= checks

    return asked, wanted


def _stops(model: Any) -> None:
    asked, wanted = _after(3)
    with while_(wanted), pytest.raises(Unwanted):
        model.generate([PROMPT] * 2, Sampling(n=2, max_tokens=20, temperature=1.0, seed=3))
    assert asked == [4]
    asked, wanted = _after(10**6)
    with while_(wanted):
        replies = model.generate([PROMPT], Sampling(max_tokens=20, temperature=1.0, seed=3))
    assert replies == model.generate([PROMPT], Sampling(max_tokens=20, temperature=1.0, seed=3)) and asked[0] > 1


def test_the_apprentice_looks_before_every_token() -> None:
    from fairlead.models.apprentice import open_apprentice

    _stops(open_apprentice(torch=False))


@pytest.mark.parametrize("tight", [True, False])
def test_local_weights_look_before_every_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tight: bool) -> None:
    pytest.importorskip("torch", reason="torch is missing: pip install 'fairlead[train]'")
    from fairlead.engine import decode
    from support import tiny

    if not tight:
        monkeypatch.setattr(decode, "_runner", lambda *_: None)
    _stops(open_model(tiny.folder(tmp_path / "model")))


def test_without_a_question_there_is_nothing_to_look_at() -> None:
    check()
    with while_(lambda: False), pytest.raises(Unwanted):
        check()
    check()


def test_a_batch_goes_on_while_somebody_waits_and_what_nobody_wants_is_not_begun() -> None:
    class Stepping(Echo):
        calls, steps = 0, 0

        def generate(self, prompts: Any, sampling: Any = Sampling()) -> Any:  # noqa: B008
            type(self).calls += 1
            for _ in range(200):
                check()
                type(self).steps += 1
                time.sleep(0.01)
            return super().generate(prompts, sampling)

    batcher, left = Batcher(Stepping(), "stepping"), threading.Event()
    try:
        threading.Timer(0.1, left.set).start()
        with pytest.raises(Unwanted):
            batcher.ask(PROMPT, Sampling(), lambda: not left.is_set())
        assert 0 < Stepping.steps < 200 and Stepping.calls == 1
        with pytest.raises(Unwanted):
            batcher.ask(PROMPT, Sampling(), lambda: False)
        assert Stepping.calls == 1
        assert batcher.ask(PROMPT, Sampling())[0].text
    finally:
        batcher.close()
