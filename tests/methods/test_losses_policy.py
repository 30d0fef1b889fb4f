"""Policy losses against loops over tokens written apart from them; gradients against finite differences; TRL's numbers.

`trl_policy.npz` holds what TRL 1.16's own GRPOTrainer computed (tests/fixtures/make_trl_policy.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.fixtures import policy_case  # noqa: E402

from fairlead.engine.layout import Tree, lay_out  # noqa: E402
from fairlead.methods.advantages import gdpo, group_centred, reward_to_go  # noqa: E402
from fairlead.methods.kl_estimators import k3, reweighted  # noqa: E402
from fairlead.methods.losses_policy import (  # noqa: E402
    cispo,
    clipped,
    clipped_away,
    constant_shares,
    entropy_bonus,
    importance_weights,
    mismatch,
    nash_mixture,
    reinforce,
    reinforce_reply,
    reply_log_ratio,
    reply_log_ratio_token,
    reply_shares,
    reply_sum_shares,
    token_shares,
    value_loss,
    weighted_sum,
    xpo_bonus,
)
from fairlead.methods.shaping import combine, token_rewards, unfinished  # noqa: E402

COUNTS = [3, 1, 5, 2, 4, 1]
N, R = sum(COUNTS), len(COUNTS)
COUNT = torch.tensor(COUNTS)
REPLY = torch.repeat_interleave(torch.arange(R), COUNT)
LOW, HIGH = 0.2, 0.28


def step(seed: int = 0, dtype: Any = torch.float64) -> dict[str, torch.Tensor]:
    """Log-probs of a step: policy, and close to it the old ones and the reference; advantages, values, entropies."""
    random = np.random.default_rng(seed)
    logp = -random.gamma(2.0, 1.0, size=N)
    made = {
        "logp": logp, "old": logp + 0.3 * random.normal(size=N), "ref": logp + 0.5 * random.normal(size=N),
        "adv": random.normal(size=R)[REPLY.numpy()], "adv_t": random.normal(size=N), "value": random.normal(size=N),
        "old_value": random.normal(size=N), "target": random.normal(size=N), "entropy": random.random(size=N),
    }  # fmt: skip
    return {name: torch.from_numpy(x).to(dtype) for name, x in made.items()}


def by_token(f: Callable[..., float], *of: torch.Tensor) -> list[float]:
    return [f(*(float(x[n]) for x in of)) for n in range(N)]


# ----------------------------------------------------------------------------------------------- token by token


def naive_clipped(logp: float, old: float, adv: float, low: float, high: float) -> float:
    """The clipped surrogate by its cases: which side of the range, and where the advantage points."""
    ratio = math.exp(logp) / math.exp(old)
    if adv > 0:
        return -adv * (ratio if ratio < 1 + high else 1 + high)
    return -adv * (ratio if ratio > 1 - low else 1 - low)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (LOW, HIGH)])
def test_the_clipped_surrogate(low: float, high: float) -> None:
    s = step()
    got = clipped(s["logp"] - s["old"], s["adv_t"], low=low, high=high)
    want = by_token(lambda p, o, a: naive_clipped(p, o, a, low, high), s["logp"], s["old"], s["adv_t"])
    assert got.tolist() == pytest.approx(want, abs=1e-12)


def test_a_clipped_token_has_no_gradient_and_is_counted() -> None:
    ratio = torch.tensor([0.5, 0.5, 1.0, 1.25, 1.25, 1.5, 1.5], dtype=torch.float64)
    adv = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    log_ratio = ratio.log().requires_grad_()
    clipped(log_ratio, adv, low=LOW, high=HIGH).sum().backward()
    away = [False, True, False, False, False, True, False]  # 1.25 lies below clip-higher's 1.28
    assert [g == 0 for g in log_ratio.grad.tolist()] == away
    assert clipped_away(log_ratio, adv, low=LOW, high=HIGH).tolist() == away
    live = [not a for a in away]
    assert log_ratio.grad[live].tolist() == pytest.approx((-adv * ratio)[live].tolist(), abs=1e-12)


def test_the_ceiling_bounds_what_a_bad_token_can_do() -> None:
    log_ratio = torch.tensor([0.1, 3.0, 3.0], dtype=torch.float64, requires_grad=True)
    adv = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    loss = clipped(log_ratio, adv, ceiling=3.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([math.exp(0.1), 3.0, -1.2])  # max(min(rA, clip A), cA): dual clip
    assert log_ratio.grad.tolist() == pytest.approx([math.exp(0.1), 0.0, 0.0])
    assert clipped(log_ratio, adv)[1].item() == pytest.approx(math.exp(3.0))


def test_cispo_weighs_and_never_silences() -> None:
    s = step()
    logp = s["logp"].clone().requires_grad_()
    loss = cispo(logp - s["old"], logp, s["adv_t"], ceiling=1.2, floor=0.8)
    want = by_token(lambda p, o, a: -min(max(math.exp(p - o), 0.8), 1.2) * a * p, s["logp"], s["old"], s["adv_t"])
    assert loss.tolist() == pytest.approx(want, abs=1e-12)
    loss.sum().backward()
    weight = by_token(lambda p, o, a: -min(max(math.exp(p - o), 0.8), 1.2) * a, s["logp"], s["old"], s["adv_t"])
    assert logp.grad.tolist() == pytest.approx(weight, abs=1e-12)
    assert (logp.grad != 0).all()


def test_reinforce_and_its_twin_with_the_ratio_of_itself() -> None:
    """exp(logp - logp.detach()) is 1 in value, whatever logp is, and has logp's gradient."""
    s = step()
    plain, twin = s["logp"].clone().requires_grad_(), s["logp"].clone().requires_grad_()
    reinforce(plain, s["adv"]).sum().backward()
    value = -s["adv"] * torch.exp(twin - twin.detach())
    assert torch.equal(value, -s["adv"])
    value.sum().backward()
    assert torch.equal(plain.grad, twin.grad) and torch.equal(plain.grad, -s["adv"])


