"""Reinforcement learning with rollouts from real vLLM servers: weights taken up every step, replies asked for once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fairlead.apprentice import cases  # noqa: E402
from fairlead.exchange import Exchange  # noqa: E402
from fairlead.judges.gold import gold  # noqa: E402
from fairlead.methods.config_policy import ALGORITHMS  # noqa: E402
from fairlead.methods.loop import Run, StepRecord  # noqa: E402
from fairlead.methods.policy import train_policy  # noqa: E402
from fairlead.methods.rewards import Objective  # noqa: E402
from fairlead.methods.rollouts_vllm import VllmSampler  # noqa: E402
from fairlead.methods.rollouts_vllm_weights import start_folder  # noqa: E402
from fairlead.models import open_model  # noqa: E402
from fairlead.models.remote import Limits  # noqa: E402
from support.vllm import served  # noqa: E402

pytestmark = [pytest.mark.full, pytest.mark.vllm]
LIMITS = Limits(concurrency=16, attempts=4, timeout=300, deadline=600, backoff=0.2)


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Two replicas, of a folder whose LM head is apart from the embeddings (see docs/rollouts-vllm.md)."""
    where = tmp_path_factory.mktemp("vllm")
    model: Any = open_model("apprentice", torch=True)
    start = start_folder(model.module, model.tokenizer, where / "start")
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                served(
                    start, "apprentice", where / f"{i}.log", "--logprobs-mode", "processed_logprobs", dev=True
                )
            )
            for i in range(2)
        ]  # fmt: skip


def prompts() -> list[Exchange]:
    return [Exchange(c.messages, (), c.meta) for c in cases.cases("voice", "train", 40, 0)]


def learn(urls: list[str], where: Path, run: Run | None = None, **more: Any) -> Any:
    model: Any = open_model("apprentice", torch=True)
    settings = {"steps": 3, "prompts_per_step": 8, "replies": 4, "max_tokens": 32, "lr": 2e-4, **more}
    sampler = VllmSampler("apprentice", urls, model.tokenizer, weights=where, limits=LIMITS)
    goal = [Objective(gold("voice"))]
    return train_policy(model, prompts(), goal, ALGORITHMS["grpo"].settings(settings), run, sampler=sampler)


def test_every_step_draws_with_the_weights_of_the_last(urls: list[str], tmp_path: Path) -> None:
    made = learn(urls, tmp_path)
    assert len(made.steps) == 3 and made.missing == {"gold:voice": 0}
    for record in made.steps:
        assert record.told["staleness"] == 0
        assert record.told["mismatch_mean"] < 1e-3, "float32 on both sides"
        assert "importance_capped" not in record.told
    assert abs(made.steps[-1].told["kl"]) > 1e-4, "the weights moved, and the servers' with them"


def test_one_step_off_is_measured_and_corrected(urls: list[str], tmp_path: Path) -> None:
    made = learn(urls, tmp_path, asynchronous=True, lr=1e-3)
    assert [r.told["staleness"] for r in made.steps] == [0, 1, 1]
    apart = [r.told["mismatch_mean"] for r in made.steps]
    assert apart[0] < 1e-3 < apart[2]
    assert "importance_capped" in made.steps[2].told and "importance_capped" not in made.steps[0].told


def test_a_run_that_is_killed_goes_on_with_the_replies_it_had(urls: list[str], tmp_path: Path) -> None:
    def die(record: StepRecord) -> None:
        if record.step == 2:
            raise Killed

    with pytest.raises(Killed):
        learn(urls, tmp_path / "w", Run(checkpoint=tmp_path / "c", every=1, progress=die), passes=2, steps=2)
    seen: list[int] = []
    run = Run(checkpoint=tmp_path / "c", every=1, progress=lambda r: seen.append(r.step))
    made = learn(urls, tmp_path / "w", run, passes=2, steps=2)
    assert seen == [3] and len(made.records) == 4
