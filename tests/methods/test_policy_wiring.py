"""Every setting reaches the step it belongs to: one step through the loop's own functions against NumPy by hand.

A case is a setting, what the loop makes of a fixed step under it, and the same numbers written out apart from it. Each
must meet them, and must not where the setting is left at its default: a setting that is read by nobody fails here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.methods.policies import judge, letters, objectives, prompts, settings  # noqa: E402
from tests.methods.trainable import tiny_model  # noqa: E402

from fairlead.engine.layout import Tree  # noqa: E402
from fairlead.engine.logprobs import ReplyLogprobs  # noqa: E402
from fairlead.methods import policy as loop  # noqa: E402
from fairlead.methods import policy_terms as terms  # noqa: E402
from fairlead.methods import reading  # noqa: E402
from fairlead.methods.config_policy import PolicyConfig  # noqa: E402
from fairlead.methods.experience import Experience, Part  # noqa: E402
from fairlead.methods.policy import train_policy  # noqa: E402
from fairlead.methods.rewards import Objective  # noqa: E402

COUNTS = np.array([3, 2, 2, 1])  # two prompts, two replies to each
REPLY = np.repeat(np.arange(4), COUNTS)
GROUP = np.array([0, 0, 1, 1])
N = int(COUNTS.sum())
_numbers = np.random.default_rng(5)
LOGP, OLD, REF, SAMPLER = (-_numbers.uniform(0.5, 1.5, N) for _ in range(4))
ENTROPY, ADV, VALUE = _numbers.uniform(0.2, 2.0, N), _numbers.normal(size=N), _numbers.normal(size=N)
RAW = np.array([[1.0, 30.0], [-2.0, 10.0], [0.5, 10.0], [3.0, 70.0]])
WEIGHTS = (1.0, 0.5)
WIDE: dict[str, Any] = {"clip_low": 0.99, "clip_high": 99.0, "share": "tokens", "watch_kl": False}


def fixed(**more: np.ndarray) -> Experience:
    trees = (Tree((5, 6), ((1, 2, 3), (4, 5))), Tree((7,), ((8, 9), (1,))))
    step = Experience(
        trees, (0, 1), torch.tensor(COUNTS), torch.tensor(SAMPLER), torch.tensor(RAW), torch.ones(4, dtype=torch.bool),
        0, 2,
    )  # fmt: skip
    return step.with_more(**{name: torch.tensor(values) for name, values in more.items()})


def both() -> list[Objective]:
    return [Objective(judge(letters, name), weight) for name, weight in zip("ab", WEIGHTS, strict=True)]


def of_loss(step: Experience, config: PolicyConfig) -> np.ndarray:
    """The loss of the fixed step, its gradient in the log-probs, and in the entropies."""
    logp_N, entropy_N = (torch.tensor(values, requires_grad=True) for values in (LOGP, ENTROPY))
    logp = ReplyLogprobs(logp_N, torch.tensor(REPLY), torch.tensor(COUNTS), entropy_N if config.entropy else None)
    whole = Part(torch.arange(N), torch.arange(4))
    counts = terms.counts_of(step, [0, 1], config)
    loss, _ = terms.policy_loss(logp, whole, step, config, counts, terms.Coefficients(config.kl))
    loss.backward()
    pulls = entropy_N.grad if entropy_N.grad is not None else torch.zeros(N)
    return np.concatenate([[float(loss.detach())], logp_N.grad.numpy(), pulls.numpy()])


def wanted_of(loss: float, gradient: np.ndarray, pulls: np.ndarray | float = 0.0) -> np.ndarray:
    return np.concatenate([[loss], gradient, np.full(N, pulls) if np.ndim(pulls) == 0 else pulls])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


# ------------------------------------------------------------------------------------ in a micro-batch's loss


def with_advantages(config: PolicyConfig) -> np.ndarray:
    return of_loss(fixed(adv_N=ADV, old_N=OLD, ref_N=REF), config)


def entropy() -> np.ndarray:
    """More entropy is a lower loss."""
    surrogate = -np.exp(LOGP - OLD) * ADV / N
    return wanted_of(surrogate.sum() - 0.3 * ENTROPY.mean(), surrogate, -0.3 / N)


def kl_reweighted() -> np.ndarray:
    """The estimate k3 times the ratio, and the product rule."""
    ratio, lead = np.exp(LOGP - OLD), REF - LOGP
    k3, slope = np.exp(lead) - 1 - lead, 1 - np.exp(lead)
    surrogate = -ratio * ADV / N
    return wanted_of((surrogate + 0.2 * ratio * k3 / N).sum(), surrogate + 0.2 * ratio * (k3 + slope) / N)


def clipped_reply_token() -> np.ndarray:
    """One ratio for all tokens of a reply; each token's gradient is its own, weighed by its own advantage."""
    mean = np.array([(LOGP - OLD)[r == REPLY].mean() for r in range(4)])
    each = -np.exp(mean)[REPLY] * ADV / N
    return wanted_of(each.sum(), each)


