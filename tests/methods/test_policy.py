"""The loop of reinforcement learning: every algorithm through the same code, checked against slow and plain ones."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.methods.policies import (  # noqa: E402
    demonstrations,
    judge,
    letters,
    objectives,
    prompts,
    settings,
)
from tests.methods.trainable import Tiny, tiny_model, weights  # noqa: E402

from fairlead.errors import InputError  # noqa: E402
from fairlead.exchange import Exchange  # noqa: E402
from fairlead.methods import policy as loop  # noqa: E402
from fairlead.methods.config_policy import ALGORITHMS, PolicyConfig  # noqa: E402
from fairlead.methods.loop import Run, StepRecord, TrainingStopped  # noqa: E402
from fairlead.methods.policy import train_policy  # noqa: E402
from fairlead.methods.rewards import Objective  # noqa: E402
from fairlead.methods.rollouts import LocalSampler  # noqa: E402

NAMES = list(ALGORITHMS)


@pytest.fixture(scope="module")
def model() -> Tiny:
    return tiny_model()


class Killed(Exception):
    pass


def die_at(count: int, error: type[BaseException] = Killed) -> Callable[[StepRecord], None]:
    seen = []

    def progress(record: StepRecord) -> None:
        seen.append(record)
        if len(seen) == count:
            raise error

    return progress


# ------------------------------------------------------------------------------------------ every algorithm


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_moves_the_weights_and_tells_what_it_did(model: Tiny, name: str) -> None:
    config = settings(name)
    before = weights(model).clone()
    made = train_policy(model, prompts(), objectives(name), config)
    assert torch.equal(weights(model), before), "the model that came in is left as it was"
    assert not torch.equal(weights(made.model), before)
    assert len(made.records) == config.steps * config.updates
    assert len(made.steps) == config.steps
    told = made.steps[0].told
    assert math.isfinite(told["reward"]) and told["missing"] == 0
    assert abs(told["kl"]) < 1e-9, "nothing has moved before the first update"
    assert made.stopped == "" and made.missing["letters"] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_first_ratio_is_one_to_the_bit(monkeypatch: pytest.MonkeyPatch, name: str, dtype: Any) -> None:
    seen: list[tuple[Any, Any]] = []
    plain = loop.policy_loss

    def watched(logp: Any, part: Any, step: Any, *rest: Any) -> Any:
        seen.append((logp.logp_N.detach().double().clone(), step.more["old_N"][part.at_N]))
        return plain(logp, part, step, *rest)

    monkeypatch.setattr(loop, "policy_loss", watched)
    small = {"tokens_per_batch": 80} if name not in ("online-dpo", "xpo", "nash-md") else {}
    warm = {"temperature": 0.8, "kl_burst": 1e3}
    config = settings(name, steps=1, passes=1, minibatches=1, old_logprobs="recompute", **small, **warm)
    train_policy(tiny_model(dtype), prompts(), objectives(name), config)
    assert len(seen) > 1 or not small
    for now, old in seen:
        assert len(now) and torch.equal(now, old)


def test_a_temperature_that_is_left_out_of_the_update_is_seen_in_the_first_ratio(monkeypatch: Any) -> None:
    """The planted bug that the test above would catch: no identity makes the ratio 1."""
    plain = loop.reply_logprobs

    def forgetful(module: Any, trees: Any, **how: Any) -> Any:
        return plain(module, trees, **{**how, "temperature": 1.0})

    monkeypatch.setattr(loop, "reply_logprobs", forgetful)
    config = settings("grpo", steps=1, old_logprobs="recompute", temperature=0.7)
    (record,) = train_policy(tiny_model(), prompts(), objectives(), config).records
    assert record.sums["moved"] > 1e-3 * record.sums["scored"]


def test_the_sampler_and_the_trainer_agree_on_what_was_drawn() -> None:
    made = train_policy(tiny_model(torch.float32), prompts(), objectives(), settings("grpo", temperature=0.7))
    for record in made.records:
        assert record.sums["mismatch"] / record.sums["scored"] < 1e-5


# -------------------------------------------------------------------- the gradient, by another and slower way


def slow_logprobs(module: Any, prompt: tuple[int, ...], reply: tuple[int, ...], temperature: float) -> Any:
    """One row, the module's own forward, all logits."""
    ids = torch.tensor([[*prompt, *reply]])
    logits = module(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature
    return torch.log_softmax(logits, -1)[torch.arange(len(reply)), list(reply)]


def slow_grpo(module: Any, step: Any, beta: float, temperature: float, clip: float) -> Any:
    """GRPO in twenty lines: Shao et al. 2024, equations 3 and 4, group by group and reply by reply."""
    total, replies, at, row = 0.0, step.replies, 0, 0
    for tree in step.trees:
        rewards = step.more["reward_R"][row : row + len(tree.replies)].numpy()
        advantages = (rewards - rewards.mean()) / (np.std(rewards, ddof=1) + 1e-4)
        for reply, advantage in zip(tree.replies, advantages, strict=True):
            logp = slow_logprobs(module, tree.prompt, reply, temperature)
            old = step.more["old_N"][at : at + len(reply)]
            ref = step.more["ref_N"][at : at + len(reply)]
            ratio = torch.exp(logp - old)
            surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
            kl = torch.exp(ref - logp) - 1 - (ref - logp)
            total = total - (surrogate - beta * kl).mean() / replies
            at, row = at + len(reply), row + 1
    return total


def last_gradient(monkeypatch: pytest.MonkeyPatch, model: Tiny, config: PolicyConfig, sampler: Any = None) -> Any:
    """The gradient that the loop's last update saw, the weights before it, and the experience it came from."""
    caught: dict[str, Any] = {}
    plain = loop.Loop._update

    def watched(self: Any, step: Any, prompts: Any, pieces: Any, number: int) -> None:
        caught["step"], caught["before"] = step, copy.deepcopy(self.learner.policy)
        optimiser = self.updates.optimiser.step

        def catch(*args: Any) -> Any:
            caught["gradient"] = torch.cat([p.grad.flatten() for p in self.learner.policy.parameters()])
            return optimiser(*args)

        self.updates.optimiser.step = catch
        plain(self, step, prompts, pieces, number)
        self.updates.optimiser.step = optimiser

    monkeypatch.setattr(loop.Loop, "_update", watched)
    train_policy(model, prompts(), objectives(), config, sampler=sampler)
    return caught


@pytest.mark.parametrize("steps", [1, 3])
def test_the_gradient_of_grpo_is_that_of_the_equation(monkeypatch: Any, model: Tiny, steps: int) -> None:
    config = settings("grpo", steps=steps, passes=2, grad_clip=None, temperature=0.8, kl=0.3, old_logprobs="recompute")
    caught = last_gradient(monkeypatch, model, config)
    module = caught["before"]
    loss = slow_grpo(module, caught["step"], 0.3, 0.8, 0.2)
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])
    assert float((caught["gradient"] - wanted).norm() / wanted.norm()) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_how_a_step_is_cut_changes_nothing(name: str) -> None:
    """Micro-batches of any size, and groups cut over several of them, give the same weights."""
    found = []
    for budget in (4096, 90, 45):
        config = settings(name, tokens_per_batch=budget)
        found.append(weights(train_policy(tiny_model(), prompts(), objectives(name), config).model))
    for other in found[1:]:
        assert torch.allclose(found[0], other, rtol=0, atol=1e-9)


