"""A group never straddles the split, and its side does not depend on the other rows."""

from __future__ import annotations

import pytest

from fairlead.feedback.split import is_held_out, split_by_group, take

GROUPS = [f"prompt {i // 3}" for i in range(900)]


def test_groups_stay_whole_and_the_share_holds() -> None:
    train, held = split_by_group(GROUPS, share=0.2, seed=0)
    assert sorted(train + held) == list(range(900))
    assert not set(take(GROUPS, train)) & set(take(GROUPS, held))
    assert 0.14 < len(held) / 900 < 0.26


def test_the_side_of_a_group_does_not_depend_on_the_other_rows() -> None:
    _, held = split_by_group(GROUPS, share=0.2, seed=0)
    _, fewer = split_by_group(GROUPS[450:][::-1], share=0.2, seed=0)
    assert set(take(GROUPS[450:][::-1], fewer)) == {GROUPS[i] for i in held if i >= 450}


def test_spelling_variants_fall_together_and_seeds_differ() -> None:
    assert all(is_held_out(g.upper() + " ", share=0.5, seed=1) == is_held_out(g, share=0.5, seed=1) for g in GROUPS)
    assert split_by_group(GROUPS, share=0.2, seed=0) != split_by_group(GROUPS, share=0.2, seed=1)


def test_what_cannot_be_split_is_refused() -> None:
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="share"):
            split_by_group(GROUPS, share=share, seed=0)
    with pytest.raises(ValueError, match="one side is empty"):
        split_by_group(["a", "a"], share=0.5, seed=0)
    with pytest.raises(ValueError, match="row 1 has no group"):
        split_by_group(["a", " "], share=0.5, seed=0)
