"""Learning from replies of several turns: what a tool or a user said is read, and never learnt."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.methods.policies import judge, letters, settings  # noqa: E402
from tests.methods.trainable import tiny_model, weights  # noqa: E402

from fairlead.apprentice import world  # noqa: E402
from fairlead.engine.layout import Tree  # noqa: E402
from fairlead.engine.logprobs import reply_logprobs  # noqa: E402
from fairlead.errors import InputError  # noqa: E402
from fairlead.exchange import Exchange, system, user  # noqa: E402
from fairlead.methods import policy as loop  # noqa: E402
from fairlead.methods import policy_terms as terms  # noqa: E402
from fairlead.methods.config_policy import ALGORITHMS, PolicyConfig  # noqa: E402
from fairlead.methods.episodes import Episodes  # noqa: E402
from fairlead.methods.experience import Experience, Piece, part_of  # noqa: E402
from fairlead.methods.loop import Run, StepRecord  # noqa: E402
from fairlead.methods.partners import apprentice_calls, first_of, tools  # noqa: E402
from fairlead.methods.policy import train_policy  # noqa: E402
from fairlead.methods.rewards import Objective  # noqa: E402
from fairlead.methods.rollouts import LocalSampler  # noqa: E402
from fairlead.models.apprentice import open_apprentice  # noqa: E402

GOODS = world.ITEMS[:6]
SCORED = [Objective(judge(letters, "letters"))]


def asked() -> list[Exchange]:
    return [Exchange((system("tool : price ."), user(f"what does the {item} cost today ?")), ()) for item in GOODS]


def shop(model: Any) -> Episodes:
    """A tool that knows the day's prices, and a user who asks again once."""
    price = tools({"price": lambda item: str(20 + GOODS.index(item))})

    def again(so_far: Exchange) -> Any:
        said = sum(message.role == "user" for message in so_far.reply)
        return [user("and tomorrow ?")] if not said else None

    return Episodes(LocalSampler(model.tokenizer), first_of(price, again), model.tokenizer, turns=4,
                    parse=apprentice_calls)  # fmt: skip


def quick(**more: Any) -> PolicyConfig:
    return settings("grpo", **{"steps": 1, "max_tokens": 48, "kl": 0.0, "grad_clip": None, "lr": 1e-4, **more})


def by_hand(module: Any, step: Experience) -> Any:
    """GRPO's loss, reply by reply through the module's own logits, over the tokens that the policy drew."""
    total, row = 0.0, 0
    for tree in step.trees:
        rewards = step.more["reward_R"][row : row + len(tree.replies)].numpy()
        advantages = (rewards - rewards.mean()) / (np.std(rewards, ddof=1) + 1e-4)
        for reply, mask, advantage in zip(tree.replies, tree.masks or (), advantages, strict=True):
            ids = torch.tensor([[*tree.prompt, *reply]])
            logp = torch.log_softmax(module(input_ids=ids).logits[0, len(tree.prompt) - 1 : -1].double(), -1)
            mine = [t for t in range(len(reply)) if mask is None or mask[t]]
            total = total - advantage * sum(logp[t, reply[t]] for t in mine) / len(mine) / step.replies
        row += len(tree.replies)
    return total


def test_the_gradient_is_that_of_the_policys_own_words_and_the_log_counts_the_turns(monkeypatch: Any) -> None:
    model: Any = open_apprentice()
    caught: dict[str, Any] = {}
    plain, episodes = loop.Loop._update, shop(model)

    def watched(self: Any, step: Experience, *rest: Any) -> None:
        caught["step"], caught["before"] = step, copy.deepcopy(self.learner.policy)
        caught["told"] = episodes.told()  # before the replies that are drawn at the end, which no step counts
        optimiser = self.updates.optimiser.step

        def catch(*args: Any) -> Any:
            caught["gradient"] = torch.cat([p.grad.flatten() for p in self.learner.policy.parameters()])
            return optimiser(*args)

        self.updates.optimiser.step = catch
        plain(self, step, *rest)

    monkeypatch.setattr(loop.Loop, "_update", watched)
    made = train_policy(model, asked(), SCORED, quick(old_logprobs="recompute"), sampler=episodes)
    step, told = caught["step"], made.steps[0].told
    masks = [mask for tree in step.trees for mask in tree.masks or () if mask is not None]
    assert len(masks) > 6 and any(mask.count(False) > 8 for mask in masks), "tools and users spoke in between"
    module = caught["before"]
    wanted = torch.autograd.grad(by_hand(module, step), list(module.parameters()))
    flat = torch.cat([g.flatten() for g in wanted])
    assert float((caught["gradient"] - flat).norm() / flat.norm()) < 1e-4
    assert told["mismatch_mean"] < 1e-5, "the sampler and the trainer read the same talk"
    assert {name: told[f"episodes.{name}"] for name in caught["told"]} == caught["told"]
    assert told["episodes.calls"] > 6 and told["episodes.turns"] > told["episodes.replies"] == told["replies"]
    assert told["length"] == float(step.count_R.double().mean()), "of the policy's own tokens"


