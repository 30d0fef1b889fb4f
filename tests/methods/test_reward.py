"""Reward models: the loss against TRL and against one row at a time, splits, what is learnt, kept, refused and resumed."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pydantic import ValidationError  # noqa: E402
from tests.fixtures import reward_case  # noqa: E402
from tests.methods.trainable import Tiny, tiny_model  # noqa: E402
from transformers import LlamaForCausalLM  # noqa: E402

from engine.helpers import keep_float64  # noqa: E402
from fairlead.engine.heads import ScalarHead  # noqa: E402
from fairlead.engine.layout import Tree  # noqa: E402
from fairlead.errors import InputError  # noqa: E402
from fairlead.exchange import Exchange, Preference, Ranking, assistant, user  # noqa: E402
from fairlead.judges.lineage import leaf  # noqa: E402
from fairlead.methods.config_reward import RewardConfig  # noqa: E402
from fairlead.methods.loop import Batch, Run, StepRecord, batches  # noqa: E402
from fairlead.methods.losses_reward import length_correlation  # noqa: E402
from fairlead.methods.reward import (  # noqa: E402
    LengthPull,
    Pair,
    Scorer,
    as_preferences,
    comparison_loss,
    new_scorer,
    pairs_of,
    train_reward,
)
from fairlead.methods.reward_evaluate import ask, evaluate_reward  # noqa: E402
from fairlead.methods.rows import compared_rows  # noqa: E402

MODEL = dataclasses.replace(tiny_model(), module=keep_float64(tiny_model().module))
CONFIG = RewardConfig(steps=4, rows_per_step=4, lr=1e-3, warmup=0, centre=0.05)


def comparisons() -> list[Preference | Ranking]:
    """Pairs with margins, soft labels and a tie, and rankings of 4 and 5 replies."""
    replies = [(assistant(text),) for text in ("yes", "no no", "the boat is blue", "a secret", "i keep that one")]
    return [
        Preference((user("a ?"),), replies[0], replies[2], margin=0.7),
        Ranking((user("the boat ?"),), tuple(replies[:4]), (2, 0, 3, 1)),
        Preference((user("b the boat is blue ?"),), replies[3], replies[1], strength=0.5),
        Preference((user("c ?"),), replies[4], replies[1], strength=0.8),
        Ranking((user("d ?"),), tuple(replies), (4, 3, 2, 1, 0)),
        Preference((user("what ?"),), replies[2], replies[0]),
        Preference((user("e ?"),), replies[1], replies[4], margin=1.5, strength=0.9),
        Preference((user("f the rats ?"),), replies[0], replies[3]),
    ]


# ---------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize(
    ("name", "dtype", "near"),
    [("plain", "float64", 1e-9), ("margin and centring", "float64", 1e-9), ("margin and centring", "float32", 1e-4)],
)
def test_loss_and_gradients_equal_those_of_trl(name: str, dtype: str, near: float) -> None:
    """TRL's RewardTrainer, same weights and batch; its numbers are in the fixture, with the script that made them."""
    case = reward_case.CASES[name]
    kind = getattr(torch, dtype)
    with np.load(reward_case.FIXTURE) as file:
        theirs = {k.removeprefix(f"{dtype}/{name}/"): file[k] for k in file.files if k.startswith(f"{dtype}/{name}/")}
    body = reward_case.filled(LlamaForCausalLM(reward_case.config()), kind)
    head = ScalarHead(16, dtype=kind)
    seed = np.frombuffer(b"score.weight", dtype=np.uint8).tolist()
    drawn = np.random.default_rng(seed).standard_normal((1, 16))[0] * 0.3
    head.weight_D.data.copy_(torch.from_numpy(drawn).float())  # the script's model, too, was float32 before float64
    trees = tuple(Tree(prompt, (chosen, rejected)) for prompt, chosen, rejected in reward_case.pairs())
    margins = reward_case.MARGINS if case["margin"] else (0.0,) * 4
    pairs = [(Pair(0, 1, 1.0, margin, 1.0),) for margin in margins]
    config = RewardConfig(margin=1.0, centre=case["centre"])
    loss, _ = comparison_loss(Scorer(body, head), Batch(0, 1, (0, 1, 2, 3), trees, 4, 0, True), pairs, config)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(theirs.pop("loss")), rel=near)
    ours = {n: p.grad for n, p in body.named_parameters() if p.grad is not None} | {"score.weight": head.weight_D.grad}
    assert ours.keys() == theirs.keys()
    a = torch.cat([ours[n].flatten() for n in sorted(ours)])
    b = torch.cat([torch.from_numpy(theirs[n]).flatten() for n in sorted(ours)])
    assert float((a - b).norm() / b.norm()) <= near
    assert float(b.norm()) > 0.1


