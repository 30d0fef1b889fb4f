"""Advantages against NumPy written apart from them: one reply, one group, one token at a time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from fairlead.methods.advantages import (  # noqa: E402
    gae,
    gdpo,
    group_centred,
    idle_groups,
    lagrangian,
    nash_md,
    reinforce_pp,
    reinforce_pp_baseline,
    remax,
    reward_to_go,
    rloo,
    signal,
    whiten,
)
from fairlead.methods.shaping import token_rewards  # noqa: E402

NAN = math.nan
GROUPS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 0]  # sizes 5, 3, 2, 3, 1; the first is not in one piece
REWARDS = [1.0, 0.0, NAN, 2.5, 0.3, 0.3, 0.3, NAN, 1.0, -1.0, 4.0, 0.5, 7.0, -0.25]
COUNTS = [3, 1, 4, 2, 5, 1, 1, 2, 3, 1, 2, 6, 1, 2]


def rewards() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(REWARDS, dtype=torch.float64), torch.tensor(GROUPS)


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    count_R = torch.tensor(COUNTS)
    return torch.repeat_interleave(torch.arange(len(COUNTS)), count_R), count_R


def by_group(f: Callable[[np.ndarray, int], float]) -> list[float]:
    """f(the known rewards of a reply's group, the reply's place among them); 0 where there is nothing to compare."""
    out = []
    for reply, (reward, group) in enumerate(zip(REWARDS, GROUPS, strict=True)):
        known = [i for i, g in enumerate(GROUPS) if g == group and not math.isnan(REWARDS[i])]
        out.append(
            0.0
            if math.isnan(reward) or len(known) < 2
            else f(np.array([REWARDS[i] for i in known]), known.index(reply))
        )
    return out


def numpy_whiten(values: list[float], ddof: int = 1, eps: float = 1e-8) -> np.ndarray:
    x = np.array(values)
    return (x - x.mean()) / (x.std(ddof=ddof) + eps)


# ------------------------------------------------------------------------------------------------------ groups


@pytest.mark.parametrize("ddof", [0, 1])
def test_group_centred_is_the_distance_from_the_mean_in_stds(ddof: int) -> None:
    want = by_group(lambda r, i: (r[i] - r.mean()) / (r.std(ddof=ddof) + 1e-4))
    assert group_centred(*rewards(), ddof=ddof).tolist() == pytest.approx(want, abs=1e-12)


def test_without_the_std_it_is_the_distance_from_the_mean() -> None:
    want = by_group(lambda r, i: r[i] - r.mean())
    assert group_centred(*rewards(), scale=False).tolist() == pytest.approx(want, abs=1e-12)


def test_rloo_compares_with_the_others() -> None:
    want = by_group(lambda r, i: r[i] - np.delete(r, i).mean())
    assert rloo(*rewards()).tolist() == pytest.approx(want, abs=1e-12)


def test_remax_compares_with_the_greedy_reply() -> None:
    greedy = [0.5, 0.25, 3.0, NAN, 1.0]
    got = remax(rewards()[0], torch.tensor(greedy), rewards()[1]).tolist()
    want = [r - greedy[g] for r, g in zip(REWARDS, GROUPS, strict=True)]
    assert got == pytest.approx([0.0 if math.isnan(x) else x for x in want], abs=1e-12)


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 1e8 + 0.1, -7.7])
@pytest.mark.parametrize("size", [1, 3, 7, 10])
def test_a_group_of_equal_rewards_gives_exactly_nothing(value: float, size: int) -> None:
    """The mean of equal rewards may be off by a rounding error, and that over its own std is about 1."""
    reward_R, group_R = torch.full((size,), value, dtype=torch.float64), torch.zeros(size, dtype=torch.long)
    for adv_R in (
        group_centred(reward_R, group_R, eps=1e-30),
        group_centred(reward_R, group_R, scale=False),
        rloo(reward_R, group_R),
        whiten(reward_R, eps=1e-30),
    ):
        assert adv_R.tolist() == [0.0] * size


def test_a_missing_reward_is_as_if_the_reply_had_not_been_drawn() -> None:
    """The others' advantages are those of a smaller group; taken for a zero it would move them."""
    some, group = torch.tensor([1.0, NAN, 2.0, 5.0]), torch.zeros(4, dtype=torch.long)
    fewer = torch.tensor([1.0, 2.0, 5.0])
    for f in (group_centred, rloo):
        with_gap = f(some, group)
        assert with_gap[[0, 2, 3]].tolist() == f(fewer, group[:3]).tolist()
        assert with_gap[1] == 0.0
        assert with_gap.tolist() != f(torch.nan_to_num(some), group).tolist()