def pairs(config: PolicyConfig) -> np.ndarray:
    step = terms.rewards_of_step(fixed(ref_N=REF, old_N=OLD), both(), config)
    return of_loss(step.with_more(pair_B2=terms.pairs_of(step.more["reward_R"], step.group_R)), config)


def pair_soft() -> np.ndarray:
    """DPO with the label sigmoid(reward gap): the better is the first reply of one pair, the second of the other."""
    reward = (RAW @ np.array(WEIGHTS)) / 20
    lead = np.array([(LOGP - REF)[r == REPLY].sum() for r in range(4)])
    loss, gradient = 0.0, np.zeros(N)
    for better, worse in ((0, 1), (3, 2)):
        label, h = sigmoid(reward[better] - reward[worse]), 0.4 * (lead[better] - lead[worse])
        loss -= (label * np.log(sigmoid(h)) + (1 - label) * np.log(sigmoid(-h))) / 2
        pull = 0.4 * (sigmoid(h) - label) / 2
        gradient += pull * ((better == REPLY) * 1.0 - (worse == REPLY))
    return wanted_of(loss, gradient)


def corrected(config: PolicyConfig) -> np.ndarray:
    return of_loss(reading.corrected(fixed(adv_N=ADV, old_N=OLD), config, exact=False), config)


def importance_cap() -> np.ndarray:
    weight = np.minimum(np.exp(OLD - SAMPLER), 1.2)
    assert 0 < (weight == 1.2).sum() < N
    each = -weight * np.exp(LOGP - OLD) * ADV / N
    return wanted_of(each.sum(), each)


# ---------------------------------------------------------------------------------- rewards and advantages


def rewards(config: PolicyConfig) -> np.ndarray:
    step = terms.rewards_of_step(fixed(), both(), config)
    return np.array([*step.more["reward_R"].tolist(), step.told.get("rewards_clipped", 0.0)])


def reward_std() -> np.ndarray:
    return np.array([*(RAW @ np.array(WEIGHTS) / 4), 0.0])


def reward_clip() -> np.ndarray:
    return np.array([8.0, 3.0, 5.5, 8.0, 2.0])  # of 16, 3, 5.5, 38


def advantages(config: PolicyConfig) -> np.ndarray:
    step = terms.rewards_of_step(fixed(value_NK=VALUE[:, None]), both(), config)
    adv_N: Any = terms.advantages_of_step(step, both(), config, terms.Coefficients(config.kl)).more["adv_N"]
    return np.asarray(adv_N)


def lam() -> np.ndarray:
    """Equation 16 of 1506.02438: the sum of discounted deltas; the reward comes with a reply's last token."""
    wanted = np.zeros(N)
    for r, reward in enumerate(RAW @ np.array(WEIGHTS)):
        at = np.flatnonzero(r == REPLY)
        values = np.append(VALUE[at], 0.0)
        delta = np.append(np.zeros(len(at) - 1), reward) + 0.9 * values[1:] - values[:-1]
        wanted[at] = [sum((0.9 * 0.6) ** (k - t) * delta[k] for k in range(t, len(at))) for t in range(len(at))]
    return wanted


def gdpo() -> np.ndarray:
    """Each objective over its group's std, then the weighted sum over the step's."""
    total = np.zeros(4)
    for k, weight in enumerate(WEIGHTS):
        for group in range(2):
            mine = RAW[group == GROUP, k]
            total[group == GROUP] += weight * (mine - mine.mean()) / (mine.std(ddof=1) + 1e-4)
    return ((total - total.mean()) / (total.std(ddof=1) + 1e-4))[REPLY]


# -------------------------------------------------------------------------- through a run of the tiny model


def critics_step(config: PolicyConfig) -> np.ndarray:
    """How far Adam's first update, which is its rate times the gradient's sign, moved policy and critic."""
    caught: list[Any] = []
    plain = loop.new_learner
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "new_learner", lambda *a: caught.append(plain(*a)) or caught[0])
        with_start = loop.Loop._update
        patch.setattr(loop.Loop, "_update", lambda *a: caught.append(copy.deepcopy(caught[0])) or with_start(*a))
        train_policy(tiny_model(), prompts(), objectives(), config)
    after, before = dict(caught[0].named_parameters()), dict(caught[1].named_parameters())
    return np.array([
        max(float((after[name] - before[name]).detach().abs().max()) for name in after if name.startswith(part)) / config.lr
        for part in ("policy.", "critic.")
    ])  # fmt: skip


