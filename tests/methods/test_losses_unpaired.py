"""KTO, BCO and APO-zero on single replies against formulas written apart from them."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from fairlead.methods.losses_unpaired import (  # noqa: E402
    apo_zero_unpaired,
    bco,
    kto,
    reference_point,
    reward_shift,
)

BETA = 0.3


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def replies(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, generator=generator, dtype=torch.float64) * 4, torch.arange(n) % 3 > 0


@pytest.mark.parametrize("z", [0.0, 1.7])
def test_kto_equals_the_formula(z: float) -> None:
    ratio, good = replies()
    expected = [
        1.3 * (1 - sigma(BETA * (x - z))) if up else 0.7 * (1 - sigma(BETA * (z - x)))
        for x, up in zip(ratio.tolist(), good.tolist(), strict=True)
    ]
    got = kto(ratio, good, beta=BETA, z=z, good=1.3, bad=0.7)
    assert torch.allclose(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-12)
    assert (got >= 0).all() and (got <= 1.3).all()


def test_apo_zero_is_kto_against_0() -> None:
    ratio, good = replies()
    assert torch.equal(apo_zero_unpaired(ratio, good, beta=BETA), kto(ratio, good, beta=BETA, z=0.0))


@pytest.mark.parametrize("shift", [0.0, -0.4])
def test_bco_equals_the_formula(shift: float) -> None:
    ratio, good = replies()
    density = torch.linspace(0.5, 3, len(ratio), dtype=torch.float64)
    expected = [
        -1.3 * math.log(sigma(BETA * x - shift)) if up else -0.7 * d * math.log(sigma(shift - BETA * x))
        for x, up, d in zip(ratio.tolist(), good.tolist(), density.tolist(), strict=True)
    ]
    got = bco(ratio, good, beta=BETA, shift=shift, good=1.3, bad=0.7, density_B=density)
    assert torch.allclose(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-12)
    plain = bco(ratio, good, beta=BETA, shift=shift, good=1.3, bad=0.7)
    assert torch.equal(got[good], plain[good]) and not torch.equal(got[~good], plain[~good])


@pytest.mark.parametrize("loss", ["kto", "bco", "apo_zero"])
def test_a_step_of_sgd_with_rate_1_raises_good_and_lowers_bad(loss: str) -> None:
    ratio = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    good = torch.tensor([True, False])
    optimiser = torch.optim.SGD([ratio], lr=1.0)
    made = {
        "kto": lambda: kto(ratio, good, beta=BETA, z=0.2),
        "bco": lambda: bco(ratio, good, beta=BETA, shift=0.1),
        "apo_zero": lambda: apo_zero_unpaired(ratio, good, beta=BETA),
    }[loss]()
    made.sum().backward()
    optimiser.step()
    assert ratio[0] > 1e-3 and ratio[1] < -1e-3


def test_at_the_start_kto_knows_its_slope() -> None:
    """Policy equals reference: loss one half, slope beta / 4 either way."""
    ratio = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = kto(ratio, torch.tensor([True, False]), beta=BETA, z=0.0)
    loss.sum().backward()
    assert loss.tolist() == [0.5, 0.5]
    assert ratio.grad.tolist() == pytest.approx([-BETA / 4, BETA / 4])


def test_the_reference_point_is_a_mean_never_below_0() -> None:
    assert reference_point(torch.tensor([1.0, 2.0, -0.6])) == pytest.approx(0.8)
    assert reference_point(torch.tensor([-1.0, 0.5])) == 0.0
    with pytest.raises(ValueError, match="no mismatched pairs"):
        reference_point(torch.zeros(0))


def test_the_reward_shift_lies_halfway_whatever_the_counts() -> None:
    assert reward_shift(3.0, -1.0) == 1.0


@pytest.mark.parametrize("far", [-3000.0, 3000.0])
def test_far_out_values_stay_finite(far: float) -> None:
    ratio = torch.full((2,), far, requires_grad=True)
    good = torch.tensor([True, False])
    loss = kto(ratio, good, beta=1.0, z=0.0) + bco(ratio, good, beta=1.0, shift=0.0)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(ratio.grad).all()