def test_groups_with_nothing_to_learn_are_skipped_only_without_a_kl_in_the_loss(monkeypatch: Any, model: Tiny) -> None:
    """And the denominators stay: the same weights as when they are not skipped."""

    def flat(item: Exchange) -> float:
        return 0.5 if "boat 1" in item.messages[0].text else letters(item)

    passed: list[int] = []
    plain = loop.pieces_of
    monkeypatch.setattr(loop, "pieces_of", lambda s, p, *a, **k: passed.append(len(p)) or plain(s, p, *a, **k))
    some = [Objective(judge(flat))]
    config = settings("dapo", steps=1, prompts_per_step=6, resample=0, overlong=None)
    skipped = train_policy(model, prompts(), some, config)
    assert set(passed) == {5} and skipped.steps[0].told["groups_flat"] == 1
    passed.clear()
    monkeypatch.setattr(loop.advantages, "idle_groups", lambda a, r, g, **_: torch.zeros(6, dtype=torch.bool))
    whole = train_policy(model, prompts(), some, config)
    assert set(passed) == {6}
    assert torch.allclose(weights(skipped.model), weights(whole.model), rtol=0, atol=1e-12)
    monkeypatch.undo()
    monkeypatch.setattr(loop, "pieces_of", lambda s, p, *a, **k: passed.append(len(p)) or plain(s, p, *a, **k))
    passed.clear()
    train_policy(model, prompts(), some, settings("grpo", steps=1, prompts_per_step=6))
    assert set(passed) == {6}


