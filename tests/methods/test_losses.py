"""Each loss against a formula written apart from it, in float64; gradients against their known values."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest

torch = pytest.importorskip("torch")

from fairlead.methods import losses  # noqa: E402
from fairlead.methods.losses import chosen_nll, divergence_score, dpo, log_odds, sft_nll, soft  # noqa: E402

BETA = 0.3


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


# ------------------------------------------------------- every pairwise loss against its formula, pair by pair


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def odds(mean_logp: float) -> float:
    p = math.exp(mean_logp)
    return p / (1 - p)


def naive_exo(c: float, r: float) -> float:
    q = sigma(BETA * (c - r))
    return q * math.log(q / 0.95) + (1 - q) * math.log((1 - q) / 0.05)


def naive_discopop(c: float, r: float) -> float:
    z = BETA * (c - r)
    share = sigma(z / 0.05)
    return (1 - share) * math.log(1 + math.exp(-z)) + share * math.exp(-z)


def naive_robust(c: float, r: float) -> float:
    right, wrong = -math.log(sigma(BETA * (c - r))), -math.log(sigma(BETA * (r - c)))
    return (0.9 * right - 0.1 * wrong) / 0.8


def naive_nca(c: float, r: float) -> float:
    up, down = BETA * c, BETA * r
    return -math.log(sigma(up)) - (math.log(sigma(-up)) + math.log(sigma(-down))) / 2


def naive_bco_pair(c: float, r: float) -> float:
    return -math.log(sigma(BETA * c)) - math.log(1 - sigma(BETA * r))


LOSSES: dict[str, tuple[Callable[..., torch.Tensor], Callable[[float, float], float]]] = {
    "sigmoid": (partial(losses.sigmoid, beta=BETA), lambda c, r: -math.log(sigma(BETA * (c - r)))),
    "cpo": (partial(losses.cpo, beta=BETA), lambda c, r: -math.log(sigma(BETA * (c - r)))),
    "hinge": (partial(losses.hinge, beta=BETA), lambda c, r: max(0.0, 1 - BETA * (c - r))),
    "ipo": (partial(losses.ipo, beta=BETA), lambda c, r: (c - r - 1 / (2 * BETA)) ** 2),
    "robust": (partial(losses.robust, beta=BETA, noise=0.1), naive_robust),
    "exo": (partial(losses.exo, beta=BETA, label_B=0.95), naive_exo),
    "discopop": (partial(losses.discopop, beta=BETA, tau=0.05), naive_discopop),
    "nca": (partial(losses.nca, beta=BETA), naive_nca),
    "bco_pair": (partial(losses.bco_pair, beta=BETA), naive_bco_pair),
    "sppo": (partial(losses.sppo, beta=BETA), lambda c, r: (c - 0.5 / BETA) ** 2 + (r + 0.5 / BETA) ** 2),
    "apo_zero": (partial(losses.apo_zero, beta=BETA), lambda c, r: 1 - sigma(BETA * c) + sigma(BETA * r)),
    "apo_down": (partial(losses.apo_down, beta=BETA), lambda c, r: sigma(BETA * c) + 1 - sigma(BETA * (c - r))),
    "simpo": (partial(losses.simpo, beta=2.0, gamma=0.7), lambda c, r: -math.log(sigma(2 * (c - r) - 0.7))),
    "orpo": (losses.orpo, lambda c, r: -math.log(sigma(math.log(odds(c) / odds(r))))),
}


def scores(name: str, n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-ratios of both signs; for ORPO log-probs, which are negative."""
    generator = torch.Generator().manual_seed(2)
    chosen, rejected = torch.randn(2, n, generator=generator, dtype=torch.float64) * 4
    return (-chosen.abs(), -rejected.abs()) if name == "orpo" else (chosen, rejected)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_equals_its_formula(name: str) -> None:
    loss, naive = LOSSES[name]
    chosen, rejected = scores(name)
    expected = [naive(float(c), float(r)) for c, r in zip(chosen, rejected, strict=True)]
    assert torch.allclose(loss(chosen, rejected), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_equals_finite_differences_of_the_formula(name: str) -> None:
    loss, naive = LOSSES[name]
    chosen, rejected = (side[:20].clone().requires_grad_() for side in scores(name))
    loss(chosen, rejected).sum().backward()
    h = 1e-5
    for i, (c, r) in enumerate(zip(chosen.tolist(), rejected.tolist(), strict=True)):
        up = (naive(c + h, r) - naive(c - h, r)) / (2 * h)
        down = (naive(c, r + h) - naive(c, r - h)) / (2 * h)
        assert chosen.grad[i].item() == pytest.approx(up, rel=1e-5, abs=1e-8)
        assert rejected.grad[i].item() == pytest.approx(down, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"discopop"}))
