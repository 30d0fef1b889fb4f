"""A step's experience: hand-written replies with ends, cuts and masks; how it is cut; how it is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from fairlead.engine.layout import Tree  # noqa: E402
from fairlead.exchange import Exchange, assistant, user  # noqa: E402
from fairlead.methods.config_policy import ALGORITHMS  # noqa: E402
from fairlead.methods.experience import Experience, experience_of, keep, kept, part_of, pieces_of  # noqa: E402
from fairlead.methods.gather import Source  # noqa: E402
from fairlead.methods.policy_terms import (  # noqa: E402
    Coefficients,
    advantages_of_step,
    counts_of,
    pairs_of,
    rewards_of_step,
)
from fairlead.methods.rewards import Objective  # noqa: E402
from fairlead.methods.rollouts import Asked, Drawn  # noqa: E402
from methods.policies import judge, letters  # noqa: E402

END = 9


def asked(key: int, *tokens: int) -> Asked:
    return Asked(tokens, Exchange((user("x"),), ()), key)


def drawn(*tokens: int, mask: tuple[bool, ...] | None = None, logp: float = -1.0) -> Drawn:
    lps = tuple(logp * (t + 1) if mask is None or mask[t] else 0.0 for t in range(len(tokens)))
    return Drawn(tokens, lps, "stop" if tokens[-1] == END else "length", (assistant("y"),), mask)


def step() -> Experience:
    """Two prompts: one reply ended and one was cut; of the other prompt one holds a tool's result, one is a lone end."""
    groups = [
        [drawn(3, 4, END), drawn(3, 4, 5, 6)],
        [drawn(5, 7, 7, 8, END, mask=(True, False, False, True, True)), drawn(END)],
    ]
    raw = torch.tensor([[1.0], [0.0], [0.25], [0.75]], dtype=torch.float64)
    return experience_of([asked(4, 1, 2), asked(0, 2, 2, 2)], groups, raw, version=7, taken=2)


def test_the_end_token_counts_and_what_the_policy_did_not_draw_does_not() -> None:
    made = step()
    assert made.count_R.tolist() == [3, 4, 3, 1]
    assert made.ended_R.tolist() == [True, False, True, True]
    assert made.reply_N.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3]
    assert made.group_R.tolist() == [0, 0, 1, 1]
    assert made.sampler_N.tolist() == [-1, -2, -3, -1, -2, -3, -4, -1, -4, -5, -1], "a tool's tokens have no log-prob"
    assert made.trees[1].masks == ((True, False, False, True, True), None)


def test_a_cut_reply_has_the_reward_for_those_who_never_ended_and_a_long_one_less() -> None:
    some = [Objective(judge(letters))]
    config = ALGORITHMS["grpo"].settings({"unfinished": -2.0, "max_tokens": 4, "overlong": 0.5})
    reward = rewards_of_step(step(), some, config).more["reward_R"]
    assert reward.tolist() == [1.0 - 0.5, -2.0 - 1.0, 0.25 - 0.5, 0.75]


def test_replies_that_differ_in_length_alone_have_nothing_to_say_to_dynamic_sampling() -> None:
    some = [Objective(judge(letters))]
    config = ALGORITHMS["dapo"].settings({"max_tokens": 4, "overlong": 0.5})
    source: Any = SimpleNamespace(config=config, objectives=lambda number: some)
    alike = replace(step(), raw_RK=torch.full((4, 1), 0.5).double())
    assert len(set(rewards_of_step(alike, some, config).more["reward_R"].tolist())) > 1
    assert Source._informative(source, 0, alike) == [False, False]
    assert Source._informative(source, 0, step()) == [True, True]


def test_advantages_reach_every_token_of_their_reply_and_no_other() -> None:
    config = ALGORITHMS["dr-grpo"].settings({})
    some = [Objective(judge(letters))]
    made = advantages_of_step(rewards_of_step(step(), some, config), some, config, Coefficients(0.0))
    assert made.more["adv_N"].tolist() == [0.5] * 3 + [-0.5] * 4 + [-0.25] * 3 + [0.25]


def test_a_reward_on_the_last_token_flows_back_through_the_values() -> None:
    """PPO by hand: gamma 1, lambda 1, no KL: the advantage is the reward less the value."""
    config = ALGORITHMS["ppo"].settings({"kl": 0.0, "lam": 1.0, "whiten": False})
    some = [Objective(judge(letters))]
    value = torch.arange(11, dtype=torch.float64)[:, None] / 10
    made = rewards_of_step(step(), some, config).with_more(value_NK=value)
    made = advantages_of_step(made, some, config, Coefficients(0.0))
    reward_N = torch.tensor([1.0] * 3 + [0.0] * 4 + [0.25] * 3 + [0.75], dtype=torch.float64)
    assert torch.allclose(made.more["adv_N"], reward_N - value[:, 0])
    assert torch.allclose(made.more["target_NK"][:, 0], reward_N)


def test_a_group_longer_than_the_budget_is_cut_between_replies() -> None:
    made = step()
    whole = pieces_of(made, [0, 1], 100, whole=False)
    assert [piece.replies for piece in whole] == [(0, 1), (2, 3)]
    cut = pieces_of(made, [0, 1], 6, whole=False)
    assert [piece.replies for piece in cut] == [(0,), (1,), (2,), (3,)]
    assert cut[2].tree == Tree((2, 2, 2), ((5, 7, 7, 8, END),), ((True, False, False, True, True),))
    assert [piece.replies for piece in pieces_of(made, [1], 6, whole=True)] == [(2, 3)]
    part = part_of(made, [cut[2], cut[0]])
    assert part.at_N.tolist() == [7, 8, 9, 0, 1, 2] and part.at_R.tolist() == [2, 0]


def test_counts_are_of_the_minibatch_and_only_of_what_is_learnt_from() -> None:
    some = [Objective(judge(letters))]
    for name, wanted in (("grpo", (4, 2)), ("expert", (1, 1))):
        config = ALGORITHMS[name].settings({"replies": 2})
        made = advantages_of_step(rewards_of_step(step(), some, config), some, config, Coefficients(0.0))
        got = counts_of(made, [1], config)
        assert (got.tokens, got.replies) == wanted


def test_pairs_are_the_best_and_the_worst_and_a_tie_is_none() -> None:
    reward = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.3, float("nan"), 1.0, float("nan"), 2.0])
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert pairs_of(reward, group).tolist() == [[1, 0], [8, 6]]


def test_what_is_kept_is_what_was_put_there(tmp_path: Path) -> None:
    made = step().with_more({"reward": 0.1 + 0.2}, adv_N=torch.randn(11, dtype=torch.float64))
    made = made.with_more(raw=torch.tensor([float("nan"), 1.0]))
    keep(made, tmp_path / "a.safetensors")
    back = kept(tmp_path / "a.safetensors")
    assert back is not None and kept(tmp_path / "b.safetensors") is None
    assert (back.trees, back.rows, back.version, back.taken, back.told) == (
        made.trees, made.rows, made.version, made.taken, made.told,
    )  # fmt: skip
    for name in ("count_R", "sampler_N", "raw_RK", "ended_R"):
        assert torch.equal(getattr(back, name), getattr(made, name))
    assert set(back.more) == {"adv_N", "raw"} and torch.equal(back.more["adv_N"], made.more["adv_N"])
    body = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(body[:-3])
    with pytest.raises(ValueError, match="not a whole file"):
        kept(tmp_path / "a.safetensors")