class Skewed(LocalSampler):
    """Draws as it should, and tells log-probs that are off by so many nats: an engine of its own."""

    exact = False

    def __init__(self, tokenizer: Any, off: float) -> None:
        super().__init__(tokenizer)
        self.off = off

    def draw(self, asked: Any, how: Any) -> Any:
        return [[replace(d, logprobs=tuple(x - self.off for x in d.logprobs)) for d in group]
                   for group in super().draw(asked, how)]  # fmt: skip


@pytest.mark.parametrize(("off", "weight"), [(1e-4, 1.0), (0.3, math.exp(0.3)), (2.0, 2.0)])
def test_a_sampler_that_is_no_copy_of_the_trainer_is_measured_and_corrected(
    monkeypatch: Any, model: Tiny, off: float, weight: float
) -> None:
    """Below the bound nothing is done; above it each token weighs its ratio, up to the cap of 2."""
    config = settings("dr-grpo", steps=1, grad_clip=None, old_logprobs="recompute")
    plain = last_gradient(monkeypatch, model, config)["gradient"]
    monkeypatch.undo()
    caught = last_gradient(monkeypatch, model, config, sampler=Skewed(model.tokenizer, off))
    told = caught["step"].told
    assert told["mismatch_mean"] == pytest.approx(off, rel=1e-6) and ("importance_capped" in told) == (weight != 1.0)
    assert torch.allclose(caught["gradient"], weight * plain, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("cut", "said"), [({"top_p": 0.9}, True), ({"top_k": 5}, True), ({}, False),
                                           ({"top_p": 1.0, "top_k": 10_000}, False)])  # fmt: skip
def test_draws_from_a_cut_distribution_are_warned_of_also_in_a_single_update(
    model: Tiny, caplog: Any, cut: dict[str, Any], said: bool
) -> None:
    config = settings("grpo", steps=1, **cut)
    assert config.updates == 1
    made = train_policy(model, prompts(), objectives(), config)
    assert caplog.text.count("off by the kept mass") == said
    assert made.records[0].sums["mismatch"] < 1e-9, "log-probs are those of the whole distribution all the same"


# ------------------------------------------------------------------------------------------------- rewards


def test_a_reward_that_is_missing_is_counted_and_pulls_nowhere(model: Tiny, caplog: Any) -> None:
    def forgetful(item: Exchange) -> float | None:
        return None if letters(item) < 0.3 else letters(item)

    made = train_policy(model, prompts(), [Objective(judge(forgetful, "forgetful"))], settings("grpo", kl=0.0, steps=1))
    told = made.steps[0].told
    assert caplog.text.count("forgetful has no score for some replies; the first because: silent") == 1
    assert 0 < told["missing"] < told["replies"] and made.missing == {"forgetful": told["missing.forgetful"]}
    assert told["reward"] > 0.3, "a missing reward is no zero in the mean"


