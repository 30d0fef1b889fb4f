"""No side of a split knows anything of another."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.constitution.alike import grams, jaccard
from fairlead.exchange import Exchange, user
from fairlead.guard.classifier.contrast import Kind, contrast_rows, contrasts
from fairlead.guard.classifier.rows import Row, gram_matrix, grouped, near_pairs, split, without_near


def _row(n: int, text: str, group: str = "") -> Row:
    return Row(f"s/{n}", Exchange((user(text),), ()), {"p": bool(n % 2)}, "s", group or f"s/{n}")


def test_rows_nearly_the_same_are_one_group_also_by_way_of_others() -> None:
    texts = ["how do I mend the old net by hand", "how do I mend the old nets by hand", "how do I mend the old nets by hands",
             "what does the tower bell say at noon"]  # fmt: skip
    names = grouped([_row(n, text) for n, text in enumerate(texts)], near=0.8)
    assert len({names[0], names[1], names[2]}) == 1
    assert names[3] != names[0]


def test_rows_of_one_source_row_are_one_group_however_unlike() -> None:
    names = grouped(
        [_row(0, "alpha beta gamma", "g"), _row(1, "something else entirely", "g"), _row(2, "a third thing")]
    )
    assert names[0] == names[1] != names[2]


def test_a_split_keeps_groups_whole_and_holds_out_about_the_share() -> None:
    rows = list(contrast_rows(("p",)))
    parts, names = split(rows, share=0.25), grouped(rows)
    sides = defaultdict(set)
    for name, part in zip(names, parts, strict=True):
        sides[name].add(part)
    assert all(len(found) == 1 for found in sides.values())
    assert 0.05 < parts.count("valid") / len(parts) < 0.5


def test_what_is_near_another_text_goes_with_its_whole_group() -> None:
    rows = [_row(0, "how do I mend the net", "g"), _row(1, "quite another question", "g"), _row(2, "a third thing")]
    kept, left_out = without_near(rows, ["How do I mend the net?!"])
    assert [row.id for row in kept] == ["s/2"]
    assert left_out == 2


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="abcd é.", min_size=1, max_size=30), min_size=2, max_size=6))
def test_likeness_is_jaccard_of_character_runs(texts: list[str]) -> None:
    found = gram_matrix(texts)
    i, j = near_pairs(found, found, 0.5)
    got = {(int(a), int(b)) for a, b in zip(i, j, strict=True)}
    wanted = {
        (a, b)
        for a, x in enumerate(texts)
        for b, y in enumerate(texts)
        if jaccard(grams(x), grams(y)) >= 0.5 and len(grams(x)) and len(grams(y))
    }
    assert got == wanted


def test_a_contrast_has_both_kinds_of_every_meaning_and_each_phrase_once() -> None:
    found = contrasts()
    phrases = [p for m in found.meanings for p in (*m.harm, *m.safe)]
    assert len(phrases) == len(set(phrases))
    assert len({x.id for x in (*found.meanings, *found.crosses)}) == len(found.meanings) + len(found.crosses) >= 120
    drawn = contrast_rows(("p", "q"))
    assert len({row.id for row in drawn}) == len(drawn)
    for row in drawn:
        assert set(row.labels) == {"p", "q"} and len(set(row.labels.values())) == 1
        assert row.made.startswith(("frame:", "cross:")) and "{" not in row.prompt
    assert {row.meta["kind"] for row in drawn if row.made.startswith("cross:")} == set(get_args(Kind))


def test_a_cross_is_harmful_only_where_both_its_parts_are() -> None:
    found = contrasts()
    drawn: dict[str, list[Row]] = defaultdict(list)
    for row in contrast_rows(("p",), most=12):
        drawn[row.group].append(row)
    for cross in found.crosses:
        assert all(part.count("{}") == 1 for part in (*cross.asked.harm, *cross.asked.safe))
        harmful = {q.format(thing) for q in cross.asked.harm for thing in cross.of.harm}
        rows = drawn[f"contrast/{cross.id}"]
        assert all((row.prompt in harmful) == row.labels["p"] for row in rows)
        counts = Counter(row.labels["p"] for row in rows)
        assert counts[True] == 12 and 9 <= counts[False] <= 12
        assert {row.made for row in rows} == {f"cross:{cell}" for cell in cross.cells()}