def test_signal_counts_what_cannot_teach() -> None:
    told = signal(*rewards())
    assert told.informative_P.tolist() == [True, False, False, True, False]
    assert (told.missing, told.lonely, told.flat) == (2, 2, 1)
    all_right = signal(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]))
    assert all_right.informative_P.tolist() == [False, True]  # DAPO: neither all right nor all wrong


def test_groups_are_skipped_only_where_nothing_else_pulls() -> None:
    reply_N, count_R = tokens()
    group_R = rewards()[1]
    adv_N = group_centred(*rewards())[reply_N]
    assert idle_groups(adv_N, reply_N, group_R, other_terms=False).tolist() == [False, True, True, False, True]
    assert not idle_groups(adv_N, reply_N, group_R, other_terms=True).any()
    adv_N[int(count_R[:12].sum())] = 1e-30  # the one token of the last group's only reply
    assert idle_groups(adv_N, reply_N, group_R, other_terms=False).tolist() == [False, True, True, False, False]


def test_what_cannot_be_meant_is_refused() -> None:
    reward_R, group_R = rewards()
    with pytest.raises(ValueError, match="eps"):
        group_centred(reward_R, group_R, eps=0.0)
    with pytest.raises(ValueError, match="ddof"):
        whiten(reward_R, ddof=2)
    with pytest.raises(ValueError, match="reply 1: the reward is infinite"):
        rloo(torch.tensor([0.0, math.inf]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="give each reply one of both"):
        rloo(reward_R[:3], group_R)
    with pytest.raises(ValueError, match="no reply of this step has a known reward"):
        whiten(torch.ones(3), torch.zeros(3, dtype=torch.bool))


# -------------------------------------------------------------------------------------------------- objectives


def test_gdpo_normalises_each_objective_by_itself() -> None:
    random = np.random.default_rng(4)
    table = random.normal(size=(12, 3)) * [1.0, 100.0, 1.0]
    table[:, 2] = 1.0  # says nothing
    table[3, 0] = NAN  # average in that objective
    table[7] = NAN  # out of the step's statistics
    group, weight = np.repeat([0, 1, 2], 4), np.array([1.0, 0.5, 2.0])
    summed = np.zeros(12)
    for k in range(2):
        for g in range(3):
            at = (group == g) & ~np.isnan(table[:, k])
            summed[at] += weight[k] * (table[at, k] - table[at, k].mean()) / (table[at, k].std(ddof=1) + 1e-4)
    want, known = np.zeros(12), ~np.isnan(table).all(1)
    want[known] = numpy_whiten(list(summed[known]), eps=1e-4)
    got = gdpo(torch.from_numpy(table), torch.from_numpy(weight), torch.from_numpy(group))
    assert got.tolist() == pytest.approx(list(want), abs=1e-12)
    with pytest.raises(ValueError, match="give one"):
        gdpo(torch.from_numpy(table), torch.zeros(3), torch.from_numpy(group))


def test_gdpo_tells_apart_what_a_sum_cannot() -> None:
    """The paper's figure 2: groups of rewards (0, 1) and (0, 2) look alike once their sum is normalised."""
    table = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    group = torch.tensor([0, 0, 1, 1])
    as_sum = group_centred(table.sum(1), group, eps=1e-12)
    apart = gdpo(table, torch.ones(2), group)
    assert as_sum[1].item() == pytest.approx(as_sum[3].item(), abs=1e-9)
    assert apart[3] > 1.5 * apart[1]


def test_lagrangian_weighs_reward_against_cost() -> None:
    a, c = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 1.0])
    assert lagrangian(a, c, multiplier=0.0).tolist() == a.tolist()
    assert lagrangian(a, c, multiplier=3.0).tolist() == [(1 - 9) / 4, (-2 - 3) / 4]
    with pytest.raises(ValueError, match="never below 0"):
        lagrangian(a, c, multiplier=-0.1)