@pytest.mark.parametrize("masked", [True, False])
def test_another_text_of_a_tool_that_nobody_answers_leaves_the_gradient_as_it_was(masked: bool) -> None:
    module = tiny_model().module
    config = PolicyConfig(share="tokens", replies=2)
    found = []
    for result in ((7, 8, 9), (30, 31, 32)):
        replies = ((1, 2, 3, *result), (4, 5))
        mask = (True, True, True, False, False, False) if masked else None
        tree = Tree((5, 6), replies, (mask, None) if masked else None)
        counts = torch.tensor([3 if masked else 6, 2])
        scored = int(counts.sum())
        step = Experience(
            (tree,), (0,), counts, torch.zeros(scored).double(), torch.tensor([[1.0], [0.0]]).double(),
            torch.ones(2, dtype=torch.bool), 0, 1,
        )  # fmt: skip
        some, now = [Objective(judge(letters))], terms.Coefficients(0.0)
        step = terms.advantages_of_step(terms.rewards_of_step(step, some, config), some, config, now)
        logp = reply_logprobs(module, [tree])
        part = part_of(step, [Piece(tree, (0, 1))])
        loss, _ = terms.policy_loss(logp, part, step, config, terms.counts_of(step, [0], config), now)
        # the embedding of what a tool said is no output here; tied or not, nothing of it may move
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))]))
    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-12) == masked


def test_a_killed_run_of_several_turns_goes_on_to_the_same_bits_and_tells_the_same(tmp_path: Path) -> None:
    model: Any = open_apprentice()

    def die(record: StepRecord) -> None:
        raise KeyboardInterrupt

    config = quick(steps=2, passes=2, prompts_per_step=2, replies=2)
    whole = train_policy(model, asked(), SCORED, config, sampler=shop(model))
    with pytest.raises(KeyboardInterrupt):
        run = Run(checkpoint=tmp_path, every=1, progress=die)
        train_policy(model, asked(), SCORED, config, run, sampler=shop(model))
    again = train_policy(model, asked(), SCORED, config, Run(checkpoint=tmp_path, every=1), sampler=shop(model))
    assert torch.equal(weights(again.model), weights(whole.model))

    def counts(made: Any) -> list[dict[str, float]]:
        return [{k: v for k, v in r.told.items() if k.startswith("episodes.")} for r in made.steps]

    assert counts(again) == counts(whole)
    assert counts(whole)[1]["episodes.replies"] == 4, "each step tells its own, not the sum so far"


def test_what_is_drawn_anew_is_counted_too() -> None:
    model: Any = open_apprentice()
    flat = [Objective(judge(lambda item: 0.5, "flat"))]
    config = ALGORITHMS["dapo"].settings(
        {"steps": 1, "prompts_per_step": 2, "replies": 2, "max_tokens": 24, "resample": 1, "overlong": None, "lr": 1e-5}
    )
    (record,) = train_policy(model, asked(), flat, config, sampler=shop(model)).steps
    assert record.told["episodes.replies"] == 8 and record.told["replies"] == 4


@pytest.mark.parametrize("name", ["nash-md", "xpo"])
def test_an_opponent_of_one_turn_is_no_opponent(name: str) -> None:
    model: Any = open_apprentice()
    with pytest.raises(InputError, match="drawn in one turn"):
        train_policy(model, asked(), SCORED, settings(name), sampler=shop(model))


def test_the_example_of_the_docs_runs(capsys: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reinforcement.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?Episodes.*?)```", page, re.DOTALL)
    exec(compile(example, "docs/reinforcement.md", "exec"), {"__name__": "example"})
    assert "episodes.calls" in capsys.readouterr().out
