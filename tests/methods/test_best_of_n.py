"""Best of n: the estimators against all subsets and against simulation, the sampler against what it was given."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from fairlead.exchange import Exchange, Verdict, assistant, user
from fairlead.judges.lineage import leaf
from fairlead.judges.rules import Judged
from fairlead.methods.best_of_n import best_of_n, curve, expected_best, expected_chosen
from fairlead.models.protocol import Prompt, Reply, Sampling
from fairlead.stats import kl_best_of_n


def test_expected_best_is_the_mean_over_all_subsets() -> None:
    values = [0.3, -1.0, 2.5, 0.3, 7.0, -4.0]
    for n in range(1, 7):
        every = [max(subset) for subset in itertools.combinations(values, n)]
        assert expected_best(values, n) == pytest.approx(sum(every) / len(every), abs=1e-12)
    assert expected_best(values, 1) == pytest.approx(np.mean(values))
    assert expected_best(values, 6) == 7.0


def test_expected_chosen_is_the_gold_of_the_proxys_best_over_all_subsets() -> None:
    rng = np.random.default_rng(0)
    proxy, gold = rng.integers(0, 4, 8).tolist(), rng.normal(size=8).tolist()  # with ties in the proxy
    for n in range(1, 9):
        every = []
        for subset in itertools.combinations(range(8), n):
            top = max(proxy[i] for i in subset)
            every.append(np.mean([gold[i] for i in subset if proxy[i] == top]))
        assert expected_chosen(proxy, gold, n) == pytest.approx(np.mean(every), abs=1e-12)


def test_expected_best_is_unbiased() -> None:
    """2,000 samples of 12 from an exponential, whose maximum of n has mean H_n; within 4 standard errors (p < 1e-4)."""
    rng = np.random.default_rng(1)
    for n in (2, 5, 12):
        estimates = [expected_best(row, n) for row in rng.exponential(size=(2000, 12))]
        truth = sum(1 / k for k in range(1, n + 1))
        error = float(np.std(estimates) / math.sqrt(len(estimates)))
        assert abs(float(np.mean(estimates)) - truth) < 4 * error


def test_it_stays_exact_for_many_samples() -> None:
    values = list(range(1, 20_001))
    assert expected_best(values, 10_000) == pytest.approx(10_000 * 20_001 / 10_001, rel=1e-9)  # mean of the maximum
    assert kl_best_of_n(1) == 0.0


def test_bad_arguments_are_refused() -> None:
    for n in (0, 4):
        with pytest.raises(ValueError, match="between 1 and the number of samples"):
            expected_best([1.0, 2.0, 3.0], n)
    with pytest.raises(ValueError, match="finite"):
        expected_best([1.0, math.nan], 1)
    with pytest.raises(ValueError, match="give both"):
        expected_chosen([1.0], [1.0, 2.0], 1)
    with pytest.raises(ValueError, match="at least one"):
        curve([], [], [1])


def test_a_curve_has_intervals_over_prompts_and_turns_down_where_the_proxy_is_hacked() -> None:
    """The proxy is gold plus noise that is worth nothing: it rises, and gold rises more slowly."""
    rng = np.random.default_rng(2)
    gold = rng.normal(size=(40, 64))
    proxy = gold + 2 * rng.normal(size=(40, 64))
    points = curve(proxy.tolist(), gold.tolist(), [1, 4, 16, 64])
    assert [p.n for p in points] == [1, 4, 16, 64]
    assert points[2].kl == pytest.approx(math.log(16) - 15 / 16)
    gains = [(p.proxy.value - points[0].proxy.value, p.gold.value - points[0].gold.value) for p in points[1:]]
    assert all(got > 2 * real for got, real in gains) and gains == sorted(gains)
    assert all(p.gold.n == 40 and p.gold.low < p.gold.value < p.gold.high for p in points)


# ----------------------------------------------------------------------------------------------- the sampler


@dataclass
class Talker:
    """Answers from a list, in turn."""

    answers: Sequence[str]
    name: str = "talker"
    lineage: str = "wt:talker"
    capabilities: frozenset[str] = frozenset({"max_tokens", "temperature", "seed"})
    context: int | None = None
    asked: list[Sampling] = field(default_factory=list)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling = Sampling()) -> list[tuple[Reply, ...]]:  # noqa: B008
        self.asked.append(sampling)
        return [
            tuple(
                Reply((assistant(a),), "error" if a == "broken" else "stop", error="down" if a == "broken" else "")
                for a in self.answers[: sampling.n]
            )
            for _ in prompts
        ]

    def logprobs(self, prompts: Sequence[Prompt], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        raise NotImplementedError


def length_judge(items: Sequence[Exchange]) -> list[Verdict]:
    return [
        Verdict(None, reason="mute") if item.reply_text == "mute" else Verdict(0.5, raw=float(len(item.reply_text)))
        for item in items
    ]


LONGEST = Judged("longest", length_judge, leaf("rule", text="longest"))
PROMPTS = [(user("a ?"),), (user("b ?"),)]


def test_the_best_by_raw_value_is_picked_and_everything_counted() -> None:
    model = Talker(["aa", "broken", "cccc", "mute", "dddd", "e"])
    picked = best_of_n(model, PROMPTS, LONGEST, n=6, max_tokens=9, seed=3)
    assert [p.best.reply_text for p in picked if p.best] == ["cccc", "cccc"]  # of equals the first
    assert [p.best.messages for p in picked if p.best] == PROMPTS
    assert picked[0].verdict == Verdict(0.5, raw=4.0)
    assert [item.reply_text for item, _ in picked[0].judged] == ["aa", "cccc", "dddd", "e"]
    assert (picked[0].unjudged, picked[0].missing) == (1, 1)
    assert model.asked == [Sampling(n=6, max_tokens=9, temperature=1.0, seed=3)]


def test_nothing_to_pick_from_is_none_and_scores_serve_where_there_is_no_raw() -> None:
    silent = best_of_n(Talker(["mute", "broken"]), PROMPTS[:1], LONGEST, n=2)[0]
    assert (silent.best, silent.verdict, silent.unjudged, silent.missing) == (None, None, 1, 1)
    scores = Judged("s", lambda items: [Verdict(1 / (1 + len(i.reply_text))) for i in items], leaf("rule", text="s"))
    assert best_of_n(Talker(["aaa", "b"]), PROMPTS[:1], scores, n=2)[0].best.reply_text == "b"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="at least one reply"):
        best_of_n(Talker(["a"]), PROMPTS, LONGEST, n=0)