def scorer_and_rows(config: RewardConfig = CONFIG) -> tuple[Scorer, Any, list[Any]]:
    values = comparisons()
    return new_scorer(MODEL, config, seed=3), compared_rows(MODEL, values), [pairs_of(value) for value in values]


def naive_loss(scorer: Scorer, trees: tuple[Tree, ...], values: list[Preference | Ranking], centre: float) -> Any:
    """Every reply as its own row through the untouched model, every pair on its own, means written out."""
    total = torch.zeros((), dtype=torch.float64)
    for tree, value in zip(trees, values, strict=True):
        r = []
        for reply in tree.replies:
            hidden = scorer.model.base_model(input_ids=torch.tensor([tree.prompt + reply])).last_hidden_state[0, -1]
            r.append((hidden * scorer.head.weight_D).sum())
        if isinstance(value, Preference):
            terms, margin, p = [(0, 1)], value.margin or 0.0, value.strength
        else:
            terms, margin, p = list(combinations(value.order, 2)), 0.0, 1.0
        for w, l in terms:  # noqa: E741
            up, down = torch.sigmoid(r[w] - r[l] - margin), torch.sigmoid(r[l] - r[w] - margin)
            bt = -p * torch.log(up) - (1 - p) * torch.log(down)
            total = total + (bt + centre * (r[w] + r[l]) ** 2) / len(terms)
    return total / len(trees)


def flat_gradient(scorer: Scorer) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in scorer.parameters() if p.grad is not None])


def test_pairs_and_rankings_equal_one_row_and_one_pair_at_a_time() -> None:
    scorer, rows, pairs = scorer_and_rows()
    loss, sums = comparison_loss(scorer, Batch(0, 1, tuple(range(8)), rows.trees, 8, 0, True), pairs, CONFIG)
    loss.backward()
    ours = flat_gradient(scorer)
    scorer.zero_grad()
    expected = naive_loss(scorer, rows.trees, comparisons(), CONFIG.centre)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), abs=1e-12)
    assert float((ours - flat_gradient(scorer)).norm() / ours.norm()) < 1e-10
    assert (sums["prompts"], sums["pairs"], sums["decided"], sums["replies"]) == (8, 6 + 6 + 10, 5 + 16, 12 + 9)


@pytest.mark.parametrize("length", [0.0, 0.4])
def test_a_step_may_be_cut_in_any_way(length: float) -> None:
    """Gradients of 8x1, 4x2, 1x8 and of packing by a token budget; the length penalty is of the whole step."""
    config = CONFIG.model_copy(update={"length": length, "rows_per_step": 8, "steps": 1})
    scorer, rows, pairs = scorer_and_rows(config)

    def gradient(cuts: list[list[int]]) -> tuple[torch.Tensor, float]:
        scorer.zero_grad()
        pull = LengthPull(scorer, rows, config)
        whole = 0.0
        for cut in cuts:
            batch = Batch(0, 1, tuple(cut), tuple(rows.trees[i] for i in cut), 8, 0, False)
            loss, _ = comparison_loss(scorer, batch, [pairs[i] for i in cut], config, pull)
            loss.backward()
            whole += float(loss.detach())
        return flat_gradient(scorer), whole

    one, value = gradient([list(range(8))])
    packed = [list(b.rows) for b in batches(rows, config.model_copy(update={"tokens_per_batch": 30}))]
    assert len(packed) > 2
    for cuts in ([[0, 5], [3, 1], [2, 7], [6, 4]], [[i] for i in range(8)], packed):
        again, same = gradient(cuts)
        assert same == pytest.approx(value, abs=1e-12)
        assert float((one - again).norm() / one.norm()) < 1e-10


