"""Each loss against a formula written apart from it, in float64; gradients against their known values."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from fairlead.methods.losses import chosen_nll, dpo, preference_metrics, sft_nll  # noqa: E402


def pairs(n: int = 50, scale: float = 8.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [-scale * torch.rand(n, generator=generator, dtype=torch.float64) for _ in range(4)]


def naive_dpo(pc: float, pr: float, rc: float, rr: float, beta: float, label: float) -> float:
    """-label log p - (1 - label) log(1 - p), with p = sigmoid written out."""
    p = 1 / (1 + math.exp(-beta * (pc - rc - pr + rr)))
    return -label * math.log(p) - (1 - label) * math.log(1 - p)


@pytest.mark.parametrize("label", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("beta", [0.05, 0.3, 2.0])
def test_dpo_equals_the_formula(beta: float, label: float) -> None:
    sides = pairs()
    expected = [naive_dpo(*(float(side[i]) for side in sides), beta, label) for i in range(50)]
    assert torch.allclose(
        dpo(*sides, beta=beta, label_B=label), torch.tensor(expected, dtype=torch.float64), atol=1e-12
    )


@pytest.mark.parametrize("label", [1.0, 0.8])
def test_dpo_gradient_equals_the_formula(label: float) -> None:
    beta = 0.3
    pc, pr, rc, rr = pairs()
    pc.requires_grad_(), pr.requires_grad_()
    dpo(pc, pr, rc, rr, beta=beta, label_B=torch.full((50,), label, dtype=torch.float64)).sum().backward()
    p = 1 / (1 + torch.exp(-beta * (pc - rc - pr + rr))).detach()
    assert torch.allclose(pc.grad, beta * (p - label), atol=1e-12)
    assert torch.allclose(pr.grad, -beta * (p - label), atol=1e-12)


def test_dpo_where_policy_equals_reference() -> None:
    """The loss is log 2 and the gradient -beta (label - 1/2) on the chosen side: the known first step."""
    pc, pr, _, _ = pairs()
    pc.requires_grad_(), pr.requires_grad_()
    loss = dpo(pc, pr, pc.detach(), pr.detach(), beta=0.2, label_B=1.0)
    loss.sum().backward()
    assert torch.allclose(loss, torch.full_like(loss, math.log(2)))
    assert torch.allclose(pc.grad, torch.full_like(pc, -0.1))
    assert torch.allclose(pr.grad, torch.full_like(pr, 0.1))


def test_soft_labels_are_symmetric() -> None:
    """(p, pair) and (1 - p, swapped pair) are the same statement, so they have the same loss."""
    pc, pr, rc, rr = pairs()
    for p in (0.5, 0.7, 1.0):
        assert torch.allclose(dpo(pc, pr, rc, rr, beta=0.3, label_B=p), dpo(pr, pc, rr, rc, beta=0.3, label_B=1 - p))


def test_dpo_stays_finite_for_extreme_margins() -> None:
    far = torch.tensor([-2000.0, 2000.0], requires_grad=True)
    zero = torch.zeros(2)
    loss = dpo(far, zero, zero, zero, beta=1.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(far.grad).all()
    assert loss[0].item() == pytest.approx(2000.0)


def test_sft_nll_takes_its_count_from_the_step() -> None:
    logp_N = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)
    whole = sft_nll(logp_N, tokens=3)
    assert whole.item() == pytest.approx(2.0)
    assert (sft_nll(logp_N[:1], tokens=3) + sft_nll(logp_N[1:], tokens=3)).item() == pytest.approx(whole.item())
    with pytest.raises(ValueError, match="tokens is 0"):
        sft_nll(logp_N, tokens=0)


def test_chosen_nll_is_per_token() -> None:
    assert chosen_nll(torch.tensor([-6.0, -1.0]), torch.tensor([3, 1])).tolist() == [2.0, 1.0]


def test_preference_metrics() -> None:
    pc, pr = torch.tensor([-1.0, -4.0, -2.0]), torch.tensor([-3.0, -1.0, -2.0])
    rc, rr = torch.tensor([-2.0, -2.0, -2.0]), torch.tensor([-2.0, -2.0, -2.0])
    got = preference_metrics(pc, pr, rc, rr, beta=0.5, label_B=torch.tensor([1.0, 0.9, 0.5]))
    assert (got["pairs"], got["decided"], got["accurate"]) == (3, 2, 1)
    assert got["margin"] == pytest.approx(0.5 * (2 - 3 + 0))
    assert (got["chosen_logp"], got["chosen_drift"], got["rejected_drift"]) == (-7, -1, 0)
    untrained = preference_metrics(rc, rr, rc, rr, beta=0.5, label_B=torch.ones(3))
    assert untrained["accurate"] == 1.5