def test_a_judge_that_raises_has_no_values_and_the_others_go_on(model: Tiny, caplog: Any) -> None:
    def broken(item: Exchange) -> float:
        raise RuntimeError("no connection")

    both = [*objectives(), Objective(judge(broken, "broken"), role="cost")]
    config = settings("safe-grpo", cost_budget=0.2, steps=2)
    made = train_policy(model, prompts(), both, config)
    assert made.missing == {"letters": 0, "broken": 24}
    assert "broken raised on 12 of 12 replies" in caplog.text and "no connection" in caplog.text


def test_a_step_without_a_single_reward_stops_the_run(model: Tiny) -> None:
    with pytest.raises(TrainingStopped, match="not one of 12 replies has a reward.*judge: silent"):
        train_policy(model, prompts(), [Objective(judge(lambda e: None))], settings("grpo"))


def test_two_objectives_are_told_apart_in_the_log(model: Tiny) -> None:
    both = [Objective(judge(letters, "letters")), Objective(judge(lambda e: -float(len(e.reply_text)), "short"), 0.01)]
    told = train_policy(model, prompts(), both, settings("grpo", steps=1)).steps[0].told
    assert told["reward"] == pytest.approx(told["reward.letters"] + 0.01 * told["reward.short"])


def test_settings_and_objectives_must_belong_together(model: Tiny) -> None:
    for name, some, message in (
        ("safe-grpo", objectives(), "no objective has role cost"),
        ("grpo", objectives("safe"), "give the budget"),
        ("grpo", objectives() * 2, "called 'letters'"),
        ("grpo", [Objective(judge(letters), 0.0)], "weight 0"),
    ):
        with pytest.raises(InputError, match=message):
            train_policy(model, prompts(), some, settings(name))
    with pytest.raises(InputError, match="a critic is given"):
        train_policy(model, prompts(), objectives(), settings("grpo"), critic=object())  # type: ignore[arg-type]
    assert loop.Reinforced(model, (), 0, "KL burst", {}).metrics() == {}
    with pytest.raises(InputError, match="ptx"):
        train_policy(model, prompts(), objectives(), settings("grpo", ptx=0.1))
    with pytest.raises(InputError, match="leave no room for replies of 120 tokens"):
        train_policy(model, prompts(), objectives(), settings("grpo", max_tokens=120))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("grpo", {"replies": 1}, "give at least 2"),
        ("ppo", {"kl_estimator": "k3"}, "only k1 belongs there"),
        ("cispo", {"clip_ceiling": None}, "clip_ceiling"),
        ("grpo", {"old_logprobs": "update", "passes": 2}, "passes and minibatches of 1"),
        ("grpo", {"rows_per_step": 4}, "prompts_per_step x replies"),
        ("grpo", {"kl_in": "reward"}, "put it in the loss"),
        ("grpo", {"minibatches": 9}, "never split"),
        ("grpo", {"too_long": "cut"}, "never cut"),
        ("nash-md", {"asynchronous": True}, "on the spot"),
        ("grpo", {"reference": "ema", "lora": {}}, "would mix the adapters' factors"),
    ],
)
def test_settings_that_cannot_learn_are_refused(name: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(name, **wrong)


def test_dynamic_sampling_puts_other_prompts_in_the_place_of_silent_ones(model: Tiny) -> None:
    def flat(item: Exchange) -> float:
        return 0.5 if any(f"boat {i}" in item.messages[0].text for i in (0, 2, 4)) else letters(item)

    made = train_policy(model, prompts(), [Objective(judge(flat))], settings("dapo", steps=2, resample=8))
    for record in made.steps:
        assert record.told["groups_flat"] == 0 and record.told["groups"] == 3
        assert record.told["overlong"] > 0, "replies near the limit are docked, and counted"
    assert any(record.told["resampled_rounds"] for record in made.steps)


# ------------------------------------------------------------------------------------- learning, in the small


def share_of(text: str) -> Callable[[Exchange], float]:
    return lambda item: item.reply_text.count(text) / max(len(item.reply_text), 1)


@pytest.mark.parametrize("name", NAMES)
def test_every_algorithm_raises_what_it_is_rewarded_for(name: str) -> None:
    """Replies full of one letter: the mean reward of the last steps is well above that of the first."""
    more: dict[str, Any] = {"prompts_per_step": 4, "replies": 8}
    if name in ("online-dpo", "xpo", "nash-md"):  # what is told of the reward is of the policy's own replies
        more = {"prompts_per_step": 16}
    if name in ("ppo", "safe-ppo", "remax", "reinforce++"):
        more = {"prompts_per_step": 32}
    if name == "gspo":  # its range is meant for long replies
        more |= {"clip_low": 0.1, "clip_high": 0.1}
    if ALGORITHMS[name].defaults.get("kl_in") == "reward":
        more["kl"] = 1e-3  # rewards here are a few hundredths
    goal = [Objective(judge(share_of("e"), "letters"))]
    if name == "nash-md":  # reads the difference of two rewards as a log-odds
        goal = [Objective(judge(lambda e: 40 * share_of("e")(e), "letters"))]
        more["nash_tau"] = 0.01
    if name.startswith("safe"):
        goal.append(Objective(judge(lambda e: 0.0, "nothing"), role="cost"))
        more["cost_start"] = 1e-3
    steps = 40 if name == "remax" else 16  # one reply a prompt, against one
    config = settings(name, steps=steps, lr=5e-3, max_tokens=6, **more)
    made = train_policy(tiny_model(torch.float32), prompts(), goal, config)
    first = np.mean([r.told["reward"] for r in made.steps[:3]])
    last = np.mean([r.told["reward"] for r in made.steps[-3:]])
    assert last > first + 0.05, (first, last)


def test_ppo_with_a_pretraining_mix_keeps_what_it_imitates() -> None:
    goal = [Objective(judge(share_of("e")))]
    nll = {}
    for gamma in (0.0, 1.0):
        config = settings("ppo", steps=8, lr=3e-3, ptx=gamma, ptx_rows=5)
        mix = demonstrations() if gamma else []
        made = train_policy(tiny_model(torch.float32), prompts(), goal, config, pretraining=mix)
        from fairlead.engine.logprobs import score
        from fairlead.methods.rows import exchange_rows

        rows = exchange_rows(made.model, demonstrations())
        nll[gamma] = -float(score(made.model.module, rows.trees).logp_N.mean())
        if gamma:
            first, last = made.records[0], made.records[-1]
            assert last.sums["ptx_nll"] / last.rows < first.sums["ptx_nll"] / first.rows
    assert nll[1.0] < nll[0.0] - 0.5


def test_the_kl_coefficient_follows_its_target(model: Tiny) -> None:
    for target, rises in ((1e-4, True), (1e3, False)):
        config = settings("grpo", steps=4, kl=0.1, kl_target=target, lr=1e-2)
        found = [r.told["kl_coefficient"] for r in train_policy(model, prompts(), objectives(), config).steps]
        assert (found[-1] > found[0]) == rises


def test_the_multiplier_rises_while_the_cost_is_over_its_budget(model: Tiny) -> None:
    for budget, rises in ((-10.0, True), (10.0, False)):
        config = settings("safe-grpo", steps=3, cost_budget=budget)
        found = [r.told["multiplier"] for r in train_policy(model, prompts(), objectives("safe"), config).steps]
        assert (found[-1] > found[0]) == rises


@pytest.mark.parametrize("name", ["safe-grpo", "safe-ppo"])
def test_a_cost_over_its_budget_is_pushed_down_against_the_reward(name: str) -> None:
    """Reward and cost are the same thing here: what the multiplier says decides which way it goes."""
    both = [Objective(judge(share_of("e"), "reward")), Objective(judge(share_of("e"), "cost"), role="cost")]
    more: dict[str, Any] = {"prompts_per_step": 4, "replies": 8} if name == "safe-grpo" else {"prompts_per_step": 32}
    ends = {}
    for start in (1e-3, 10.0):
        config = settings(name, steps=16, lr=5e-3, max_tokens=6, kl=1e-3, cost_start=start, cost_rate=1e-9, **more)
        steps = train_policy(tiny_model(torch.float32), prompts(), both, config).steps
        ends[start] = float(np.mean([record.told["cost"] for record in steps[-3:]]))
    assert ends[10.0] < ends[1e-3] - 0.03, ends


def test_every_prompt_is_asked_once_an_epoch_and_in_another_order_in_the_next(model: Tiny) -> None:
    asked: list[str] = []

    def listening(item: Exchange) -> float:
        asked.append(item.messages[0].text)
        return letters(item)

    train_policy(model, prompts(), [Objective(judge(listening))], settings("grpo", steps=4, lr=1e-9))
    one, two = (list(dict.fromkeys(asked[i : i + 24])) for i in (0, 24))
    assert set(one) == set(two) == {p.messages[0].text for p in prompts()} and one != two


def test_the_reference_is_reset_or_follows(model: Tiny) -> None:
    still = train_policy(model, prompts(), objectives(), settings("grpo", steps=4, lr=1e-2)).steps
    for how in ({"reference": "reset", "reference_every": 3}, {"reference": "ema", "reference_rate": 0.9}):
        moved = train_policy(model, prompts(), objectives(), settings("grpo", steps=4, lr=1e-2, **how)).steps
        assert abs(moved[3].told["kl"]) < 0.5 * abs(still[3].told["kl"])
    assert abs(still[3].told["kl"]) > 1e-3


# --------------------------------------------------------------------------------------- stopped and taken up


KILLS = [(name, at) for at in (3, 1, 2, 5) for name in NAMES]  # every name once, two of them after any update


@pytest.mark.parametrize(
    ("name", "at"),
    [
        pytest.param(name, at, marks=() if at == 3 or name in ("grpo", "ppo") else pytest.mark.full)
        for name, at in KILLS
    ],
)
def test_a_killed_run_goes_on_to_the_same_bits_and_asks_no_judge_twice(
    model: Tiny, tmp_path: Path, name: str, at: int
) -> None:
    """Killed after any update, in the middle of a step's passes too."""
    asked: list[int] = []

    def counting(item: Exchange) -> float:
        asked.append(1)
        return letters(item)

    some = [Objective(judge(counting, "letters")), *objectives(name)[1:]]
    more: dict[str, Any] = {"passes": 2, "minibatches": 2, "reference": "ema", "reference_rate": 0.2}
    config = settings(name, kl=0.1, kl_target=0.05, **more)
    whole = train_policy(model, prompts(), some, config)
    once = len(asked)
    asked.clear()
    with pytest.raises(Killed):
        train_policy(model, prompts(), some, config, Run(checkpoint=tmp_path, every=1, progress=die_at(at)))
    went_on = train_policy(model, prompts(), some, config, Run(checkpoint=tmp_path, every=1))
    assert torch.equal(weights(whole.model), weights(went_on.model))
    assert [r.loss for r in whole.records] == [r.loss for r in went_on.records]
    assert len(asked) == once
    assert not list(tmp_path.iterdir())


def test_states_that_are_far_apart_find_every_step_between_them_on_disk(model: Tiny, tmp_path: Path) -> None:
    asked: list[int] = []

    def counting(item: Exchange) -> float:
        asked.append(1)
        return letters(item)

    some = [Objective(judge(counting, "letters"))]
    config = settings("grpo", steps=6)
    whole = train_policy(model, prompts(), some, config)
    once = len(asked)
    asked.clear()

    def gone(record: StepRecord) -> None:
        if record.step == 4:
            for state in tmp_path.glob("training-*/step-*"):
                state.rename(state.with_name("." + state.name))  # as after a kill: no state was saved on the way out
            raise Killed

    with pytest.raises(Killed):
        train_policy(model, prompts(), some, config, Run(checkpoint=tmp_path, every=3, progress=gone))
    for state in tmp_path.glob("training-*/.step-*"):
        if state.name == ".step-00000003":
            state.rename(state.with_name(state.name[1:]))
    (folder,) = tmp_path.iterdir()
    for state in folder.glob("step-00000005"):
        state.rename(folder / ".gone")
    went_on = train_policy(model, prompts(), some, config, Run(checkpoint=tmp_path, every=3))
    assert torch.equal(weights(whole.model), weights(went_on.model))
    assert len(asked) == once


def test_a_fresh_run_draws_anew(model: Tiny, tmp_path: Path) -> None:
    asked: list[int] = []

    def counting(item: Exchange) -> float:
        asked.append(1)
        return letters(item)

    some, config = [Objective(judge(counting, "letters"))], settings("grpo")
    with pytest.raises(Killed):
        train_policy(model, prompts(), some, config, Run(checkpoint=tmp_path, every=1, progress=die_at(2)))
    before = len(asked)
    train_policy(model, prompts(), some, config, Run(checkpoint=tmp_path, every=1, fresh=True))
    assert len(asked) - before == config.steps * 12


def test_a_damaged_step_is_named(model: Tiny, tmp_path: Path) -> None:
    config = settings("grpo", passes=2)
    with pytest.raises(Killed):
        train_policy(model, prompts(), objectives(), config, Run(checkpoint=tmp_path, every=1, progress=die_at(3)))
    (file,) = sorted(tmp_path.glob("training-*/steps/*.safetensors"))[-1:]
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="not a whole file.*Remove it"):
        train_policy(model, prompts(), objectives(), config, Run(checkpoint=tmp_path, every=1))