def test_a_step_of_sgd_with_rate_1_moves_the_pair_the_right_way(name: str) -> None:
    """From a pair that the policy finds alike: chosen gains on rejected (AdamW at a small rate would hide a sign)."""
    loss, _ = LOSSES[name]
    pair = torch.full((2,), -1.0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.SGD([pair], lr=1.0)
    loss(pair[:1], pair[1:]).sum().backward()
    optimiser.step()
    chosen, rejected = pair.tolist()
    assert chosen > rejected + 1e-3
    if name not in ("apo_down", "nca"):  # apo_down lowers both, and NCA both of a pair whose rewards are below 0
        assert chosen > -1.0
    assert rejected < -1.0 or name in ("nca", "sppo")  # those two have targets of their own for each reply


def test_discopop_slopes_the_right_way_but_for_a_hollow_just_below_0() -> None:
    def slope(z: float) -> float:
        at = torch.tensor([z / BETA], dtype=torch.float64, requires_grad=True)
        losses.discopop(at, torch.zeros(1, dtype=torch.float64), beta=BETA).sum().backward()
        return float(at.grad)

    assert slope(-1.0) < 0 and slope(-0.3) < 0 and slope(0.3) < 0 and slope(1.0) < 0
    assert slope(0.0) > 0  # where an untrained policy stands: as published


@pytest.mark.parametrize("name", LOSSES)
def test_soft_labels_are_the_expectation_over_both_readings(name: str) -> None:
    loss, naive = LOSSES[name]
    chosen, rejected = scores(name)
    label = torch.linspace(0.5, 1, len(chosen), dtype=torch.float64)
    got = soft(loss, chosen, rejected, label)
    for i, p in enumerate(label.tolist()):
        c, r = float(chosen[i]), float(rejected[i])
        assert got[i].item() == pytest.approx(p * naive(c, r) + (1 - p) * naive(r, c), rel=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_tie_pulls_neither_way(name: str) -> None:
    """Where the policy finds both alike and so does the label, a step moves both scores by the same amount."""
    loss, _ = LOSSES[name]
    pair = torch.full((2,), -1.0, dtype=torch.float64, requires_grad=True)
    tie = torch.full((1,), 0.5, dtype=torch.float64)
    chosen_first = partial(losses.exo, beta=BETA, label_B=0.5) if name == "exo" else loss
    soft(chosen_first, pair[:1], pair[1:], tie).sum().backward()
    assert pair.grad[0].item() == pytest.approx(pair.grad[1].item(), abs=1e-12)


@pytest.mark.parametrize("name", ["sigmoid", "robust", "discopop", "nca", "bco_pair", "apo_zero"])
def test_as_beta_goes_to_0_nothing_pulls(name: str) -> None:
    more = {"noise": 0.1} if name == "robust" else {}
    chosen, rejected = (side.requires_grad_() for side in scores(name))
    getattr(losses, name)(chosen, rejected, beta=1e-9, **more).sum().backward()
    assert chosen.grad.abs().max() < 1e-8 and rejected.grad.abs().max() < 1e-8


def test_limits_that_tie_the_losses_to_each_other() -> None:
    chosen, rejected = scores("sigmoid")
    plain = losses.sigmoid(chosen, rejected, beta=BETA)
    assert torch.equal(losses.robust(chosen, rejected, beta=BETA, noise=0.0), plain)
    assert torch.allclose(losses.simpo(chosen, rejected, beta=BETA, gamma=0.0), plain)
    zero = torch.zeros_like(chosen)
    assert torch.allclose(dpo(chosen, rejected, zero, zero, beta=BETA), plain)
    # the minimum of IPO lies at a reward margin of one half
    assert losses.ipo(torch.tensor([0.5 / BETA]), torch.zeros(1), beta=BETA).item() == pytest.approx(0, abs=1e-12)
    # EXO's minimum lies where the policy's preference is the label
    at = math.log(0.8 / 0.2) / BETA
    assert losses.exo(torch.tensor([at]), torch.zeros(1), beta=BETA, label_B=0.8).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.25, 1.0, -0.5])
def test_the_shaped_score_is_its_formula_and_its_slope(alpha: float) -> None:
    mean_logp = torch.linspace(-9.0, -1e-6, 40, dtype=torch.float64, requires_grad=True)
    score = losses.shaped_score(mean_logp, alpha=alpha)
    score.sum().backward()
    probability = [math.exp(x) for x in mean_logp.tolist()]
    assert score.tolist() == pytest.approx([(1 - p**-alpha) / alpha for p in probability], rel=1e-9, abs=1e-12)
    assert mean_logp.grad is not None
    assert mean_logp.grad.tolist() == pytest.approx([p**-alpha for p in probability], rel=1e-9)


