"""Process rewards: where steps end, the loss against one row at a time, splits, what is learnt and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.methods.trainable import tiny_model  # noqa: E402

from engine.helpers import keep_float64  # noqa: E402
from fairlead.errors import InputError  # noqa: E402
from fairlead.exchange import Stepped, user  # noqa: E402
from fairlead.methods.config_reward import ProcessConfig  # noqa: E402
from fairlead.methods.loop import Batch  # noqa: E402
from fairlead.methods.process import step_accuracy, step_loss, stepped_rows, train_process_reward  # noqa: E402
from fairlead.methods.reward import new_scorer  # noqa: E402
from fairlead.models.steps import ends_in_text, ends_in_tokens  # noqa: E402

CONFIG = ProcessConfig(steps=30, rows_per_step=12, lr=3e-3, warmup=0.1)
GOOD, BAD = ("the boat is blue", "yes", "i keep that one"), ("no no", "a secret", "no")


def solutions(n: int, seed: int) -> list[Stepped]:
    """Up to four steps, each right or wrong by its words; the last of some has no label."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        labels = [float(x) for x in rng.integers(0, 2, rng.integers(1, 5))]
        steps = tuple(str(rng.choice(GOOD if label else BAD)) for label in labels)
        told = tuple(None if i % 3 == 0 and j and j == len(labels) - 1 else label for j, label in enumerate(labels))
        rows.append(Stepped((user(f"how {i} ?"),), steps, told))
    return rows


def soft(replies: list[Stepped]) -> list[Stepped]:
    """Right with probability 0.9 in place of 1."""
    return [dataclasses.replace(r, labels=tuple(0.9 if label == 1.0 else label for label in r.labels)) for r in replies]


def test_steps_end_where_their_text_is_complete() -> None:
    model = tiny_model()
    text = "the boat é ⚓\n\n \nno\nyes"
    assert [text[:end] for end in ends_in_text(text, "\n")] == ["the boat é ⚓", "the boat é ⚓\n\n \nno", text]
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"] + [model.tokenizer.eos_token_id]
    for end, place in zip(ends_in_text(text, "\n"), ends_in_tokens(model.tokenizer, ids, text, "\n"), strict=True):
        assert model.tokenizer.decode(ids[: place + 1]).startswith(text[:end])
        assert not model.tokenizer.decode(ids[:place]).startswith(text[:end])
    with pytest.raises(InputError, match="does not give the reply's text back"):
        ends_in_tokens(model.tokenizer, ids, "another text", "\n")


def test_loss_and_gradient_equal_one_row_at_a_time_however_the_step_is_cut() -> None:
    exact = tiny_model()
    model, replies = dataclasses.replace(exact, module=keep_float64(exact.module)), soft(solutions(6, 3))
    rows, labels = stepped_rows(model, replies, "\n")
    scorer = new_scorer(model, CONFIG, seed=1, bias=True)
    count = sum(map(len, labels))

    def gradient(cuts: list[list[int]]) -> tuple[torch.Tensor, float]:
        scorer.zero_grad()
        whole = 0.0
        for cut in cuts:
            batch = Batch(0, 1, tuple(cut), tuple(rows.trees[i] for i in cut), 6, count, False)
            loss, sums = step_loss(scorer, batch, [labels[i] for i in cut])
            loss.backward()
            whole += float(loss.detach())
            assert sums["labelled"] == sum(len(labels[i]) for i in cut)
        return torch.cat([p.grad.flatten() for p in scorer.parameters() if p.grad is not None]), whole

    one, value = gradient([list(range(6))])
    for cuts in ([[0, 3, 4], [1, 2, 5]], [[i] for i in range(6)]):
        again, same = gradient(cuts)
        assert same == pytest.approx(value, abs=1e-12)
        assert float((one - again).norm() / one.norm()) < 1e-10

    scorer.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for tree, reply in zip(rows.trees, replies, strict=True):
        (ids,) = tree.replies
        hidden = scorer.model.base_model(input_ids=torch.tensor([tree.prompt + ids])).last_hidden_state[0]
        text, upto = "\n".join(reply.steps), ""
        for j, (step, label) in enumerate(zip(reply.steps, reply.labels, strict=True)):
            upto += ("\n" if j else "") + step
            k = next(k for k in range(1, 99) if model.tokenizer.decode(ids[:k]).startswith(upto))
            if label is not None:
                p = torch.sigmoid((hidden[len(tree.prompt) + k - 1] * scorer.head.weight_D).sum() + scorer.head.bias)
                total = total - label * torch.log(p) - (1 - label) * torch.log(1 - p)
        assert upto == text
    (total / count).backward()
    theirs = torch.cat([p.grad.flatten() for p in scorer.parameters() if p.grad is not None])
    assert value == pytest.approx(float(total / count), abs=1e-12)
    assert float((one - theirs).norm() / theirs.norm()) < 1e-10


def test_right_and_wrong_steps_are_told_apart() -> None:
    """Held-out accuracy above 0.9 on over 150 steps of 80 replies; a coin passes with probability below 1e-20."""
    got = train_process_reward(tiny_model(torch.float32), solutions(96, 0), CONFIG)
    accuracy = step_accuracy(got.model, solutions(80, 1))
    assert accuracy.n > 150 and accuracy.value > 0.9 and accuracy.low > 0.8
    assert (got.rows, got.labelled + got.unlabelled) == (96, sum(len(r.steps) for r in solutions(96, 0)))
    assert got.unlabelled > 5
    assert {item.kind for item in got.model.lineage} == {"reward", "rows"}


def test_rows_without_clear_steps_are_refused_by_name() -> None:
    model, said = tiny_model(), (user("a ?"),)
    for steps, labels, message in (
        (("a\nb", "c"), (1.0, 0.0), "here: joined by .* its 2 steps are 3"),
        (("a", " "), (1.0, 0.0), "here: joined by .* its 2 steps are 1"),
        (("a", "b"), (None, None), "here: no step has a label"),
        (("the boat " * 90,), (1.0,), "1 rows do not fit the context"),
    ):
        with pytest.raises(InputError, match=message):
            train_process_reward(model, [Stepped(said, steps, labels)], CONFIG, places=["here"])
    with pytest.raises(ValueError, match="2 steps and 1 labels"):
        Stepped(said, ("a", "b"), (1.0,))
    with pytest.raises(ValueError, match="lies outside"):
        Stepped(said, ("a",), (-1.0,))
    got = train_process_reward(model, [Stepped(said, ("a", "b"), (1.0, 0.0))], CONFIG.model_copy(update={"steps": 1}))
    with pytest.raises(ValueError, match="no step has a label on either side"):
        step_accuracy(got.model, [Stepped(said, ("a",), (0.5,))])