def test_a_reply_as_one_action() -> None:
    s = step()
    logp = s["logp"].clone().requires_grad_()
    reinforce_reply(logp, s["old"], s["adv"], REPLY, COUNT).sum().backward()
    want = []
    for r, count in enumerate(COUNTS):
        at = r == REPLY
        want += [-float(s["adv"][at][0]) * math.exp(float((s["logp"] - s["old"])[at].sum()))] * count
    assert logp.grad.tolist() == pytest.approx(want, abs=1e-12)


def test_gspo_and_gspo_token() -> None:
    """The reply's ratio is the geometric mean; with one advantage per reply both have the same gradient (section 4.3)."""
    s = step()
    mean = [float((s["logp"] - s["old"])[r == REPLY].mean()) for r in range(R)]
    got = reply_log_ratio(s["logp"], s["old"], REPLY, COUNT)
    assert got.tolist() == pytest.approx([mean[r] for r in REPLY.tolist()], abs=1e-12)
    gradients = []
    for ratio in (reply_log_ratio, reply_log_ratio_token):
        logp = s["logp"].clone().requires_grad_()
        loss_N = clipped(ratio(logp, s["old"], REPLY, COUNT), s["adv"], low=0.15, high=0.15)
        loss = weighted_sum(loss_N, reply_shares(REPLY, COUNT, replies=R))
        want = sum(naive_clipped(m, 0.0, float(s["adv"][r == REPLY][0]), 0.15, 0.15) for r, m in enumerate(mean)) / R
        assert loss.item() == pytest.approx(want, abs=1e-12)
        loss.backward()
        gradients.append(logp.grad)
    assert torch.allclose(*gradients, atol=1e-14) and gradients[0].abs().sum() > 0
    logp = s["logp"].clone().requires_grad_()
    reply_log_ratio_token(logp, s["old"], REPLY, COUNT)[2].backward()
    assert logp.grad.nonzero().flatten().tolist() == [2]  # its own token alone, so advantages may differ per token


def test_the_value_loss_clips_towards_the_worse() -> None:
    s = step()
    value = s["value"].clone().requires_grad_()

    def naive(v: float, old: float, target: float) -> float:
        near = min(max(v, old - 0.2), old + 0.2)
        return max((v - target) ** 2, (near - target) ** 2) / 2

    loss = value_loss(value, s["old_value"], s["target"])
    assert loss.tolist() == pytest.approx(by_token(naive, s["value"], s["old_value"], s["target"]), abs=1e-12)
    assert value_loss(s["old_value"], s["old_value"], s["target"]).tolist() == pytest.approx(
        ((s["old_value"] - s["target"]) ** 2 / 2).tolist(), abs=1e-12
    )
    plain = value_loss(value, s["old_value"], s["target"], clip=None)
    assert plain.tolist() == pytest.approx(((s["value"] - s["target"]) ** 2 / 2).tolist(), abs=1e-12)
    with pytest.raises(ValueError, match="may not move"):
        value_loss(value, s["old_value"], s["target"], clip=0.0)


