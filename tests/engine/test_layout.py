from __future__ import annotations

import pytest
import torch

from engine.helpers import forest
from fairlead.engine import blocks
from fairlead.engine.layout import Shape, Tree, check, lay_out, pack


def test_a_tree_lies_as_prompt_then_branches_and_positions_restart() -> None:
    batch = lay_out([Tree((5, 6, 7), ((1, 2), (3, 4, 9)))])
    assert batch.ids_T.tolist() == [5, 6, 7, 1, 3, 4]  # the last token of a reply predicts nothing
    assert batch.position_T.tolist() == [0, 1, 2, 3, 3, 4]
    assert batch.source_N.tolist() == [2, 3, 2, 4, 5]  # both first tokens are predicted by the end of the prompt
    assert batch.target_N.tolist() == [1, 2, 3, 4, 9]
    assert batch.reply_N.tolist() == [0, 0, 1, 1, 1]
    assert batch.count_R.tolist() == [2, 3]
    assert batch.last_R.tolist() == [3, 5]


def test_keep_last_feeds_the_end_of_replies() -> None:
    batch = lay_out([Tree((5, 6), ((1,), (3, 4)))], keep_last=True)
    assert batch.ids_T.tolist() == [5, 6, 1, 3, 4]
    assert batch.last_R.tolist() == [2, 4]
    assert batch.source_N.tolist() == [1, 1, 3]


def test_a_one_token_reply_costs_no_tokens() -> None:
    batch = lay_out([Tree((5, 6), ((1,), (2,)))])
    assert batch.ids_T.tolist() == [5, 6]
    assert batch.last_R.tolist() == [1, 1]


def test_replies_keep_the_callers_order_whatever_the_packing() -> None:
    batch = lay_out([Tree((1,), ((2,),)), Tree((3, 4, 5), ((6, 7),))])
    assert batch.target_N.tolist() == [2, 6, 7]
    assert batch.ids_T[batch.source_N].tolist() == [1, 5, 6]


def test_masked_tokens_are_fed_but_not_scored() -> None:
    batch = lay_out([Tree((5,), ((1, 2, 3),), ((True, False, True),))])
    assert batch.ids_T.tolist() == [5, 1, 2]
    assert batch.target_N.tolist() == [1, 3]
    assert batch.count_R.tolist() == [2]


def test_pack_covers_every_row_once_within_the_budget() -> None:
    trees = forest(3, trees=40)
    groups = pack(trees, 50)
    assert sorted(row for group in groups for row in group) == list(range(40))
    assert max(sum(trees[row].tokens for row in group) for group in groups) <= 50
    total = sum(tree.tokens for tree in trees)
    assert len(groups) <= 1.5 * total / 50


def test_pack_refuses_a_tree_above_the_budget_by_row() -> None:
    with pytest.raises(ValueError, match="row 1: its tree has 7 tokens, more than the token budget of 6"):
        pack([Tree((1,), ((2,),)), Tree((1, 2, 3), ((2, 3), (4, 5)))], 6)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (Tree((), ((1,),)), "row 1: the prompt has no tokens"),
        (Tree((1,), ((1,), ())), "row 1, reply 1: no tokens"),
        (Tree((1,), ((1, 2),), ((True,),)), "row 1, reply 0: a mask of 1 for 2 tokens"),
        (Tree((1,), ((1, 2),), ()), "row 1: 0 masks for 1 replies"),
        (Tree((1,) * 5, ((1,) * 4,)), "row 1: 9 tokens do not fit the model's context of 8"),
        (Tree((1,), ((10,),)), "row 1: token id 10 is outside the model's vocabulary of 10"),
        (Tree((-1,), ((1,),)), "row 1: token id -1"),
    ],
)
def test_check_names_the_row(tree: Tree, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check([Tree((1,), ((2,),)), tree], context=8, vocabulary=10)


def test_same_shapes_need_no_padding_and_one_block() -> None:
    plan = blocks.lay_out((Shape(4, (3,)),) * 5)
    assert len(plan.blocks) == 1
    assert plan.token_S is None


def test_blocks_place_every_token_once_and_waste_little() -> None:
    batch = lay_out(forest(5, trees=60, longest=30))
    plan = blocks.lay_out(batch.shapes)
    assert plan.slot_T is not None and plan.token_S is not None and plan.padding is not None
    slots = len(plan.token_S)
    assert sum(block.slots for block in plan.blocks) == slots
    assert len(set(plan.slot_T.tolist())) == batch.tokens
    assert torch.equal(plan.token_S[plan.slot_T], torch.arange(batch.tokens))
    assert set(plan.padding.tolist()) == set(range(slots)) - set(plan.slot_T.tolist())
    assert len(plan.blocks) < 30