def test_a_run_that_collapses_stops_with_the_last_good_weights(model: Tiny) -> None:
    config = settings("grpo", steps=8, lr=0.3, kl=0.0, kl_burst=0.5)
    made = train_policy(model, prompts(), objectives(), config)
    assert made.stopped.startswith("KL burst") and len(made.records) < 8
    good = int(made.stopped.split("those after ")[1].split()[0])
    shorter = train_policy(model, prompts(), objectives(), config.model_copy(update={"steps": max(good, 1)}))
    if good:
        assert torch.equal(weights(made.model), weights(shorter.model))
    else:
        assert torch.equal(weights(made.model), weights(model))


# ------------------------------------------------------------------------------------------------ one step off


def test_replies_drawn_ahead_are_of_weights_one_step_older(model: Tiny) -> None:
    made = train_policy(model, prompts(), objectives(), settings("grpo", steps=4, asynchronous=True))
    assert [record.told["staleness"] for record in made.steps] == [0, 1, 1, 1]
    assert made.steps[0].told["mismatch_mean"] < 1e-9 < made.steps[2].told["mismatch_mean"]


def test_what_is_drawn_ahead_is_drawn_with_the_weights_of_then_however_late(monkeypatch: Any, model: Tiny) -> None:
    """The sampler waits until the update is over, and still draws what the weights before it would have."""
    updated = threading.Event()

    class Late(LocalSampler):
        asks = 0

        def draw(self, asked: Any, how: Any) -> Any:
            self.asks += 1
            assert self.asks != 2 or updated.wait(60)
            return super().draw(asked, how)

    config = settings("grpo", steps=2, lr=0.05, asynchronous=True)
    run = Run(progress=lambda record: updated.set())
    seen: list[Any] = []
    plain = loop.Loop.learn
    monkeypatch.setattr(loop.Loop, "learn", lambda self, step, number: seen.append(step) or plain(self, step, number))
    train_policy(model, prompts(), objectives(), config, run, sampler=Late(model.tokenizer, copy=True))
    from fairlead.engine.logprobs import score

    then = score(model.module, seen[1].trees).logp_N
    assert torch.allclose(seen[1].sampler_N, then, rtol=0, atol=1e-9)