def test_nash_md_counts_wins_and_the_way_from_the_reference() -> None:
    got = nash_md(torch.tensor([0.9, NAN, 0.5]), torch.tensor([2.0, 1.0, -4.0]), tau=0.1)
    assert got.tolist() == pytest.approx([0.9 - 0.5 - 0.2, 0.0, 0.4], abs=1e-7)


# ---------------------------------------------------------------------------------------------- the whole step


def test_whiten_looks_at_kept_values_alone() -> None:
    x = np.random.default_rng(0).normal(3.0, 5.0, size=20)
    keep = np.arange(20) % 3 != 0
    dirty = np.where(keep, x, NAN)
    for keep_mean in (False, True):
        got = whiten(torch.from_numpy(dirty), torch.from_numpy(keep), keep_mean=keep_mean)
        want = numpy_whiten(list(x[keep])) + (x[keep].mean() if keep_mean else 0.0)
        assert got[torch.from_numpy(keep)].tolist() == pytest.approx(list(want), abs=1e-12)
        assert got[torch.from_numpy(~keep)].tolist() == [0.0] * int((~keep).sum())


def in_parallel(jobs: list[Callable[[Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]]) -> list[torch.Tensor]:
    """Runs each job in a thread of its own, with a `total` that adds up what all of them hand in."""
    barrier, given, out = threading.Barrier(len(jobs)), [torch.empty(0)] * len(jobs), [torch.empty(0)] * len(jobs)

    def work(rank: int) -> None:
        def total(values: torch.Tensor) -> torch.Tensor:
            given[rank] = values
            barrier.wait(timeout=30)
            summed = torch.stack(given).sum(0)
            barrier.wait(timeout=30)
            return summed

        out[rank] = jobs[rank](total)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


def test_statistics_of_a_step_do_not_depend_on_how_processes_share_it() -> None:
    x = torch.from_numpy(np.random.default_rng(1).normal(size=30))
    keep = torch.arange(30) % 4 != 1
    keep[20:] = False  # one process has nothing to keep
    whole = whiten(x, keep)
    parts = in_parallel(
        [lambda total, a=a: whiten(x[a], keep[a], total=total) for a in (slice(0, 7), slice(7, 20), slice(20, 30))]
    )
    assert torch.allclose(torch.cat(parts), whole, atol=1e-14)
    assert not torch.allclose(torch.cat([whiten(x[:7], keep[:7]), whiten(x[7:20], keep[7:20])]), whole[:20], atol=1e-2)

    table, group = (
        torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
        torch.arange(12) // 4,
    )
    weight = torch.ones(2)
    parts = in_parallel(
        [
            lambda total: gdpo(table[:8], weight, group[:8], total=total),
            lambda total: gdpo(table[8:], weight, group[8:] - 2, total=total),
        ]
    )
    assert torch.allclose(torch.cat(parts), gdpo(table, weight, group), atol=1e-14)


def test_reinforce_pp_normalises_over_all_tokens() -> None:
    (reply_N, count_R), reward_R = tokens(), rewards()[0]
    kl_N = torch.from_numpy(np.random.default_rng(7).normal(size=len(reply_N)))
    got = reinforce_pp(token_rewards(reward_R, kl_N, count_R, beta=0.2), count_R)
    to_go, at = [], 0
    for reward, count in zip(REWARDS, COUNTS, strict=True):
        to_go += [reward - 0.2 * float(kl_N[at + t : at + count].sum()) for t in range(count)]
        at += count
    known = ~np.isnan(to_go)
    want = np.zeros(len(to_go))
    want[known] = numpy_whiten([x for x in to_go if not math.isnan(x)])
    assert got.tolist() == pytest.approx(list(want), abs=1e-12)


def test_reinforce_pp_with_a_baseline_takes_the_group_off_and_the_step_over() -> None:
    (reply_N, _), (reward_R, group_R) = tokens(), rewards()
    off = by_group(lambda r, i: r[i] - r.mean())
    every = [off[r] for r in reply_N.tolist() if not math.isnan(REWARDS[r])]
    want = np.zeros(len(reply_N))
    want[[not math.isnan(REWARDS[r]) for r in reply_N.tolist()]] = numpy_whiten(every)
    assert reinforce_pp_baseline(reward_R, group_R, reply_N).tolist() == pytest.approx(list(want), abs=1e-12)


# ---------------------------------------------------------------------------------------------------- in time


def naive_gae(reward: np.ndarray, value: np.ndarray, gamma: float, lam: float, after: float) -> np.ndarray:
    """The sum itself, not the recursion: A_t = sum over l of (gamma lam)^l delta_(t+l)."""
    ahead = np.append(value[1:], after)
    delta = reward + gamma * ahead - value
    return np.array([sum((gamma * lam) ** k * d for k, d in enumerate(delta[t:])) for t in range(len(reward))])


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0), (0.0, 0.3)])
def test_gae_is_the_sum_of_discounted_deltas(gamma: float, lam: float, bootstrap: bool) -> None:
    reply_N, count_R = tokens()
    random = np.random.default_rng(5)
    reward, value = random.normal(size=len(reply_N)), random.normal(size=len(reply_N))
    after = random.normal(size=len(COUNTS)) * (random.random(len(COUNTS)) < 0.5) if bootstrap else np.zeros(len(COUNTS))
    adv_N, target_N = gae(
        torch.from_numpy(reward), torch.from_numpy(value), count_R,
        gamma=gamma, lam=lam, after_R=torch.from_numpy(after) if bootstrap else None,
    )  # fmt: skip
    ends = np.cumsum(COUNTS)[:-1]
    want = [
        naive_gae(r, v, gamma, lam, a)
        for r, v, a in zip(np.split(reward, ends), np.split(value, ends), after, strict=True)
    ]
    assert np.allclose(adv_N.numpy(), np.concatenate(want), atol=1e-12)
    assert np.allclose(target_N.numpy(), np.concatenate(want) + value, atol=1e-12)


