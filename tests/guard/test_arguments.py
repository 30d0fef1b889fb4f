from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead.guard.arguments import painted, spelled

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(deadline=None)
@given(VALUES, st.booleans(), st.sampled_from([None, 2]))
def test_spelled_means_the_same_and_hides_nothing_in_escapes(value: object, ascii: bool, indent: int | None) -> None:
    written = json.dumps(value, ensure_ascii=ascii, indent=indent)
    plain = spelled(written)
    assert plain is not None and json.loads(plain) == value
    assert spelled(plain) == plain
    if "\\u" in plain:  # what is left cannot stand for itself
        assert all(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in map(chr, _escapes(plain)))


def _escapes(text: str) -> list[int]:
    import re

    return [int(m, 16) for m in re.findall(r"(?<!\\)(?:\\\\)*\\u([0-9a-f]{4})", text)]


@pytest.mark.parametrize("written", ["", "  ", "{}", '{"a": 1e5, "a": 2}', '"x"'])
def test_what_needs_no_spelling_stays_as_it_was_written(written: str) -> None:
    assert spelled(written) == written


@pytest.mark.parametrize("written", ["{", "{'a': 1}", '{"a": Infinity}', '{"a": 01}', "{} {}", '{"a": "\n"}'])
def test_what_is_no_json_has_no_spelling(written: str) -> None:
    assert spelled(written) is None


@settings(deadline=None)
@given(VALUES, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=4))
def test_what_is_painted_is_valid_and_shows_nothing_that_was_cut(value: object, drawn: list[tuple[int, int]]) -> None:
    written = spelled(json.dumps(value))
    assert written is not None
    cuts = [(min(a, len(written)), min(a + n, len(written))) for a, n in drawn]
    left = painted(written, cuts, "#")
    if left is None:
        return
    now = json.loads(left)
    assert _shape(now) == _shape(value)
    if written.count("#") == 0:
        kept = sorted(c for k, c in enumerate(written) if not any(a <= k < b for a, b in cuts))
        extra = list(left.replace("#", ""))
        for c in kept:
            if c in extra:
                extra.remove(c)
        assert set(extra) <= set('{}[]:," \n')  # only what carries the JSON outlives a cut


def _shape(value: object) -> object:
    match value:
        case dict():
            return {key: _shape(inner) for key, inner in value.items()}
        case list():
            return [_shape(inner) for inner in value]
        case str():
            return str
        case _:
            return value


def test_strings_are_painted_inside_their_quotes() -> None:
    written = '{"to": "bob", "note": "the code is 4417"}'
    at = written.index("4417")
    assert painted(written, [(at, at + 4)]) == '{"to": "bob", "note": "the code is [redacted]"}'
    start = written.index("bob")
    assert painted(written, [(start, start + 4)]) == '{"to": "[redacted]", "note": "the code is 4417"}'


def test_a_cut_over_two_strings_paints_both() -> None:
    written = '["44", "17"]'
    assert painted(written, [(2, 9)]) == '["[redacted]", "[redacted]7"]'


def test_an_escape_is_painted_whole() -> None:
    written = '["a\\nb"]'
    assert painted(written, [(4, 5)]) == '["a[redacted]b"]'


@pytest.mark.parametrize(
    ("written", "cut"),
    [
        ('{"a": 4417}', (6, 8)),
        ('{"code": 1}', (2, 5)),
        ("[true]", (1, 3)),
        ('["a"]', (0, 0)),
        ('["a"]', (1, 2)),
        ("[]", (0, 2)),
    ],
)
def test_numbers_literals_and_names_of_fields_cannot_be_painted(written: str, cut: tuple[int, int]) -> None:
    assert painted(written, [cut]) is None


def test_many_cuts_in_long_arguments_are_painted_in_one_pass() -> None:
    """Quadratic work would take minutes here; a test of the result, not of time."""
    written = json.dumps(["ab\n" * 1000] * 100)
    cuts = [(k, k + 1) for k in range(0, len(written), 3)]
    left = painted(written, cuts, "#")
    assert left is not None and len(json.loads(left)) == 100
