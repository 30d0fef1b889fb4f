"""The KL on replies of older weights, by enumeration: what is told is the drawer's KL, what is learnt the learner's.

Seven replies of one or two tokens (as in test_kl_estimators.py), each a step of its own; expectations are sums over
them with the probabilities of the policy that drew. That policy, the one that learns and the reference are three.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.methods.policies import objectives, prompts, settings  # noqa: E402
from tests.methods.test_kl_estimators import REPLIES, World, logits, tokens  # noqa: E402
from tests.methods.trainable import Tiny, tiny_model  # noqa: E402

from fairlead.engine.layout import Tree  # noqa: E402
from fairlead.engine.logprobs import ReplyLogprobs  # noqa: E402
from fairlead.methods import policy as loop  # noqa: E402
from fairlead.methods import policy_terms as terms  # noqa: E402
from fairlead.methods import reading  # noqa: E402
from fairlead.methods.config_policy import PolicyConfig  # noqa: E402
from fairlead.methods.experience import Experience, Part  # noqa: E402
from fairlead.methods.multipliers import adapted_kl  # noqa: E402

NOW = terms.Coefficients(kl=1.0)
WIDE: dict[str, Any] = {"importance_cap": 1e9, "mismatch_bound": 0.0, "share": "reply_sums", "asynchronous": True}


@pytest.fixture
def world() -> World:
    """Old is who drew."""
    theta = logits(1).requires_grad_()
    return World(theta, tokens(theta), tokens(logits(2)), tokens(logits(3)))


def spans() -> list[slice]:
    ends = [0]
    for reply in REPLIES:
        ends.append(ends[-1] + len(reply))
    return [slice(a, b) for a, b in pairwise(ends)]


def drawn(world: World, at: slice, config: PolicyConfig, staleness: float = 1.0) -> Experience:
    """The step of one reply, read as the loop reads it."""
    logp, old, ref = (values[at].detach() for values in (world.logp_N, world.old_N, world.ref_N))
    count = at.stop - at.start
    step = Experience(
        (Tree((1,), (tuple(range(count)),)),), (0,), torch.tensor([count]), old if staleness else logp,
        torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.bool), 0, 1, {"staleness": staleness},
        {"old_N": logp, "ref_N": ref, "reward_R": torch.zeros(1).double(), "greedy_P": torch.zeros(1).double()},
    )  # fmt: skip
    return reading.corrected(step, config, exact=True)


def gradient_of(world: World, config: PolicyConfig, replies: list[slice]) -> Any:
    """The expected gradient of the step's loss: rewards are 0, so that all of it is the KL's."""
    total = torch.zeros_like(world.theta)
    for at in replies:
        step = terms.advantages_of_step(drawn(world, at, config), objectives(), config, NOW)
        logp_N = world.logp_N[at]
        logp = ReplyLogprobs(logp_N, torch.zeros(len(logp_N), dtype=torch.long), step.count_R)
        counts = terms.counts_of(step, [0], config)
        loss, _ = terms.policy_loss(logp, Part(torch.arange(len(logp_N)), torch.arange(1)), step, config, counts, NOW)
        total += world.old_N[at].sum().exp() * world.gradient(loss)
    return total


def test_what_is_told_is_the_kl_of_the_policy_that_drew(world: World) -> None:
    config = PolicyConfig(**WIDE)
    for staleness, who in ((1.0, world.old_N), (0.0, world.logp_N.detach())):
        told = mean = truth = 0.0
        for at in spans():
            step = drawn(world, at, config, staleness)
            chance = float(who[at].sum().exp())
            told += chance * reading.told_of(step, objectives(), config, NOW)["kl"]
            mean += chance * float(terms.kl_of_policy(step).sum())
            truth += chance * float((who[at] - world.ref_N[at]).sum())
        assert told == pytest.approx(truth, abs=1e-12) and truth > 0.05
        assert (abs(mean - truth) > 0.05) == bool(staleness), "under newer weights their log-probs estimate no KL"


def test_the_kl_in_the_loss_pulls_where_the_learner_s_own_would(world: World) -> None:
    """Each step of a reply by the gradient of its own KL, with what came before as it was drawn."""
    config = PolicyConfig(kl=1.0, kl_estimator="k2", advantage="group", **WIDE)
    logp, ref, old = world.theta.log_softmax(-1), logits(2).log_softmax(-1), logits(3).log_softmax(-1)
    reach = torch.cat([torch.ones(1), old[0, 1:].exp()])
    wanted = world.gradient((reach[:, None] * logp.exp() * (logp - ref)).sum())
    assert torch.allclose(gradient_of(world, config, spans()), wanted, atol=1e-12)
    without = gradient_of(world, config.model_copy(update={"importance_cap": None}), spans())
    assert not torch.allclose(without, wanted, atol=1e-2)


def test_the_kl_in_the_reward_pulls_where_the_learner_s_own_would() -> None:
    """Replies of one token, whose ratio is the whole reply's: the gradient is that of KL(pi || ref) itself."""
    theta = logits(1)[0].requires_grad_()
    one = World(theta, theta.log_softmax(-1), logits(2)[0].log_softmax(-1), logits(3)[0].log_softmax(-1))
    wanted = one.gradient((one.logp_N.exp() * (one.logp_N - one.ref_N)).sum())
    config = PolicyConfig(kl=1.0, kl_in="reward", advantage="remax", loss="reinforce", replies=1, **WIDE)

    replies = [slice(i, i + 1) for i in range(3)]
    assert torch.allclose(gradient_of(one, config, replies), wanted, atol=1e-12)
    without = gradient_of(one, config.model_copy(update={"importance_cap": None}), replies)
    assert not torch.allclose(without, wanted, atol=1e-2)


def test_a_run_that_draws_ahead_tells_the_kl_of_who_drew_and_steers_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Experience] = []
    plain = loop.Loop.learn
    monkeypatch.setattr(loop.Loop, "learn", lambda self, step, number: seen.append(step) or plain(self, step, number))
    model: Tiny = tiny_model()
    config = settings("grpo", steps=4, lr=0.02, asynchronous=True, kl=0.05, kl_target=0.01)
    loop.train_policy(model, prompts(), objectives(), config)
    for step in seen[1:]:
        by_hand = float((step.sampler_N - step.more["ref_N"]).sum()) / step.replies
        newer = float((step.more["old_N"] - step.more["ref_N"]).sum()) / step.replies
        assert step.told["kl"] == pytest.approx(by_hand, abs=1e-12) and abs(newer - by_hand) > 1e-3
    after, before = seen[-1].told["kl_coefficient"], seen[-2].told["kl_coefficient"]
    assert after == pytest.approx(adapted_kl(before, max(seen[-2].told["kl"], 0.0), target=0.01), rel=1e-12)
