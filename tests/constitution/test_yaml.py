"""Every mistake in a file is named by file, line and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from fairlead.constitution.yaml import load_yaml, parse_yaml, read_yaml
from fairlead.errors import InputError, MissingResource


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Adam(_Frozen):
    rate: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.95)


class Sft(_Frozen):
    epochs: int = 1
    adam: Adam | None = None


class Dpo(_Frozen):
    beta: float
    orders: bool = True


class Layer(_Frozen):
    sft: Sft | None = None
    dpo: Dpo | None = None


class Plan(_Frozen):
    """A model unlike a constitution: the loader knows neither."""

    model: str
    mode: Literal["fast", "exact"] = "fast"
    layers: tuple[Layer, ...] = ()
    seeds: dict[str, int] = {}
    prompts: str | Sft = "world"


def _problem(tmp_path: Path, text: str | bytes, model: type[BaseModel] = Plan) -> str:
    file = tmp_path / "plan.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError) as raised:
        load_yaml(file, model, what="stack")
    assert raised.value.exit_code == 2
    return str(raised.value).replace(str(tmp_path) + "/", "")


def test_a_good_file_becomes_its_model(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("model: apprentice\nlayers:\n  - sft: {epochs: 2, adam: {rate: 1e-3, betas: [0.9, 0.99]}}\n")
    assert load_yaml(file, Plan) == Plan(
        model="apprentice", layers=(Layer(sft=Sft(epochs=2, adam=Adam(rate=1e-3, betas=(0.9, 0.99)))),)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: m\nlayers:\n  - sft:\n      epoch: 2\n",
            "plan.yaml:4: layer 'sft': unknown key 'epoch'. Did you mean 'epochs'?",
        ),
        ("model: m\nzzz: 1\n", "plan.yaml:2: unknown key 'zzz'. Known: model, mode, layers, seeds, prompts"),
        ("model: m\nlayers:\n  - sft: {}\n  - dpo: {orders: true}\n", "plan.yaml:4: layer 'dpo': missing key 'beta'"),
        ("mode: fast\n", "plan.yaml:1: missing key 'model'"),
        ("model: m\nmode: fasst\n", "plan.yaml:2: mode: 'fasst' is not one of fast, exact. Did you mean 'fast'?"),
        ("model: 3\n", "plan.yaml:1: model: must be text, not 3 (a whole number)"),
        (
            "model: m\nlayers:\n- sft:\n    epochs: '2'\n",
            "plan.yaml:4: layer 'sft': epochs: must be a whole number, not '2' (text)",
        ),
        (
            "model: m\nlayers:\n- sft:\n    epochs: true\n",
            "plan.yaml:4: layer 'sft': epochs: must be a whole number, not True (true or false)",
        ),
        ("model: m\nlayers: {sft: 1}\n", "plan.yaml:2: layers: must be a list, not keys and values"),
        (
            "model: m\nlayers:\n- sft: {adam: {rate: -1}}\n",
            "plan.yaml:3: layer 'sft': adam: rate: should be greater than 0, not -1 (a whole number)",
        ),
        (
            "model: m\nlayers:\n- dpo: {beta: 1, orders: on}\n",
            "plan.yaml:3: layer 'dpo': orders: must be true or false, not 'on' (text)",
        ),
        ("model: m\nseeds:\n  a: x\n", "plan.yaml:3: seeds: a: must be a whole number, not 'x' (text)"),
        ("model: m\nmodel: n\n", "plan.yaml:2: key 'model' is given twice, first on line 1"),
        (
            "model: m\nlayers:\n- sft: {epochs: 1, epochs: 2}\n",
            "plan.yaml:3: key 'epochs' is given twice, first on line 3",
        ),
        ("", "plan.yaml: the stack is empty"),
        (" \n\n", "plan.yaml: the stack is empty"),
        ("# only this\n", "plan.yaml: the stack holds nothing but comments"),
        ("- a\n- b\n", "plan.yaml:1: holds a list; expected keys such as `name: …`"),
        ("hello\n", "plan.yaml:1: holds a single value; expected keys such as `name: …`"),
        ("model: m\n\tmode: fast\n", "plan.yaml:2: a tab stands where YAML allows only spaces; indent with spaces"),
        (
            "model: m\nlayers:\n\t- sft: {}\n",
            "plan.yaml:3: a tab stands where YAML allows only spaces; indent with spaces",
        ),
        ("model: a: b\n", "plan.yaml:1: a ': ' stands inside unquoted text; put the text in quotes"),
        ("model: m\n---\nmodel: n\n", "plan.yaml:2: a second document starts here (---); keep one per file"),
        (
            "model: !!python/object:os.system x\n",
            "plan.yaml:1: the tag tag:yaml.org,2002:python/object:os.system is not known; remove it",
        ),
        ("model: !secret x\n", "plan.yaml:1: the tag !secret is not known; remove it"),
        ("model: m\nseeds: &s\n  a: *s\n", "plan.yaml:2: an alias stands inside the thing it names"),
        (
            "model: m\nseeds:\n  <<: {a: 1}\n",
            "plan.yaml:3: merge keys (<<) are not part of YAML 1.2; write the keys out",
        ),
        ("model: m\nseeds: {[a, b]: 1}\n", "plan.yaml:2: a list or mapping cannot be a key"),
        ("model: *m\n", "plan.yaml:1: found undefined alias 'm'; an alias (*name) needs its anchor (&name) above it"),
        (b"model: caf\xe9\n", "plan.yaml:1: is not UTF-8 text (byte 0xe9); save the file as UTF-8"),
        ("model: m\n".encode("utf-16"), "plan.yaml: is UTF-16 text; save it as UTF-8"),
        ("model: a\x00b\n", "plan.yaml:1: holds the character '\\x00', which YAML does not allow"),
    ],
)
def test_a_mistake_is_named_by_line_and_key(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert _problem(tmp_path, text) == message


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    told = _problem(tmp_path, "mode: no\nlayers:\n- dpo: {}\nextra: 1\n").splitlines()
    assert [line.split(":")[1] for line in told] == ["1", "1", "3", "4"]


def test_unclosed_brackets_name_a_line(tmp_path: Path) -> None:
    assert _problem(tmp_path, "model: m\nlayers: [a, b\nmode: fast\n").startswith("plan.yaml:3: is not valid YAML: ")


def test_keys_of_every_union_member_are_known(tmp_path: Path) -> None:
    assert "Did you mean 'epochs'?" in _problem(tmp_path, "model: m\nprompts: {epocs: 3}\n")


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such stack"):
        load_yaml(tmp_path / "nowhere.yaml", Plan, what="stack")
    with pytest.raises(InputError, match="is a folder"):
        load_yaml(tmp_path, Plan)
    with pytest.raises((InputError, MissingResource)):
        load_yaml(tmp_path / ("x" * 300), Plan)


def test_words_that_yaml_1_1_reads_as_booleans_stay_words() -> None:
    data = parse_yaml("on: yes\noff: no\ny: 2026-01-02\nn: 012\n", "f").data
    assert data == {"on": "yes", "off": "no", "y": "2026-01-02", "n": 12}


def test_folded_and_literal_text_holds_no_marks_of_the_parser() -> None:
    data = parse_yaml("a: >\n  one\n  two\n\n  three\nb: |\n  one\n  two\n", "f").data
    assert data == {"a": "one two\nthree\n", "b": "one\ntwo\n"}


def test_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "bom.yaml"
    file.write_bytes(b"\xef\xbb\xbfmodel: m\n")
    assert load_yaml(file, Plan).model == "m"


def test_aliases_are_values_until_they_grow_without_end() -> None:
    assert parse_yaml("a: &x {k: 1}\nb: *x\n", "f").data == {"a": {"k": 1}, "b": {"k": 1}}
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(InputError, match="aliases make more than"):
        parse_yaml("\n".join(rows), "f")


@pytest.mark.parametrize("text", ["[" * 500 + "]" * 500, "[" * 20_000])
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"deeper than|not valid YAML"):
        parse_yaml(text, "f")


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp", "Cn", "Co")), max_size=8)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | WORDS
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=8
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(WORDS, VALUES, min_size=1, max_size=4))
def test_every_json_object_is_read_as_yaml_1_2(data: dict[str, object]) -> None:
    text = json.dumps(data, ensure_ascii=False)
    assert parse_yaml(text, "f").data == data


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="ab:-# \n\t[]{}'\"&*!|>%@,?0.~\\", max_size=40))
def test_any_text_is_read_or_refused_with_a_line(text: str) -> None:
    try:
        parse_yaml(text, "f.yaml")
    except InputError as error:
        assert str(error).startswith("f.yaml")


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("# head\nmodel: m\n\nlayers:\n  - sft:\n      epochs: 1\n")
    document = read_yaml(file)
    assert document.line(("model",)) == 2
    assert document.line(("layers", 0, "sft", "epochs")) == 6
    assert document.line(("layers", 0, "nothing")) == 5