def test_an_asynchronous_run_that_is_killed_asks_no_judge_twice(model: Tiny, tmp_path: Path) -> None:
    asked: list[str] = []

    def counting(item: Exchange) -> float:
        asked.append(item.reply_text)
        return letters(item)

    some, config = [Objective(judge(counting, "letters"))], settings("grpo", steps=4, asynchronous=True)
    with pytest.raises(Killed):
        train_policy(model, prompts(), some, config, Run(checkpoint=tmp_path, every=1, progress=die_at(2)))
    made = train_policy(model, prompts(), some, config, Run(checkpoint=tmp_path, every=1))
    assert len(made.records) == 4
    # A step that was being drawn when the run was killed is drawn again: it was in no experience yet.
    assert len(asked) <= 5 * 12


# --------------------------------------------------------------------------------------------------------- TRL


def test_the_gradient_of_grpo_is_trls(model: Tiny) -> None:
    """The same model, replies, rewards, old weights and reference: TRL 1.16's own gradient in the weights."""
    from tests.fixtures import policy_case
    from tests.support import tiny

    from fairlead.engine.layout import Tree
    from fairlead.engine.logprobs import reply_logprobs, score
    from fairlead.methods.experience import Experience, Piece, part_of
    from fairlead.methods.policy_terms import (
        Coefficients,
        advantages_of_step,
        counts_of,
        policy_loss,
        rewards_of_step,
    )

    with np.load(policy_case.GRADIENT, allow_pickle=False) as known:
        theirs = dict(known)
    module = tiny.llama(len(tiny.tokenizer(pad_token="<|tool|>")))
    replies, size = policy_case.replies(), policy_case.GROUP
    trees = tuple(Tree(policy_case.PROMPT, tuple(replies[i : i + size])) for i in (0, size))
    old, ref = (score(policy_case.noisy(copy.deepcopy(module), seed), trees).logp_N.double() for seed in (1, 2))
    mask = policy_case.mask()
    assert np.allclose(old, theirs["old"][mask], atol=1e-5) and np.allclose(ref, theirs["reference"][mask], atol=1e-5)
    step = Experience(
        trees, (0, 1), torch.tensor(policy_case.LENGTHS), old, torch.tensor(policy_case.REWARDS["sum"]).double(),
        torch.ones(8, dtype=torch.bool), 0, 2,
    ).with_more(old_N=old, ref_N=ref)  # fmt: skip
    both = [Objective(judge(letters, n), w) for n, w in zip("ab", policy_case.WEIGHTS, strict=True)]
    config = ALGORITHMS["grpo"].settings({"kl": 0.04, "replies": size})
    step = advantages_of_step(rewards_of_step(step, both, config), both, config, Coefficients(0.04))
    loss = torch.zeros(())
    for number, tree in enumerate(trees):  # two micro-batches
        pieces = [Piece(tree, tuple(range(number * size, (number + 1) * size)))]
        logp = reply_logprobs(module, [tree])
        part, _ = policy_loss(
            logp, part_of(step, pieces), step, config, counts_of(step, [0, 1], config), Coefficients(0.04)
        )
        loss = loss + part
    loss.backward()
    ours = torch.cat([p.grad.flatten() for p in module.parameters()]).numpy()
    assert float(loss.detach()) == pytest.approx(float(theirs["loss"]), rel=1e-4)
    assert np.linalg.norm(ours - theirs["gradient"]) / np.linalg.norm(theirs["gradient"]) < 1e-4
