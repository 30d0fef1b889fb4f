"""A run that collapses: noticed after its last update too, and what it goes back to are the last good weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.methods.policies import objectives, prompts, settings  # noqa: E402
from tests.methods.trainable import Tiny, tiny_model, weights  # noqa: E402

from fairlead.engine.logprobs import score  # noqa: E402
from fairlead.methods.loop import Run, StepRecord  # noqa: E402
from fairlead.methods.policy import Reinforced, train_policy  # noqa: E402
from fairlead.methods.rollouts import LocalSampler  # noqa: E402


@pytest.fixture(scope="module")
def model() -> Tiny:
    return tiny_model()


def run(model: Tiny, **more: Any) -> Reinforced:
    config = settings("grpo", **{"lr": 0.01, "kl": 0.0, "steps": 8, **more})
    return train_policy(model, prompts(), objectives(), config)


@pytest.mark.parametrize(("passes", "burst"), [(1, 1.3), (2, 2.5)])
def test_the_last_good_weights_are_those_of_a_run_that_ends_there(model: Tiny, passes: int, burst: float) -> None:
    """The KL grows from step to step: what is put back is neither the start nor what came after."""
    free = run(model, passes=passes, kl_burst=1e3)
    told = [record.told["kl_token"] for record in free.steps]
    bad = next(step for step, kl in enumerate(told) if kl > burst)
    assert bad >= 3, "there is a first and a last good step, and they are not the same"
    made = run(model, passes=passes, kl_burst=burst)
    assert made.stopped.startswith("KL burst") and len(made.records) == bad * passes
    good = (bad - 1) * passes
    assert f"those after {good} optimiser steps" in made.stopped
    shorter = run(model, passes=passes, steps=bad - 1, kl_burst=1e3)
    assert len(shorter.records) == good
    assert torch.equal(weights(made.model), weights(shorter.model))


def test_what_the_last_update_broke_is_seen_and_put_back(model: Tiny) -> None:
    made = run(model, steps=1, lr=0.3, kl_burst=0.5)
    assert made.stopped.startswith("KL burst") and "after the last step" in made.stopped
    assert "those after 0 optimiser steps" in made.stopped
    assert torch.equal(weights(made.model), weights(model))
    assert made.closing["kl_token"] == pytest.approx(0.0, abs=1e-9), "what is told last is of the weights that are left"
    broken = run(model, steps=1, lr=0.3, kl_burst=1e3)
    assert broken.stopped == "" and broken.closing["kl_token"] > 0.5


def test_the_closing_kl_is_of_the_final_weights_on_replies_of_their_own(model: Tiny) -> None:
    drawn: list[Any] = []

    class Seen(LocalSampler):
        def draw(self, asked: Any, how: Any) -> Any:
            found = super().draw(asked, how)
            drawn.append([(one.tokens, reply) for one, group in zip(asked, found, strict=True) for reply in group])
            return found

    config = settings("grpo", lr=0.01, temperature=0.8)
    made = train_policy(model, prompts(), objectives(), config, sampler=Seen(model.tokenizer))
    assert len(drawn) == config.steps + 1
    from fairlead.engine.layout import Tree

    trees = [Tree(prompt, (reply.tokens,)) for prompt, reply in drawn[-1]]
    now, was = (score(m.module, trees, temperature=0.8) for m in (made.model, model))
    apart_R = now.sum_R() - was.sum_R()
    assert made.closing["kl"] == pytest.approx(float(apart_R.mean()), rel=1e-9)
    assert made.closing["kl_token"] == pytest.approx(float(apart_R.sum()) / len(now.logp_N), rel=1e-9)
    assert made.closing["kl_error"] == pytest.approx(float(apart_R.std()) / len(apart_R) ** 0.5, rel=1e-9)
    assert made.closing["kl"] > 0 and made.closing["replies"] == len(trees)


def test_a_run_whose_kl_nobody_measures_says_nothing_of_it_at_the_end(model: Tiny) -> None:
    assert run(model, steps=1, lr=0.3, watch_kl=False).closing == {}


@pytest.mark.parametrize("killed", [False, True])
def test_what_is_put_back_has_drawn_good_replies_itself_also_where_they_are_drawn_ahead(
    model: Tiny, tmp_path: Path, killed: bool
) -> None:
    """Replies of older weights say nothing of those that learn from them; also after a kill in between."""

    def progress(record: StepRecord) -> None:
        if killed and record.step == 3:
            raise KeyboardInterrupt

    free = run(model, asynchronous=True, kl_burst=1e3)
    assert [record.told["kl_token"] > 1.0 for record in free.steps][:5] == [False] * 4 + [True]
    config = settings("grpo", lr=0.01, kl=0.0, steps=8, asynchronous=True, kl_burst=1.0)
    if killed:
        with pytest.raises(KeyboardInterrupt):
            train_policy(model, prompts(), objectives(), config, Run(checkpoint=tmp_path, every=3, progress=progress))
        (last,) = tmp_path.glob("training-*/step-00000004")  # as after a kill: the state before it is the newest
        shutil.rmtree(last)
    made = train_policy(model, prompts(), objectives(), config, Run(checkpoint=tmp_path, every=3))
    # The fifth replies, too far away, are those of the weights after 3 steps; the fourth were drawn with those after 2.
    assert made.stopped.startswith("KL burst") and "those after 2 optimiser steps" in made.stopped
    assert torch.equal(weights(made.model), weights(run(model, asynchronous=True, steps=2, kl_burst=1e3).model))