def test_the_small_terms() -> None:
    s = step()
    assert entropy_bonus(s["entropy"], coef=0.01).tolist() == pytest.approx((-0.01 * s["entropy"]).tolist())
    explored = torch.tensor([-3.0, -5.0], requires_grad=True)
    xpo_bonus(explored, alpha=0.1).sum().backward()
    assert explored.grad.tolist() == pytest.approx([0.1, 0.1])  # minimised: the reference's replies lose


def test_nashs_opponent_is_the_geometric_mixture() -> None:
    random = np.random.default_rng(3)
    p, q = random.dirichlet(np.ones(5), size=4), random.dirichlet(np.ones(5), size=4)
    mixed = p**0.7 * q**0.3
    got = nash_mixture(torch.from_numpy(np.log(p)), torch.from_numpy(np.log(q)), mix=0.3)
    assert np.allclose(got.exp().numpy(), mixed / mixed.sum(1, keepdims=True), atol=1e-12)
    assert np.allclose(nash_mixture(torch.from_numpy(np.log(p)), torch.from_numpy(np.log(q)), mix=0.0), np.log(p))
    with pytest.raises(ValueError, match="mix is 1.5"):
        nash_mixture(torch.zeros(1, 2), torch.zeros(1, 2), mix=1.5)


# ------------------------------------------------------------------------------------------ ratios at the start


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_first_ratio_is_one_to_the_bit(dtype: Any) -> None:
    """Old log-probs that came out of the same computation: another tensor with the same bits."""
    s = step(4, dtype)
    old = s["logp"].clone()
    zeros = torch.zeros(N, dtype=dtype)
    assert torch.equal(torch.exp(s["logp"] - old), torch.ones(N, dtype=dtype))
    for ratio in (reply_log_ratio, reply_log_ratio_token):
        assert torch.equal(ratio(s["logp"], old, REPLY, COUNT), zeros)
    assert torch.equal(clipped(s["logp"] - old, s["adv"]), -s["adv"])
    assert torch.equal(cispo(s["logp"] - old, s["logp"], s["adv"], ceiling=1.2), -s["adv"] * s["logp"])
    assert torch.equal(reinforce_reply(s["logp"], old, s["adv"], REPLY, COUNT), reinforce(s["logp"], s["adv"]))
    assert importance_weights(old, s["logp"], REPLY, COUNT, level="reply").tolist() == [1.0] * N
    assert not clipped_away(s["logp"] - old, s["adv"]).any()
    off = old.clone()
    off[3] = torch.nextafter(off[3], torch.tensor(0.0, dtype=dtype)) if dtype != torch.bfloat16 else off[3] * 1.01
    assert not torch.equal(reply_log_ratio(s["logp"], off, REPLY, COUNT), zeros)  # one bit off is seen


