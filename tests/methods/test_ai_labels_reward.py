"""AI labels as a preference model learns them: the soft cross-entropy of the label itself, whichever side it is on."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from tests.methods.fakes import FakeJudge, Rule  # noqa: E402
from tests.methods.trainable import tiny_model  # noqa: E402

from fairlead.exchange import exchange  # noqa: E402
from fairlead.methods.ai_labels import LabelConfig, Pair, label_pairs  # noqa: E402
from fairlead.methods.ai_preferences import labelled  # noqa: E402
from fairlead.methods.config_reward import RewardConfig  # noqa: E402
from fairlead.methods.loop import Batch  # noqa: E402
from fairlead.methods.reward import comparison_loss, new_scorer, pairs_of, train_reward  # noqa: E402
from fairlead.methods.rows import compared_rows  # noqa: E402

KIND = Rule("kind", "be kind")
P = {"what is the boat ?": 0.9, "the rats ?": 0.2, "a secret ?": 0.5, "go to the shed": 0.6}
PAIRS: list[Pair] = [(exchange(said, "the boat is blue"), exchange(said, "no no i keep that one")) for said in P]


def made():  # type: ignore[no-untyped-def]
    """The pairs by a critic that says P(first better) as above, in both orders."""

    def better(items):  # type: ignore[no-untyped-def]
        found = []
        for first, _ in items:
            p = P[first.messages[0].text]
            found.append(p if first.reply_text == "the boat is blue" else 1 - p)
        return found

    judge = FakeJudge(lambda r: 0.5)
    judge.compare = better  # type: ignore[method-assign]
    config = LabelConfig()
    return labelled(PAIRS, label_pairs(PAIRS, [KIND], [judge], config), [judge], config)


def test_the_loss_is_the_cross_entropy_of_the_label_though_pairs_below_one_half_are_swapped() -> None:
    model, config = tiny_model(), RewardConfig(steps=1, rows_per_step=4, centre=0.0)
    rows = made().preferences
    assert [round(row.strength, 6) for row in rows] == [0.9, 0.8, 0.5, 0.6]
    assert rows[1].chosen[0].text == "no no i keep that one"
    scorer = new_scorer(model, config, seed=3)
    trees = tuple(compared_rows(model, list(rows)).trees)
    batch = Batch(0, 1, tuple(range(len(trees))), trees, len(trees), 0, True)
    loss, _ = comparison_loss(scorer, batch, [pairs_of(row) for row in rows], config)
    want = 0.0
    for tree, row, p in zip(trees, rows, P.values(), strict=True):
        r = {}
        for reply, text in zip(tree.replies, (row.chosen[0].text, row.rejected[0].text), strict=True):
            hidden = scorer.model.base_model(input_ids=torch.tensor([tree.prompt + reply])).last_hidden_state[0, -1]
            r[text] = float((hidden * scorer.head.weight_D).sum().detach())
        lead = r["the boat is blue"] - r["no no i keep that one"]  # as the pair was asked, never swapped
        want += p * math.log1p(math.exp(-lead)) + (1 - p) * math.log1p(math.exp(lead))
    assert float(loss.detach()) == pytest.approx(want / 4, rel=1e-6)


def test_a_preference_model_learns_the_probability_and_not_a_verdict() -> None:
    """Each label on its own prompt, learnt to the end: sigmoid(lead) is the label, and a tie is no lead."""
    model = tiny_model(torch.float32)
    config = RewardConfig(steps=120, rows_per_step=4, lr=1e-2, warmup=0, schedule="constant", centre=0.0)
    judge = train_reward(model, list(made().preferences), config).model
    raws = [v.raw for v in judge.judge([item for pair in PAIRS for item in pair])]
    learnt = [1 / (1 + math.exp(b - a)) for a, b in zip(raws[0::2], raws[1::2], strict=True)]  # type: ignore[operator]
    assert learnt == pytest.approx(list(P.values()), abs=0.03)