def test_the_length_penalty_is_the_squared_correlation() -> None:
    config = CONFIG.model_copy(update={"length": 0.4, "rows_per_step": 8, "steps": 1})
    scorer, rows, pairs = scorer_and_rows(config)
    batch = Batch(0, 1, tuple(range(8)), rows.trees, 8, 0, True)
    with_it, _ = comparison_loss(scorer, batch, pairs, config, LengthPull(scorer, rows, config))
    without, _ = comparison_loss(scorer, batch, pairs, CONFIG)
    with pytest.raises(ValueError, match="give its LengthPull"):
        comparison_loss(scorer, batch, pairs, config)
    rewards, lengths, prompt = [], [], []
    for i, tree in enumerate(rows.trees):
        for reply in tree.replies:
            ids = torch.tensor([tree.prompt + reply])
            rewards.append(scorer.head(scorer.model.base_model(input_ids=ids).last_hidden_state[0, -1:])[0])
            lengths.append(float(len(reply)))
            prompt.append(i)
    direct = length_correlation(torch.stack(rewards), torch.tensor(lengths), torch.tensor(prompt)) ** 2
    assert float(with_it - without) == pytest.approx(0.4 * float(direct), abs=1e-10)
    ours = torch.autograd.grad(with_it - without, scorer.head.weight_D)[0]
    theirs = torch.autograd.grad(0.4 * direct, scorer.head.weight_D)[0]
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-8


# ------------------------------------------------------------------------------------------ what is learnt

WORDS = ["the boat", "a secret", "the rats", "the shed", "i keep that one", "the dock"]


def flavoured(n: int, seed: int) -> list[Preference]:
    """The better reply says blue, the worse one no, among words that mean nothing, of either length."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        short, long = (" ".join(rng.choice(WORDS, size=k)) for k in (2, 5))
        good, bad = (long, short) if rng.random() < 0.5 else (short, long)
        rows.append(
            Preference((user(f"what {i} ?"),), (assistant(f"{good} blue"),), (assistant(f"{bad} no"),), margin=0.0)
        )
    return rows


FAST = RewardConfig(steps=40, rows_per_step=16, lr=3e-3, warmup=0.1, centre=0.01, tokens_per_batch=100_000)


def test_a_learnable_preference_is_learnt() -> None:
    """Held-out accuracy above 0.9 on 100 pairs of unseen prompts. A coin passes with probability below 1e-16."""
    model = tiny_model(torch.float32)
    got = train_reward(model, flavoured(160, 0), FAST, held_out=flavoured(60, 1))
    report = evaluate_reward(got.model, flavoured(100, 2), groups=[str(i) for i in range(100)])
    reward, longer = report.accuracy[:2]
    assert reward.accuracy.value > 0.9 and reward.accuracy.low > 0.8
    assert abs(longer.accuracy.value - 0.5) < 0.15
    assert got.metrics()["accuracy"] > 0.9
    assert abs(got.metrics()["reward_mean"]) < 0.5
    assert got.model.calibration.held_out and got.model.calibration.pairs == 60
    assert report.log_loss.value < 0.3
    # the model that was given is as it was
    assert torch.equal(
        torch.cat([p.flatten() for p in model.module.parameters()]),
        torch.cat([p.flatten() for p in tiny_model(torch.float32).module.parameters()]),
    )


def rated(n: int, seed: int, *, by_length: float) -> list[Preference]:
    """Replies that say blue or no, short or long, each at random; the rater likes blue, and `by_length` length."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        good, long = rng.integers(0, 2, 2), rng.integers(0, 2, 2)
        if not (good[0] != good[1] or (long[0] != long[1] and by_length)):
            good[1] = 1 - good[0]
        replies = []
        for g, l in zip(good, long, strict=True):  # noqa: E741
            words = " ".join(rng.choice(WORDS, size=5 if l else 2))
            replies.append((assistant(f"{words} {'blue' if g else 'no'}"),))
        lead = 2.0 * (good[0] - good[1]) + by_length * (long[0] - long[1])
        if rng.random() >= 1 / (1 + math.exp(-lead)):
            replies.reverse()
        rows.append(Preference((user(f"what {i} ?"),), replies[0], replies[1]))
    return rows


def test_the_length_penalty_takes_length_out_of_the_reward() -> None:
    """From raters who like length as much as quality; asked about pairs where the two are independent. A fixed seed."""
    model, rows = tiny_model(torch.float32), rated(320, 0, by_length=2.0)
    test = rated(120, 1, by_length=0.0)
    by_quality = [p for p in test if ("blue" in p.chosen[0].text) != ("blue" in p.rejected[0].text)]
    right = [p if "blue" in p.chosen[0].text else Preference(p.messages, p.rejected, p.chosen) for p in by_quality]
    plain = evaluate_reward(train_reward(model, rows, FAST).model, right)
    freed = evaluate_reward(train_reward(model, rows, FAST.model_copy(update={"length": 3.0})).model, right)
    by_chance = plain.length_labels.value  # what quality alone shows on these pairs
    assert plain.length.value - by_chance > 0.2
    assert abs(freed.length.value - by_chance) < 0.1
    assert freed.accuracy[0].accuracy.value > plain.accuracy[0].accuracy.value