def test_the_shaped_score_of_a_small_alpha_is_the_log_prob() -> None:
    """In float32 too, where 1 - p^-alpha would lose its digits."""
    mean_logp = torch.linspace(-9.0, -0.01, 40)
    assert torch.allclose(losses.shaped_score(mean_logp, alpha=1e-6), mean_logp, rtol=1e-4)
    assert torch.equal(losses.shaped_score(mean_logp, alpha=0.0), mean_logp)


def test_dpo_with_a_margin_asks_for_a_lead() -> None:
    chosen, rejected = scores("sigmoid")
    zero, margin = torch.zeros_like(chosen), torch.linspace(0, 2, len(chosen), dtype=torch.float64)
    got = dpo(chosen, rejected, zero, zero, beta=BETA, margin_B=margin)
    expected = [
        -math.log(sigma(BETA * float(c - r) - float(m))) for c, r, m in zip(chosen, rejected, margin, strict=True)
    ]
    assert torch.allclose(got, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_stays_finite_far_out(name: str) -> None:
    far = torch.tensor([-3000.0, -700.0, -1e-12, 0.0], dtype=torch.float64)
    if name not in ("orpo",):
        far = torch.cat([far, -far])
    chosen, rejected = (t.flatten().clone().requires_grad_() for t in torch.meshgrid(far, far, indexing="ij"))
    loss = LOSSES[name][0](chosen, rejected)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(chosen.grad).all() and torch.isfinite(rejected.grad).all()


def test_labels_and_rates_without_meaning_are_refused() -> None:
    one = torch.ones(1)
    for noise in (0.5, 0.7, -0.1):
        with pytest.raises(ValueError, match="rate of wrong labels"):
            losses.robust(one, one, beta=BETA, noise=noise)
    for label in (0.0, 1.0):
        with pytest.raises(ValueError, match="smooth the labels"):
            losses.exo(one, one, beta=BETA, label_B=label)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_f_divergence_scores_are_the_derivatives_of_their_f(alpha: float) -> None:
    """f' by differences of each f, up to the constant that cancels between two replies."""
    generators: dict[str, Callable[[float], float]] = {
        "reverse_kl": lambda u: u * math.log(u),
        "forward_kl": lambda u: -math.log(u),
        "js": lambda u: u * math.log(u) - (1 + u) * math.log((1 + u) / 2),
        "alpha": lambda u: (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1)),
    }
    ratios = torch.tensor([-1.5, -0.2, 0.4, 1.3], dtype=torch.float64)
    h = 1e-6
    for divergence, f in generators.items():
        score = divergence_score(ratios, divergence, alpha=alpha).tolist()
        slope = [(f(u + h) - f(u - h)) / (2 * h) for u in (math.exp(x) for x in ratios.tolist())]
        for i in range(3):
            assert score[i + 1] - score[i] == pytest.approx(slope[i + 1] - slope[i], rel=1e-6, abs=1e-8), divergence


def test_alpha_divergence_runs_from_reverse_to_forward_kl() -> None:
    ratios = torch.tensor([-1.0, 0.5], dtype=torch.float64)

    def gap(*args: object, **more: float) -> float:
        low, high = divergence_score(ratios, *args, **more).tolist()
        return high - low

    assert gap("alpha", alpha=1e-7) == pytest.approx(gap("reverse_kl"), rel=1e-5)
    assert gap("alpha", alpha=1.0) == pytest.approx(gap("forward_kl"), rel=1e-12)
    for wrong in (0.0, -0.5, 1.5):
        with pytest.raises(ValueError, match="alpha is"):
            divergence_score(ratios, "alpha", alpha=wrong)


def test_log_odds_keep_their_digits_at_both_ends() -> None:
    near_one = torch.tensor([-1e-12, -1e-6, -0.5, -0.7, -20.0, -800.0], dtype=torch.float64)
    expected = [x - math.log(-math.expm1(x)) for x in near_one.tolist()]
    assert torch.allclose(log_odds(near_one), torch.tensor(expected, dtype=torch.float64), rtol=1e-12)
    certain = torch.zeros(1, requires_grad=True)
    log_odds(certain).sum().backward()
    assert torch.isfinite(certain.grad).all()


def test_aot_compares_rank_by_rank() -> None:
    chosen, rejected = torch.tensor([3.0, -1.0, 0.5]), torch.tensor([0.0, 2.0, -4.0])
    got = losses.aot(chosen, rejected, beta=BETA)
    ranks = zip(sorted(chosen.tolist()), sorted(rejected.tolist()), strict=True)
    assert got.tolist() == pytest.approx([-math.log(sigma(BETA * (c - r))) for c, r in ranks], rel=1e-6)
    assert torch.equal(losses.aot(chosen[[2, 0, 1]], rejected, beta=BETA), got)
