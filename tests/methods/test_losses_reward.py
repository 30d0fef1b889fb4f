"""Each reward loss against a formula written apart from it in NumPy, float64; gradients against differences."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fairlead.methods.losses_reward import (  # noqa: E402
    bradley_terry,
    centring,
    length_correlation,
    length_pull,
    step_bce,
)


def rewards(n: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(0, 2, n)), torch.from_numpy(rng.normal(0, 2, n))


def naive(w: float, l: float, label: float, margin: float) -> float:  # noqa: E741
    """-label log p - (1 - label) log q; p: chosen leads by the margin, q: rejected does."""
    p, q = 1 / (1 + math.exp(-(w - l - margin))), 1 / (1 + math.exp(-(l - w - margin)))
    return -label * math.log(p) - (1 - label) * math.log(q)


@pytest.mark.parametrize("label", [1.0, 0.8, 0.5])
@pytest.mark.parametrize("margin", [0.0, 0.7])
def test_bradley_terry_equals_the_formula(label: float, margin: float) -> None:
    w, l = rewards()  # noqa: E741
    expected = [naive(float(a), float(b), label, margin) for a, b in zip(w, l, strict=True)]
    got = bradley_terry(w, l, label_B=label, margin_B=margin)
    assert torch.allclose(got, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_a_pair_and_its_swapped_twin_say_the_same() -> None:
    w, l = rewards()  # noqa: E741
    for p in (0.5, 0.7, 1.0):
        assert torch.allclose(
            bradley_terry(w, l, label_B=p, margin_B=0.4), bradley_terry(l, w, label_B=1 - p, margin_B=0.4)
        )


def test_a_tie_pulls_the_two_rewards_together_whatever_its_margin() -> None:
    w = torch.tensor([1.5, -0.5], dtype=torch.float64, requires_grad=True)
    l = torch.zeros(2, dtype=torch.float64)  # noqa: E741
    bradley_terry(w, l, label_B=0.5, margin_B=torch.tensor([0.0, 2.0])).sum().backward()
    assert w.grad[0] > 0 > w.grad[1]
    level = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    bradley_terry(level, torch.zeros(1), label_B=0.5, margin_B=2.0).sum().backward()
    assert float(level.grad) == 0


def test_it_stays_finite_for_extreme_rewards() -> None:
    far = torch.tensor([-2000.0, 2000.0], requires_grad=True)
    loss = bradley_terry(far, torch.zeros(2))
    loss.sum().backward()
    assert loss.tolist() == [2000.0, 0.0]
    assert torch.isfinite(far.grad).all()


def test_centring_is_the_squared_sum() -> None:
    w, l = rewards()  # noqa: E741
    assert torch.allclose(centring(w, l), torch.from_numpy((w.numpy() + l.numpy()) ** 2))


def test_length_correlation_of_pairs_is_that_of_their_differences() -> None:
    w, l = rewards(30)  # noqa: E741
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 90, (30, 2)).astype(float)
    reward_R = torch.stack([w, l], 1).flatten() + torch.arange(30).repeat_interleave(2)  # prompts differ: no matter
    got = length_correlation(reward_R, torch.from_numpy(lengths).flatten(), torch.arange(30).repeat_interleave(2))
    a, b = (w - l).numpy(), lengths[:, 0] - lengths[:, 1]
    assert float(got) == pytest.approx(float(a @ b / np.sqrt(a @ a * (b @ b))), abs=1e-12)


def test_length_correlation_of_groups_is_that_around_their_means() -> None:
    rng = np.random.default_rng(2)
    prompt = np.repeat([0, 1, 2], [4, 2, 9])
    reward, length = rng.normal(size=15) + prompt, rng.normal(size=15) - 3 * prompt
    for p in range(3):
        reward[prompt == p] -= reward[prompt == p].mean()
        length[prompt == p] -= length[prompt == p].mean()
    got = length_correlation(*(torch.from_numpy(x) for x in (reward + prompt, length * 7, prompt)))
    assert float(got) == pytest.approx(float(np.corrcoef(reward, length)[0, 1]), abs=1e-12)
    flat = length_correlation(torch.ones(4), torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0, 0, 1, 1]))
    assert float(flat) == 0


def test_length_pull_is_the_derivative_of_the_penalty() -> None:
    rng = np.random.default_rng(3)
    reward, length = torch.from_numpy(rng.normal(size=12)), torch.from_numpy(rng.normal(size=12))
    prompt = torch.arange(4).repeat_interleave(3)
    penalty, pull = length_pull(reward, length, prompt)
    assert penalty == pytest.approx(float(length_correlation(reward, length, prompt)) ** 2)
    for i in range(12):
        step = torch.zeros(12, dtype=torch.float64)
        step[i] = 1e-6
        up, down = (float(length_correlation(reward + s, length, prompt)) ** 2 for s in (step, -step))
        assert float(pull[i]) == pytest.approx((up - down) / 2e-6, abs=1e-7)


def test_step_bce_equals_the_formula_and_adds_up_over_micro_batches() -> None:
    z, _ = rewards()
    label = torch.from_numpy(np.random.default_rng(5).uniform(0, 1, 40))
    p = 1 / (1 + np.exp(-z.numpy()))
    expected = -(label.numpy() * np.log(p) + (1 - label.numpy()) * np.log(1 - p)).mean()
    whole = step_bce(z, label, steps=40)
    assert float(whole) == pytest.approx(float(expected), abs=1e-12)
    pieces = step_bce(z[:7], label[:7], steps=40) + step_bce(z[7:], label[7:], steps=40)
    assert float(pieces) == pytest.approx(float(whole), abs=1e-12)
    with pytest.raises(ValueError, match="steps is 0"):
        step_bce(z[:0], label[:0], steps=0)