def reference_read(config: PolicyConfig) -> np.ndarray:
    """Whether each step was told a KL, and whether it is that of its tokens."""
    seen: list[Experience] = []
    plain = loop.Loop.learn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "learn", lambda self, step, number: seen.append(step) or plain(self, step, number))
        train_policy(tiny_model(), prompts(), objectives(), config)
    found = []
    for step in seen:
        by_hand = 0.0
        if "ref_N" in step.more:
            by_hand = float((step.sampler_N - step.more["ref_N"]).sum()) / step.replies
        found += ["kl" in step.told, abs(by_hand - step.told.get("kl", 0.0)) < 1e-9]
    return np.array(found, dtype=float)


def opponent(config: PolicyConfig) -> np.ndarray:
    """Log-probs of the second step's opponents minus those of the mixture 0.7 policy + 0.3 reference, row by row."""
    model, caught = tiny_model(), {}
    plain = loop.Loop.learn

    def watched(self: Any, step: Experience, number: int) -> None:
        caught["step"], caught["policy"] = step, copy.deepcopy(self.learner.policy)
        plain(self, step, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "learn", watched)
        train_policy(model, prompts(), objectives(), config)
    apart, at = [], 0
    for tree in caught["step"].trees:
        for number, reply in enumerate(tree.replies):
            ids = torch.tensor([[*tree.prompt, *reply]])
            with torch.no_grad():
                mine, start = (
                    torch.log_softmax(m(input_ids=ids).logits[0, len(tree.prompt) - 1 : -1], -1)
                    for m in (caught["policy"], model.module)
                )
            mixed = 0.7 * mine.numpy() + 0.3 * start.numpy()
            mixed -= np.log(np.exp(mixed).sum(-1, keepdims=True))
            drawn = caught["step"].sampler_N[at : at + len(reply)].numpy()
            if number == 1:
                apart.append(np.abs(drawn - mixed[np.arange(len(reply)), list(reply)]).max())
            at += len(reply)
    return np.array([max(apart)])


# ------------------------------------------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Case:
    base: PolicyConfig
    given: dict[str, Any]
    ours: Callable[[PolicyConfig], np.ndarray]
    wanted: Callable[[], np.ndarray]


CASES = {
    "entropy": Case(PolicyConfig(**WIDE), {"entropy": 0.3}, with_advantages, entropy),
    "kl_reweighted": Case(PolicyConfig(kl=0.2, **WIDE), {"kl_reweighted": True}, with_advantages, kl_reweighted),
    "clipped_reply_token": Case(
        PolicyConfig(loss="clipped_reply", **WIDE), {"loss": "clipped_reply_token"}, with_advantages,
        clipped_reply_token,
    ),
    "pair_soft": Case(
        PolicyConfig(advantage="pair", replies=2, pair_beta=0.4, reward_std=20.0), {"pair_soft": True}, pairs, pair_soft
    ),
    "importance_cap": Case(PolicyConfig(**WIDE), {"importance_cap": 1.2}, corrected, importance_cap),
    "reward_std": Case(PolicyConfig(), {"reward_std": 4.0}, rewards, reward_std),
    "reward_clip": Case(PolicyConfig(), {"reward_clip": (3.0, 8.0)}, rewards, reward_clip),
    "lam": Case(PolicyConfig(advantage="gae", gamma=0.9, whiten=False), {"lam": 0.6}, advantages, lam),
    "gdpo": Case(PolicyConfig(), {"advantage": "gdpo"}, advantages, gdpo),
    "value_rate": Case(
        settings("ppo", steps=1, passes=1, grad_clip=None), {"value_rate": 3.0}, critics_step,
        lambda: np.array([1.0, 3.0]),
    ),
    "watch_kl": Case(
        settings("dr-grpo", steps=2, lr=0.02), {"watch_kl": False}, reference_read, lambda: np.array([0.0, 1.0] * 2)
    ),
    "nash_mix": Case(
        settings("nash-md", steps=2, lr=0.05), {"nash_mix": 0.3}, opponent, lambda: np.zeros(1)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_setting_does_in_the_step_what_its_formula_says(name: str) -> None:
    case = CASES[name]
    wanted = case.wanted()
    near: dict[str, float] = {"rtol": 1e-4 if name == "value_rate" else 1e-9, "atol": 1e-9}
    given = PolicyConfig(**{**case.base.model_dump(exclude_unset=True), **case.given})
    assert np.allclose(case.ours(given), wanted, **near)
    assert not np.allclose(case.ours(case.base), wanted, **near), "the case cannot tell the setting from its default"
    if name == "watch_kl":
        assert reference_read(case.base).tolist() == [1.0, 1.0] * 2