def test_ties_are_kept_apart() -> None:
    """Trained on ties alone, rewards of a pair come together."""
    rows = [Preference(p.messages, p.chosen, p.rejected, strength=0.5) for p in flavoured(40, 0)]
    model = tiny_model(torch.float32)
    before, _ = ask(train_reward(model, rows, FAST.model_copy(update={"steps": 1, "lr": 1e-9})).model, rows)
    got = train_reward(model, rows, FAST.model_copy(update={"steps": 20}))
    after, _ = ask(got.model, rows)
    assert got.ties == 40
    assert math.isnan(got.metrics()["accuracy"])
    assert np.abs(np.array(after, float)).mean() < 0.3 * np.abs(np.array(before, float)).mean()


# ------------------------------------------------------------------------------------------------ the rows


def test_pairs_of_rankings_weigh_one_together() -> None:
    ranking = comparisons()[4]
    pairs = pairs_of(ranking)
    assert [(p.better, p.worse) for p in pairs][:4] == [(4, 3), (4, 2), (4, 1), (4, 0)]
    assert len(pairs) == 10 and sum(p.weight for p in pairs) == pytest.approx(1.0)
    assert isinstance(ranking, Ranking)
    flat = list(as_preferences([ranking]))
    assert (flat[0].chosen, flat[0].rejected) == (ranking.replies[4], ranking.replies[3])


def test_rows_without_a_comparison_are_counted_or_refused() -> None:
    same, a, b = (assistant("yes"),), (assistant("a"),), (assistant("b"),)
    said = (user("x ?"),)
    rows = [
        *comparisons(),
        Preference(said, same, same),
        Ranking(said, (a, same, same, b), (1, 0, 2, 3)),
    ]
    got = train_reward(MODEL, rows, CONFIG)
    assert (got.identical, got.prompts, got.pairs, got.ties) == (2, 9, 22 + 5, 1)
    with pytest.raises(InputError, match="all 1 pairs have two identical replies"):
        train_reward(MODEL, [Preference(said, same, same)], CONFIG)
    with pytest.raises(InputError, match="three: a ranking of 1 replies compares nothing"):
        train_reward(MODEL, [Ranking(said, (a,), (0,))], CONFIG, places=["three"])
    long = Preference((user("the boat " * 100),), a, b)
    with pytest.raises(InputError, match="here .* do not fit|rows do not fit"):
        train_reward(MODEL, [*comparisons(), long], CONFIG, places=[*map(str, range(8)), "here"])
    skipped = train_reward(MODEL, [*comparisons(), long], CONFIG.model_copy(update={"too_long": "skip"}))
    assert (skipped.skipped_too_long, skipped.prompts) == (1, 8)
    with pytest.raises(ValidationError):
        RewardConfig(centre=-1)


def test_lineage_names_base_rows_and_labellers() -> None:
    teacher = leaf("critic", text="be kind", model="wt:teacher")
    one = train_reward(MODEL, comparisons(), CONFIG, labelled_by=teacher).model
    again = train_reward(MODEL, comparisons()[::-1], CONFIG, name="other").model
    assert one.base == MODEL.lineage and teacher < one.lineage
    assert {item.kind for item in one.lineage} == {"reward", "rows", "critic"}
    assert one.lineage & again.lineage  # other weights, the same rows in another order
    assert not one.lineage & train_reward(MODEL, comparisons()[:-1], CONFIG).model.lineage


# ------------------------------------------------------------------------------------------------ resuming


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_reward_model(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"length": 0.1})

    def die(r: StepRecord) -> None:
        if r.step == 1:
            raise Killed

    whole = train_reward(MODEL, comparisons(), config)
    with pytest.raises(Killed):
        train_reward(MODEL, comparisons(), config, Run(checkpoint=tmp_path, every=1, progress=die))
    seen: list[int] = []
    again = train_reward(
        MODEL, comparisons(), config, Run(checkpoint=tmp_path, every=1, progress=lambda r: seen.append(r.step))
    )
    assert seen == [2, 3]
    assert whole.model.weights == again.model.weights
    item = Exchange(comparisons()[0].messages, (assistant("yes"),))
    assert whole.model.judge([item]) == again.model.judge([item])


def test_the_model_given_is_a_trainable(tmp_path: Path) -> None:
    assert isinstance(MODEL, Tiny)
    with pytest.raises(ValueError, match="2 rows but 1 places"):
        train_reward(MODEL, comparisons()[:2], CONFIG, places=["one"])
