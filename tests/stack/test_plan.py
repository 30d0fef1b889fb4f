"""Plans: what the YAML means, and what is refused with file, line and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairlead.constitution.yaml import parse_yaml
from fairlead.errors import InputError
from fairlead.methods.catalogue import METHODS
from fairlead.stack.plan import DPOLayer, GuardLayer, Plan, PromptLayer, SFTLayer
from fairlead.stack.read import parse_plan, read_recipe, read_stack, recipe_names, with_options, with_recipe

EXAMPLE = """
model: apprentice
constitution: constitution.yaml
prompts: {from: constitution, per_principle: 150}
layers:
  - sft:   {data: {revise: {rounds: 2, critic: self}}}
  - dpo:   {preferences: {from: ai, critic: self, both_orders: true}, beta: 0.1, nll: 0.2}
  - guard: {checks: from-constitution}
measure: {cases: 400, audit: gold}
"""


def plan(text: str) -> Plan:
    return parse_plan(parse_yaml(text, "fairlead.yaml", what="stack"))


def refused(text: str) -> str:
    with pytest.raises(InputError) as caught:
        plan(text)
    return str(caught.value)


def test_the_example_of_the_handbook_reads() -> None:
    read = plan(EXAMPLE)
    sft, dpo, guard = read.layers
    assert isinstance(sft, SFTLayer) and sft.data.revise is not None and sft.data.revise.rounds == 2
    assert isinstance(dpo, DPOLayer) and dpo.train.beta == 0.1 and dpo.train.nll == 0.2 and dpo.preferences.both_orders
    assert isinstance(guard, GuardLayer)
    assert read.columns == ("base", "sft", "dpo", "guard")
    assert [layer.from_ for layer in read.layers] == ["base", "sft", "dpo"]
    assert read.measure.cases == 400 and read.measure.audit == "gold"


@pytest.mark.parametrize("kind", [name for name, method in METHODS.items() if method.data in ("pairs", "rated")])
def test_every_method_that_learns_from_preferences_is_a_layer(kind: str) -> None:
    (layer,) = plan(f"layers:\n - {kind}: {{preferences: {{from: pairs.jsonl}}, epochs: 2, rows_per_step: 8}}").layers
    assert isinstance(layer, DPOLayer) and layer.trains
    assert (layer.kind, layer.name, layer.preferences.from_) == (kind, kind, "pairs.jsonl")
    assert layer.train == METHODS[kind].settings({"epochs": 2, "rows_per_step": 8})
    (bare,) = plan(f"layers: [{kind}]").layers
    assert bare.train == METHODS[kind].settings({})  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [name for name, m in METHODS.items() if m.data == "steps"])
def test_a_method_that_learns_from_steps_has_no_stage(kind: str) -> None:
    error = refused(f"layers:\n  - dpo\n  - {kind}: {{epochs: 2}}")
    assert f":3: {kind!r} learns from labelled steps, which no stage of a stack makes" in error
    assert f"fairlead train {kind}" in error


def test_a_method_s_layer_has_the_settings_of_its_family() -> None:
    dpo, simpo, cdpo = plan(
        "layers:\n"
        "  - dpo: {divergence: js, label_smoothing: 0.2}\n"
        "  - simpo: {gamma: 0.5}\n"
        "  - cdpo: {label_smoothing: 0.3}\n"
    ).layers
    assert dpo.train == METHODS["dpo"].settings({"divergence": "js", "label_smoothing": 0.2})  # type: ignore[union-attr]
    assert simpo.train.gamma == 0.5  # type: ignore[union-attr]
    assert cdpo.train.label_smoothing == 0.3  # type: ignore[union-attr]


def test_a_method_s_layer_is_written_as_it_is_read() -> None:
    from fairlead.constitution.yaml import Document
    from fairlead.stack.results import layer_as_written

    read = plan("layers:\n - kto: {name: thumbs, good: 1.2, preferences: {from: given, held_out: 0.2}}")
    body = {"layers": [layer_as_written(layer) for layer in read.layers]}
    assert parse_plan(Document("again", body, {(): 1})).layers == read.layers


def test_stages_have_names_and_may_start_from_an_earlier_one() -> None:
    read = plan(
        "layers:\n"
        "  - sft: {name: warm, data: {file: a.jsonl}}\n"
        "  - dpo: {name: pref, from: base, preferences: {from: pairs.jsonl}}\n"
        "  - prompt: {from: warm}\n"
    )
    assert read.columns == ("base", "warm", "pref", "prompt")
    assert [layer.from_ for layer in read.layers] == ["base", "base", "warm"]


def test_a_bare_kind_is_a_layer_with_its_defaults() -> None:
    read = plan("layers: [prompt, {guard: }]")
    assert isinstance(read.layers[0], PromptLayer) and isinstance(read.layers[1], GuardLayer)


@pytest.mark.parametrize("name", ["constitutional", "dpo", "gold", "managed", "managed-finetune"])
def test_every_shipped_recipe_reads(name: str) -> None:
    assert name in recipe_names()
    document = with_recipe(read_stack(None), read_recipe(name))
    assert parse_plan(document).layers


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "layers:\n - sft: {data: {revise: {roundz: 2}}}",
            "fairlead.yaml:2: layer 'sft': data: revise: unknown key 'roundz'. Did you mean 'rounds'?",
        ),
        ("modell: x\nlayers: [guard]", "fairlead.yaml:1: unknown key 'modell'. Did you mean 'model'?"),
        ("layers:\n - guard\n - sfft: {}", "fairlead.yaml:3: unknown layer 'sfft'. Did you mean 'sft'?"),
        ("layers:\n - dpo: {betta: 0.1}", "fairlead.yaml:2: layer 'dpo': unknown key 'betta'. Did you mean 'beta'?"),
        ("layers:\n - simpo: {gama: 0.1}", "layer 'simpo': unknown key 'gama'. Did you mean 'gamma'?"),
        ("layers:\n - ipo: {label_smoothing: 0.1}", "layer 'ipo': unknown key 'label_smoothing'"),
        ("layers:\n - kto: {rows_per_step: 1}", "needs the reply of another row of the step"),
        ("layers:\n - simop: {}", "unknown layer 'simop'. Did you mean 'simpo'?"),
        ("model: apprentice", "has no layers"),
        ("layers: []", "fairlead.yaml:1: the plan has no layers"),
        ("layers: {sft: {}}", "layers is a list of stages"),
        ("layers:\n - {sft: {}, dpo: {}}", "a layer is a mapping with one key"),
        ("layers:\n - guard\n - guard", "two layers are called 'guard'"),
        ("layers:\n - guard: {from: sft}", "starts from 'sft', which is no earlier layer"),
        ("layers:\n - sft: {}", "missing key 'data'"),
        ("layers:\n - sft: {data: {}}", "exactly one of revise, file, gold"),
        ("layers:\n - sft: {data: {gold: true, file: x}}", "exactly one of revise, file, gold"),
        ("layers:\n - sft: {train: {lr: 1}}", "unknown key 'train'"),
        ("layers:\n - sft: {seed: 1, data: {gold: true}}", "unknown key 'seed'"),
        ("layers:\n - sft: 3", "are keys and values"),
        ("layers:\n - guard: {checks: []}", "guards nothing"),
        ("layers: [guard]\nmeasure: {only: []}", "measures nothing"),
        ("layers: [guard]\nmeasure: {only: [sums, sums]}", "'sums' is named twice"),
        ("layers:\n - guard: {name: base}", "two layers are called 'base'"),
        ("layers:\n - guard: {name: 'a/b'}", "pattern"),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, says: str) -> None:
    assert says in refused(text)


@pytest.mark.parametrize(
    "text",
    [
        "layers:\n - sft: {data: {revise: {rounds: 0}}}",
        "layers:\n - dpo: {beta: 0}",
        "layers:\n - dpo: {nll: -1}",
        "layers:\n - dpo: {epochs: 0}",
        "layers:\n - dpo: {lr: 0}",
        "layers:\n - dpo: {beta: .nan}",
        "layers:\n - dpo: {epochs: 1, steps: 3}",
        "layers:\n - dpo: {preferences: {replies: 1}}",
        "layers:\n - dpo: {preferences: {temperature: 0}}",
        "layers: [guard]\nprompts: {per_principle: 0}",
        "layers: [guard]\nmeasure: {cases: 0}",
        "layers: [guard]\nseed: -1",
        "layers: [guard]\nmodel: ''",
    ],
)
def test_settings_that_cannot_work_are_refused(text: str) -> None:
    assert "fairlead.yaml:" in refused(text)


def test_options_lie_over_the_file() -> None:
    document = with_options(
        parse_yaml(EXAMPLE, "fairlead.yaml"),
        {("model",): "./mine", ("measure", "cases"): 20, ("seed",): None, ("prompts", "from"): "p.txt"},
    )
    read = parse_plan(document)
    assert read.model == "./mine" and read.measure.cases == 20 and read.seed == 0
    assert read.prompts.from_ == "p.txt" and read.prompts.per_principle == 150


def test_a_recipe_does_not_replace_written_layers() -> None:
    with pytest.raises(InputError, match="has its own layers"):
        with_recipe(parse_yaml(EXAMPLE, "fairlead.yaml"), read_recipe("dpo"))


def test_a_recipe_fills_a_stack_without_layers() -> None:
    read = parse_plan(with_recipe(parse_yaml("model: ./m\nseed: 3", "fairlead.yaml"), read_recipe("managed")))
    assert read.model == "./m" and read.seed == 3 and read.columns == ("base", "prompt", "guard")


def test_an_unknown_recipe_says_what_was_meant() -> None:
    with pytest.raises(InputError, match="Did you mean 'constitutional'"):
        read_recipe("constitutionel")


def test_a_missing_stack_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such stack"):
        read_stack(tmp_path / "none.yaml")


def test_plans_do_not_change() -> None:
    read: Any = plan(EXAMPLE)
    with pytest.raises(Exception, match="frozen"):
        read.seed = 2


def test_rules_of_a_guard_are_patterns_by_principle() -> None:
    read = plan("layers:\n  - guard: {rules: {no-harm: ['(?i)dynamite', 'fuse']}}")
    assert isinstance(read.layers[0], GuardLayer) and read.layers[0].rules == {"no-harm": ("(?i)dynamite", "fuse")}
    for pattern, says in (("'('", "cannot be read"), ("'a*'", "matches empty text")):
        said = refused(f"layers:\n  - guard: {{checks: from-constitution,\n      rules: {{no-harm: [{pattern}]}}}}")
        assert "fairlead.yaml:3: layer 'guard': rules" in said and says in said
