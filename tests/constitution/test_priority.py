"""`over:` and `conflicts:`: what they mean, and the ones that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairlead.constitution import load
from fairlead.constitution.schema import Constitution
from fairlead.errors import InputError


def written(folder: Path, **more: str) -> Path:
    """A file of principles a, b, c …, each on a line of its own from line 3, with more keys by id."""
    rows = [f"- {{id: {id}, dimension: honest, severity: 3, text: Be {id}.{keys}}}" for id, keys in more.items()]
    path = folder / "c.yaml"
    path.write_text("name: c\nprinciples:\n" + "\n".join(rows) + "\n")
    return path


def mistake(path: Path) -> str:
    with pytest.raises(InputError) as raised:
        load(path)
    return str(raised.value).replace(f"{path.parent}/", "")


def test_priority_goes_through_others(tmp_path: Path) -> None:
    made = load(written(tmp_path, a=", over: [b]", b=", over: [c, d]", c="", d=""))
    assert made.goes_first("a", "b") and made.goes_first("a", "c") and made.goes_first("a", "d")
    assert not made.goes_first("b", "a") and not made.goes_first("c", "d")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"a": "", "beta": ", over: [alpha, betta]"}, "c.yaml:4: principle 'beta': over: no principle 'alpha'. "),
        ({"a": "", "beta": ", conflicts: [betta]"}, "c.yaml:4: principle 'beta': conflicts: no principle 'betta'. Did you mean 'beta'?"),
        ({"a": ", over: [a]"}, "c.yaml:3: principle 'a': over: names itself"),
        (
            {"a": "", "b": ", over: [c]", "c": ", over: [a, b]"},
            "c.yaml:4: principle 'b': over: the priorities run in a circle: b over c over b ('c' at c.yaml:5)",
        ),
        (
            {"a": ", over: [b]", "b": ", over: [c]", "c": ", over: [a]"},
            "circle: a over b over c over a ('b' at c.yaml:4, 'c' at c.yaml:5); take one `over` out",
        ),
        ({"a": ", over: [b, b]", "b": ""}, "'b' is given twice"),
    ],
)  # fmt: skip
def test_priorities_that_cannot_be_are_named_with_their_places(tmp_path: Path, more: dict[str, str], told: str) -> None:
    assert told in mistake(written(tmp_path, **more))


def test_a_total_order_of_many_is_read_at_once(tmp_path: Path) -> None:
    ids = [f"p{n}" for n in range(60)]
    path = written(tmp_path, **{id: f", over: [{', '.join(ids[n + 1 :])}]" for n, id in enumerate(ids)})
    assert load(path).goes_first("p0", "p59")


def test_priorities_reach_over_the_files_that_are_extended(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nextends: [harbour]\nprinciples:\n"
        "- {id: x, dimension: domain, severity: 1, text: X., over: [be-useful], conflicts: [voice]}\n"
    )
    assert load(path).goes_first("x", "be-useful")


def test_a_constitution_without_them_keeps_its_hash_and_with_them_has_another() -> None:
    plain = {"id": "x", "dimension": "honest", "severity": 3, "text": "X."}
    other = {**plain, "id": "y"}

    def sha(**keys: list[str]) -> str:
        return Constitution.model_validate({"name": "c", "principles": [{**plain, **keys}, other]}).sha256

    assert sha() == "e10f7267362baa625e901c27885ef002e9b5d7fad8f08a3f5f472bd395fb83ad"
    assert len({sha(), sha(over=["y"]), sha(conflicts=["y"])}) == 3