def test_all_surrogates_start_along_the_policy_gradient() -> None:
    s = step()
    old, want = s["logp"].clone(), -s["adv"]

    def slope(loss: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        logp = s["logp"].clone().requires_grad_()
        loss(logp).sum().backward()
        return logp.grad

    assert torch.allclose(slope(lambda p: clipped(p - old, s["adv"])), want)
    assert torch.allclose(slope(lambda p: cispo(p - old, p, s["adv"], ceiling=1.2)), want)
    assert torch.allclose(slope(lambda p: reinforce(p, s["adv"])), want)
    assert torch.allclose(slope(lambda p: clipped(reply_log_ratio(p, old, REPLY, COUNT), s["adv"])), want)


# ---------------------------------------------------------------------------------------------- shares of a step


def test_shares_are_the_means_they_are_named_after() -> None:
    x = step()["logp"]
    parts = [x[r == REPLY] for r in range(R)]
    for share, want in (
        (token_shares(REPLY, tokens=N), float(x.mean())),
        (reply_shares(REPLY, COUNT, replies=R), float(np.mean([p.mean() for p in parts]))),
        (reply_sum_shares(REPLY, replies=R), float(np.mean([p.sum() for p in parts]))),
        (constant_shares(REPLY, replies=R, length=64), float(x.sum()) / (R * 64)),
    ):
        assert weighted_sum(x, share).item() == pytest.approx(want, abs=1e-12)
    for wrong in (
        lambda: token_shares(REPLY, tokens=0),
        lambda: reply_shares(REPLY, COUNT, replies=0),
        lambda: constant_shares(REPLY, replies=3, length=0),
    ):
        with pytest.raises(ValueError, match="is 0: a step without"):
            wrong()


ALGORITHMS: dict[str, Callable[[dict[str, torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "ppo": lambda s, reply, count: weighted_sum(
        clipped(s["logp"] - s["old"], s["adv_t"]) + 0.5 * value_loss(s["value"], s["old_value"], s["target"]),
        token_shares(reply, tokens=N),
    ),
    "grpo": lambda s, reply, count: weighted_sum(
        clipped(s["logp"] - s["old"], s["adv"]) + 0.04 * k3(s["logp"], s["ref"]), reply_shares(reply, count, replies=R)
    ),
    "dr_grpo": lambda s, reply, count: weighted_sum(
        clipped(s["logp"] - s["old"], s["adv"]), constant_shares(reply, replies=R, length=8)
    ),
    "dapo": lambda s, reply, count: weighted_sum(
        clipped(s["logp"] - s["old"], s["adv"], low=LOW, high=HIGH), token_shares(reply, tokens=N)
    ),
    "gspo": lambda s, reply, count: weighted_sum(
        clipped(reply_log_ratio(s["logp"], s["old"], reply, count), s["adv"]), reply_shares(reply, count, replies=R)
    ),
    "cispo": lambda s, reply, count: weighted_sum(
        cispo(s["logp"] - s["old"], s["logp"], s["adv"], ceiling=1.3),
        token_shares(reply, tokens=N) * importance_weights(s["old"], s["ref"], reply, count, cap=1.5, level="reply"),
    ),
    "rloo": lambda s, reply, count: weighted_sum(
        reinforce_reply(s["logp"], s["old"], s["adv"], reply, count), reply_sum_shares(reply, replies=R)
    ),
}


@pytest.mark.parametrize("split", [(6,), (1, 5), (2, 2, 2), (1, 1, 1, 1, 1, 1), (5, 1)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_any_split_into_micro_batches_adds_up_to_the_step(name: str, split: tuple[int, ...]) -> None:
    s = step(9)
    leaves = [s["logp"].requires_grad_(), s["value"].requires_grad_()]
    whole = ALGORITHMS[name](s, REPLY, COUNT)
    want = torch.autograd.grad(whole, leaves, allow_unused=True)
    total, got, first = 0.0, [torch.zeros(N, dtype=torch.float64) for _ in leaves], 0
    for size in split:
        inside = (first <= REPLY) & (first + size > REPLY)
        part = {name: x[inside] for name, x in s.items()}
        loss = ALGORITHMS[name](part, REPLY[inside] - first, COUNT[first : first + size])
        total += loss.item()
        for mine, more in zip(got, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
            mine += 0 if more is None else more
        first += size
    assert total == pytest.approx(whole.item(), abs=1e-13)
    for mine, all_of_it in zip(got, want, strict=True):
        assert torch.allclose(mine, torch.zeros_like(mine) if all_of_it is None else all_of_it, atol=1e-14)


def test_end_tokens_cut_replies_and_masks_by_hand() -> None:
    """One prompt, four replies, end token 9. What the engine lays out flat is what counts, carries rewards and is shared.

    Reply 0 ended; 1 was cut; 2 holds a tool's result (7, 7) that is not scored, and ended; 3 is the end token alone.
    """
    mask = (True, False, False, True, True)
    tree = Tree((1, 2), ((3, 4, 9), (3, 4, 5, 6), (3, 7, 7, 4, 9), (9,)), (None, None, mask, None))
    batch = lay_out([tree])
    count, reply, last = batch.count_R, batch.reply_N, batch.count_R.cumsum(0) - 1
    assert count.tolist() == [3, 4, 3, 1]
    assert batch.target_N[last].tolist() == [9, 6, 9, 9]  # every end token is scored: a model learns to stop
    ended = batch.target_N[last] == 9
    reward = unfinished(torch.tensor([1.0, 1.0, 2.0, 4.0]), ended, score=-1.0)
    reward_N = token_rewards(reward, torch.zeros(11), count, beta=0.1)
    assert reward_N.tolist() == [0, 0, 1, 0, 0, 0, -1, 0, 0, 2, 4]
    assert reward_to_go(reward_N, count, gamma=0.5).tolist() == [0.25, 0.5, 1, -0.125, -0.25, -0.5, -1, 0.5, 1, 2, 4]
    share = reply_shares(reply, count, replies=4)
    assert share.tolist() == pytest.approx([1 / 12] * 3 + [1 / 16] * 4 + [1 / 12] * 3 + [1 / 4])
    assert share.sum().item() == pytest.approx(1.0) and token_shares(reply, tokens=11).sum().item() == pytest.approx(
        1.0
    )


def test_a_dropped_reply_counts_in_the_denominator_and_pulls_nowhere() -> None:
    s = step()
    logp = s["logp"].clone().requires_grad_()
    keep = (REPLY != 2).double()
    weighted_sum(clipped(logp - s["old"], s["adv"]), reply_shares(REPLY, COUNT, replies=R) * keep).backward()
    every = s["logp"].clone().requires_grad_()
    weighted_sum(clipped(every - s["old"], s["adv"]), reply_shares(REPLY, COUNT, replies=R)).backward()
    assert (logp.grad[REPLY == 2] == 0).all()
    assert torch.equal(logp.grad[REPLY != 2], every.grad[REPLY != 2])


def test_a_loss_that_is_no_number_is_not_hidden_by_a_weight_of_zero() -> None:
    assert math.isnan(weighted_sum(torch.tensor([1.0, math.nan]), torch.tensor([1.0, 0.0])).item())


# ---------------------------------------------------------------------------------------------- another engine


@pytest.mark.parametrize("level", ["token", "reply"])
def test_importance_weights_are_truncated_ratios(level: str) -> None:
    s = step()
    apart = (s["old"] - s["ref"]).numpy()
    if level == "reply":
        apart = np.array([apart[(r == REPLY).numpy()].sum() for r in REPLY.tolist()])
    got = importance_weights(s["old"], s["ref"], REPLY, COUNT, cap=1.4, level=level)
    assert got.tolist() == pytest.approx(np.minimum(np.exp(apart), 1.4).tolist(), abs=1e-12)
    assert (got == 1.4).any() and (got < 1.4).any()
    drop = importance_weights(s["old"], s["ref"], REPLY, COUNT, cap=1.4, floor=0.7, level=level, outside="drop")
    inside = (np.exp(apart) <= 1.4) & (np.exp(apart) >= 0.7)
    assert drop.tolist() == pytest.approx(np.where(inside, np.exp(apart), 0.0).tolist(), abs=1e-12)


def test_importance_weights_undo_the_other_engine_where_they_are_not_cut() -> None:
    """Enumerated: a sampler of its own over five tokens; the weighted mean of anything is the trainer's."""
    random = np.random.default_rng(0)
    ours, theirs, x = random.dirichlet(np.ones(5)), random.dirichlet(np.full(5, 5.0)), random.normal(size=5)
    each, one = torch.arange(5), torch.ones(5, dtype=torch.long)
    args = (torch.from_numpy(np.log(ours)), torch.from_numpy(np.log(theirs)), each, one)
    exact, cut = importance_weights(*args, cap=1e9), importance_weights(*args, cap=1.2)
    assert float((theirs * exact.numpy() * x).sum()) == pytest.approx(float((ours * x).sum()), abs=1e-12)
    assert float((theirs * cut.numpy()).sum()) < 1 - 1e-3  # the price of the cap


def test_the_mismatch_of_two_engines_is_told() -> None:
    s = step()
    got = mismatch(s["old"], s["ref"], REPLY)
    apart = (s["old"] - s["ref"]).numpy()
    assert (got.tokens, got.mean, got.largest) == (
        N,
        pytest.approx(np.abs(apart).mean()),
        pytest.approx(np.abs(apart).max()),
    )
    assert got.kl == pytest.approx(float((np.exp(apart) - 1 - apart).mean()))
    same = mismatch(s["old"], s["old"].clone(), REPLY)
    assert (same.mean, same.largest, same.kl) == (0.0, 0.0, 0.0)
    broken = s["ref"].clone()
    broken[4] = math.nan  # in reply 2
    for call in (lambda: mismatch(s["old"], broken, REPLY), lambda: importance_weights(s["old"], broken, REPLY, COUNT)):
        with pytest.raises(ValueError, match=f"reply 2: the sampler gives no log-prob for 1 of {N} tokens"):
            call()


def test_ranges_without_a_one_in_them_are_refused() -> None:
    x = torch.zeros(1)
    for low, high, ceiling in ((0.0, 0.2, None), (1.0, 0.2, None), (0.2, 0.0, None), (0.2, 0.2, 1.1)):
        with pytest.raises(ValueError, match="low"):
            clipped(x, x, low=low, high=high, ceiling=ceiling)
    with pytest.raises(ValueError, match="a ratio of 1"):
        cispo(x, x, x, ceiling=1.0)
    with pytest.raises(ValueError, match="a ratio of 1"):
        importance_weights(x, x, torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long), cap=0.9)


# --------------------------------------------------------------------------------------------------------- TRL


@pytest.fixture(scope="module")
def trl() -> dict[str, np.ndarray]:
    with np.load(policy_case.FIXTURE, allow_pickle=False) as known:
        return {name: known[name] for name in known}


def trl_rewards(which: str) -> torch.Tensor:
    return torch.tensor(policy_case.REWARDS[which], dtype=torch.float64)


def test_advantages_equal_trls(trl: dict[str, np.ndarray]) -> None:
    """TRL's are float32. Its group std has n - 1 and 1e-4; a reply without any reward gets 0 in both."""
    group, weight = torch.arange(8) // policy_case.GROUP, torch.tensor(policy_case.WEIGHTS)
    summed = combine(trl_rewards("sum"), weight)
    for name, got in {
        "group": group_centred(summed, group),
        "none": group_centred(summed, group, scale=False),
        "gdpo": gdpo(trl_rewards("each"), weight, group),
    }.items():
        assert np.allclose(got.numpy(), trl[f"advantages/{name}"], atol=2e-6), name
        assert np.abs(trl[f"advantages/{name}"]).max() > 0.5


OURS: dict[str, Callable[..., torch.Tensor]] = {
    "grpo": lambda p, o, r, a, rep, cnt, w: weighted_sum(clipped(p - o, a), reply_shares(rep, cnt, replies=8)),
    "grpo_kl": lambda p, o, r, a, rep, cnt, w: weighted_sum(
        clipped(p - o, a) + 0.04 * k3(p, r), reply_shares(rep, cnt, replies=8)
    ),
    "grpo_kl_reweighted": lambda p, o, r, a, rep, cnt, w: weighted_sum(
        clipped(p - o, a) + 0.04 * reweighted(k3(p, r), p - o), reply_shares(rep, cnt, replies=8)
    ),
    "grpo_ceiling": lambda p, o, r, a, rep, cnt, w: weighted_sum(
        clipped(p - o, a, ceiling=1.5), reply_shares(rep, cnt, replies=8)
    ),
    "dr_grpo": lambda p, o, r, a, rep, cnt, w: weighted_sum(
        clipped(p - o, a), constant_shares(rep, replies=8, length=policy_case.LIMIT)
    ),
    "dapo": lambda p, o, r, a, rep, cnt, w: weighted_sum(
        clipped(p - o, a, high=0.28), token_shares(rep, tokens=sum(policy_case.LENGTHS))
    ),
    "dapo_weighted": lambda p, o, r, a, rep, cnt, w: weighted_sum(
        w * clipped(p - o, a) + 0.04 * k3(p, r), token_shares(rep, tokens=sum(policy_case.LENGTHS))
    ),
    "gspo": lambda p, o, r, a, rep, cnt, w: weighted_sum(
        clipped(reply_log_ratio(p, o, rep, cnt), a, low=0.03, high=0.04), reply_shares(rep, cnt, replies=8)
    ),
    "cispo": lambda p, o, r, a, rep, cnt, w: weighted_sum(
        cispo(p - o, p, a, ceiling=1.3), token_shares(rep, tokens=sum(policy_case.LENGTHS))
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", policy_case.CASES)
def test_losses_and_gradients_equal_trls(trl: dict[str, np.ndarray], name: str, dtype: Any) -> None:
    """From flat tensors without padding, on TRL's own advantages: ||g - g'|| / ||g'|| at most 1e-12 (1e-4 in float32)."""
    mask = policy_case.mask()
    flat = {key: torch.from_numpy(table[mask]).to(dtype) for key, table in policy_case.log_probs().items()}
    count = torch.tensor(policy_case.LENGTHS)
    reply = torch.repeat_interleave(torch.arange(8), count)
    adv = torch.from_numpy(trl["advantages/group"]).double()[reply]
    policy = flat["policy"].requires_grad_()
    loss = OURS[name](policy, flat["old"], flat["reference"], adv, reply, count, flat["weight"])
    loss.backward()
    limit = 1e-12 if dtype == torch.float64 else 1e-4
    want = trl[f"{name}/gradient"]
    assert (want[~mask] == 0).all()
    assert np.linalg.norm(policy.grad.numpy() - want[mask]) <= limit * np.linalg.norm(want)
    assert loss.item() == pytest.approx(float(trl[f"{name}/loss"]), rel=limit, abs=limit)
    assert np.linalg.norm(want) > 1e-3
