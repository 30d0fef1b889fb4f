"""KL estimators where everything can be enumerated: values, and the gradient each gives in each place, exactly.

A policy over seven replies of one or two tokens: the first token ends the reply (token 0) or leads to a second one. All
expectations are sums over the seven; the truth is the derivative of sum p log(p / q) itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fairlead.methods import kl_estimators  # noqa: E402
from fairlead.methods.advantages import reward_to_go  # noqa: E402
from fairlead.methods.kl_estimators import k1, k2, k3, reweighted  # noqa: E402
from fairlead.methods.losses_policy import reinforce  # noqa: E402
from fairlead.methods.shaping import token_rewards  # noqa: E402

REPLIES = [(0,), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]  # token 0 first ends the reply
REPLY = torch.tensor([0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6])
COUNT = torch.tensor([1, 2, 2, 2, 2, 2, 2])
Estimator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def logits(seed: int) -> torch.Tensor:
    """A row for the first token, one for the second after 1, one after 2."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(3, 3)))


def tokens(theta: torch.Tensor) -> torch.Tensor:
    """Log-probs of all tokens of all replies, flat, [13]."""
    logp = theta.log_softmax(-1)
    return torch.stack([logp[0 if place == 0 else y[0], t] for y in REPLIES for place, t in enumerate(y)])


def replies(flat: torch.Tensor) -> torch.Tensor:
    return flat.new_zeros(7).index_add(0, REPLY, flat)


@dataclass
class World:
    theta: torch.Tensor
    logp_N: torch.Tensor
    ref_N: torch.Tensor
    old_N: torch.Tensor

    def gradient(self, scalar: torch.Tensor) -> torch.Tensor:
        if not scalar.requires_grad:
            return torch.zeros_like(self.theta)
        return torch.autograd.grad(scalar, self.theta, retain_graph=True)[0]

    @property
    def logp_R(self) -> torch.Tensor:
        return replies(self.logp_N)

    @property
    def ref_R(self) -> torch.Tensor:
        return replies(self.ref_N)

    @property
    def p_R(self) -> torch.Tensor:
        return self.logp_R.exp().detach()

    def reverse(self) -> torch.Tensor:
        return (self.logp_R.exp() * (self.logp_R - self.ref_R)).sum()

    def forward(self) -> torch.Tensor:
        return (self.ref_R.exp() * (self.ref_R - self.logp_R)).sum()


@pytest.fixture
def world() -> World:
    theta = logits(1).requires_grad_()
    return World(theta, tokens(theta), tokens(logits(2)), tokens(logits(3)))


def test_values_against_numpy(world: World) -> None:
    p, q = world.p_R.numpy(), world.ref_R.exp().numpy()
    assert p.sum() == pytest.approx(1.0) and q.sum() == pytest.approx(1.0)
    kl = float((p * np.log(p / q)).sum())
    mean = {name: float(world.p_R @ f(world.logp_R, world.ref_R).detach()) for name, f in ESTIMATORS.items()}
    assert mean["k1"] == pytest.approx(kl, abs=1e-12)
    assert mean["k3"] == pytest.approx(kl, abs=1e-12)
    assert mean["k2"] == pytest.approx(float((p * np.log(p / q) ** 2).sum() / 2), abs=1e-12)
    assert abs(mean["k2"] - kl) > 0.05 * kl  # its bias, not small here
    each = k3(world.logp_R, world.ref_R).detach().numpy()
    assert np.allclose(each, q / p - 1 - np.log(q / p), atol=1e-12) and (each >= 0).all()
    assert (k1(world.logp_R, world.ref_R) < 0).any()


def test_the_bias_of_k2_vanishes_to_second_order() -> None:
    """Near the reference k2's mean and the KL agree: their relative difference shrinks with the distance."""
    away = logits(5)
    off = []
    for step in (0.2, 0.02, 0.002):
        logp, ref = replies(tokens(logits(2) + step * away)), replies(tokens(logits(2)))
        kl = float((logp.exp() * (logp - ref)).sum())
        off.append(abs(float(logp.exp() @ k2(logp, ref)) / kl - 1))
    assert off[0] > 5 * off[1] > 25 * off[2]


def test_off_policy_values(world: World) -> None:
    """Samples of another policy: the ratio makes k1 and k3 unbiased for the KL of this one."""
    old_R = replies(world.old_N)
    for f in (k1, k3):
        got = (old_R.exp() * reweighted(f(world.logp_R, world.ref_R), world.logp_R - old_R)).sum()
        assert got.item() == pytest.approx(world.reverse().item(), abs=1e-12)
        assert (old_R.exp() * f(world.logp_R, world.ref_R)).sum().item() != pytest.approx(
            world.reverse().item(), abs=1e-3
        )


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
REVERSE, FORWARD, NONE, BOTH, WRONG = "grad KL(pi || ref)", "grad KL(ref || pi)", "0", "the difference of both", "wrong"
TABLE = {
    "reward": {"k1": REVERSE, "k2": WRONG, "k3": BOTH},
    "loss": {"k1": NONE, "k2": REVERSE, "k3": FORWARD},
    "reweighted": {"k1": REVERSE, "k2": WRONG, "k3": REVERSE},
}