def test_gae_by_hand_where_a_reply_ended_and_where_it_was_cut() -> None:
    """Two tokens, reward 1 at the end, value 0.5 before each, gamma 1/2, lam 1.

    Ended: delta = (0 + 0.25 - 0.5, 1 - 0.5). Cut, with a value of 2 behind it and no reward: (-0.25, 1 - 0.5).
    """
    half = torch.tensor([0.5, 0.5])
    ended, _ = gae(torch.tensor([0.0, 1.0]), half, torch.tensor([2]), gamma=0.5, lam=1.0)
    assert ended.tolist() == [-0.25 + 0.5 * 0.5, 0.5]
    cut, _ = gae(torch.zeros(2), half, torch.tensor([2]), gamma=0.5, lam=1.0, after_R=torch.tensor([2.0]))
    assert cut.tolist() == [-0.25 + 0.5 * 0.5, 0.5]
    as_if_ended, _ = gae(torch.zeros(2), half, torch.tensor([2]), gamma=0.5, lam=1.0)
    assert as_if_ended.tolist() == [-0.25 - 0.5 * 0.5, -0.5]


def test_gae_leaves_its_inputs_and_knows_no_gradient() -> None:
    value, after = torch.ones(3, requires_grad=True), torch.tensor([5.0])
    adv_N, target_N = gae(torch.zeros(3), value, torch.tensor([3]), after_R=after)
    assert not adv_N.requires_grad and not target_N.requires_grad
    assert after.tolist() == [5.0]


def test_a_missing_reward_stays_within_its_reply() -> None:
    count_R, value_N = torch.tensor([2, 3]), torch.arange(5.0)
    reward_N = token_rewards(torch.tensor([NAN, 1.0]), torch.ones(5), count_R, beta=0.1)
    adv_N, target_N = gae(reward_N, value_N, count_R)
    assert adv_N[:2].tolist() == [0.0, 0.0] and target_N[:2].tolist() == [0.0, 1.0]
    alone, _ = gae(reward_N[2:], value_N[2:], count_R[1:])
    assert adv_N[2:].tolist() == alone.tolist()


def test_reward_to_go_sums_what_follows() -> None:
    got = reward_to_go(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]), torch.tensor([3, 2]), gamma=0.5)
    assert got.tolist() == [1 + 1 + 1, 2 + 2, 4, 8 + 8, 16]


def test_gae_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="both lie in"):
        gae(torch.zeros(2), torch.zeros(2), torch.tensor([2]), gamma=1.01)
    with pytest.raises(ValueError, match="one of each"):
        gae(torch.zeros(2), torch.zeros(2), torch.tensor([3]))