@pytest.mark.parametrize("old", ["on policy", "off policy"])
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("place", TABLE)
def test_the_table_of_gradients(world: World, place: str, name: str, old: str) -> None:
    """Expected gradients by enumeration. Off policy, the first two lines carry the ratio as a constant factor."""
    drawn_R = world.logp_R.detach() if old == "on policy" else replies(world.old_N)
    ratio_R = (world.logp_R.detach() - drawn_R).exp()
    kl_R = ESTIMATORS[name](world.logp_R, world.ref_R)
    if place == "reward":
        mean = (drawn_R.exp() * ratio_R * kl_R.detach() * world.logp_R).sum()
    elif place == "loss":
        mean = (drawn_R.exp() * ratio_R * kl_R).sum()
    else:
        mean = (drawn_R.exp() * reweighted(kl_R, world.logp_R - drawn_R)).sum()
    got = world.gradient(mean)
    reverse, forward = world.gradient(world.reverse()), world.gradient(world.forward())
    candidates = {REVERSE: reverse, FORWARD: forward, NONE: torch.zeros_like(got), BOTH: reverse - forward}
    fits = [what for what, gradient in candidates.items() if torch.allclose(got, gradient, atol=1e-12)]
    assert fits == ([] if TABLE[place][name] == WRONG else [TABLE[place][name]])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_off_policy_without_a_ratio_no_loss_gives_the_gradient(world: World, name: str) -> None:
    mean = (replies(world.old_N).exp() * ESTIMATORS[name](world.logp_R, world.ref_R)).sum()
    assert not torch.allclose(world.gradient(mean), world.gradient(world.reverse()), atol=1e-3)


def test_the_documented_table_is_this_one() -> None:
    lines = [line.strip() for line in (kl_estimators.__doc__ or "").splitlines()]
    for place, start in (
        ("reward", "in the reward"),
        ("loss", "in the loss, diff"),
        ("reweighted", "in the loss, times"),
    ):
        (line,) = [line for line in lines if line.startswith(start)]
        cells = [cell.strip() for cell in line.split("  ") if cell.strip()][-3:]
        for cell, meant in zip(cells, TABLE[place].values(), strict=True):
            told = {BOTH: "wrong (*)", NONE: "0: noise alone"}.get(meant, meant)
            assert cell == told


def test_token_by_token_in_the_loss_is_a_partial_gradient(world: World) -> None:
    """Per token, values add up to the reply's KL; k2's gradient in the loss is that of each step with its past fixed."""
    weight_N = world.p_R[REPLY]
    for f in (k1, k3):
        total = (weight_N * f(world.logp_N, world.ref_N)).sum().item()
        assert total == pytest.approx(world.reverse().item(), abs=1e-12)
    got = world.gradient((weight_N * k2(world.logp_N, world.ref_N)).sum())
    logp, ref = world.theta.log_softmax(-1), logits(2).log_softmax(-1)
    reach = torch.cat([torch.ones(1), logp[0, 1:].exp().detach()])  # P(the row is reached), held fixed
    steps = (reach[:, None] * logp.exp() * (logp - ref)).sum()
    assert torch.allclose(got, world.gradient(steps), atol=1e-12)
    assert not torch.allclose(got, world.gradient(world.reverse()), atol=1e-3)


def test_k1_in_the_reward_with_what_is_to_come_is_the_whole_gradient(world: World) -> None:
    """Through the functions the loop calls: token_rewards, reward_to_go, reinforce."""
    reward_N = token_rewards(torch.zeros(7, dtype=torch.float64), k1(world.logp_N, world.ref_N), COUNT, beta=1.0)
    adv_N = reward_to_go(reward_N, COUNT)
    got = world.gradient((world.p_R[REPLY] * reinforce(world.logp_N, adv_N)).sum())
    assert torch.allclose(got, world.gradient(world.reverse()), atol=1e-12)
    at_once = world.gradient((world.p_R[REPLY] * reinforce(world.logp_N, reward_N)).sum())
    assert not torch.allclose(at_once, world.gradient(world.reverse()), atol=1e-3)


def test_k3_keeps_its_digits_near_the_reference() -> None:
    small = torch.tensor([1e-4, -1e-4], dtype=torch.float32)
    assert torch.allclose(k3(torch.zeros(2), small), torch.tensor([5e-9, 5e-9]), rtol=2e-2, atol=0.0)
    assert k3(torch.tensor([-1.5]), torch.tensor([-1.5])).item() == 0.0
    assert math.isinf(k3(torch.tensor([-200.0]), torch.tensor([0.0])).item())  # said, not hidden
