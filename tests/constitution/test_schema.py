"""The values: what makes two constitutions mean the same, counterfactuals, the schema for editors, the packs."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from fairlead.constitution import CRITIC_PROMPTS, DIMENSIONS, Constitution, json_schema, load, system_prompt, template

PLAIN = """\
name: shop
principles:
  - id: polite
    dimension: voice
    severity: 2
    text: Be polite to everyone.
  - id: prices
    dimension: domain
    severity: 3
    text: Quote only prices from the list.
"""
SAME = """\
# another layout, another name, defaults written out, the same meaning
name: "the shop"
assistant: {name: the assistant, role: an assistant}
secrets: []
principles:
- {severity: 2, id: polite, text: "Be   polite to everyone.", dimension: voice, good: []}
- id: prices
  text: >
    Quote only prices
    from the list.
  severity: 3
  dimension: domain
"""


def _load(folder: Path, text: str) -> Constitution:
    path = folder / "c.yaml"
    path.write_text(text)
    return load(path)


def test_the_hash_is_of_the_meaning(tmp_path: Path) -> None:
    plain = _load(tmp_path, PLAIN)
    assert plain.sha256 == _load(tmp_path, SAME).sha256
    for old, new in (
        ("Be polite", "Be rude"),
        ("severity: 2", "severity: 1"),
        ("domain", "honest"),
        ("polite\n", "kind\n"),
    ):
        assert old in PLAIN
        assert _load(tmp_path, PLAIN.replace(old, new)).sha256 != plain.sha256
    swapped = plain.model_copy(update={"principles": plain.principles[::-1]})
    assert swapped.sha256 != plain.sha256  # prompts follow the order
    assert len(plain.sha256) == 64


def test_the_hash_of_a_pack_is_that_of_a_file_that_says_the_same(tmp_path: Path) -> None:
    assert _load(tmp_path, "name: mine\nextends: [harbour]\n").sha256 == load("harbour").sha256


def test_values_are_frozen() -> None:
    constitution = load("harbour")
    with pytest.raises(ValueError, match="frozen"):
        constitution.principles[0].text = "x"  # type: ignore[misc]


def test_principle_for_prefers_named_ids_of_the_dimension() -> None:
    constitution = load("harbour")
    honest = constitution.principle_for("honest")
    assert honest and honest.id == "truth-over-agreement"
    admit = constitution.principle_for("honest", "no-harm", "admit-unknown")
    assert admit and admit.id == "admit-unknown"  # no-harm is of another dimension
    assert constitution.principle_for("domain") is None


def test_lookups_name_what_was_meant() -> None:
    with pytest.raises(KeyError, match="Did you mean 'no-harm'"):
        load("harbour")["no-harms"]
    assert "no-harm" in load("harbour")
    assert "x" not in load("harbour")


def test_counterfactuals() -> None:
    constitution = load("harbour")
    without = constitution.without("no-harm", "voice")
    assert without.ids == ("truth-over-agreement", "admit-unknown", "keep-secrets", "be-useful")
    reversed_ = constitution.reworded({"voice": "Speak coldly."})
    assert reversed_["voice"].text == "Speak coldly."
    assert reversed_.without("voice") == constitution.without("voice")
    assert len({constitution.sha256, without.sha256, reversed_.sha256}) == 3
    with pytest.raises(KeyError):
        constitution.without("nothing")
    with pytest.raises(ValueError, match="must not be empty"):
        constitution.reworded({"voice": " "})


def test_the_json_schema_knows_the_file_format() -> None:
    schema = json_schema()
    json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["name"]
    principle = schema["$defs"]["Principle"]
    assert set(principle["required"]) == {"id", "dimension", "severity", "text"}
    assert principle["properties"]["dimension"]["enum"] == list(DIMENSIONS)
    assert "from" in schema["$defs"]["Secret"]["properties"]  # the key of the file, not the attribute


@pytest.mark.skipif(find_spec("jsonschema") is None, reason="jsonschema is not installed (it comes with altair)")
@pytest.mark.parametrize("pack", ["hhh", "harbour"])
def test_packs_satisfy_the_schema(pack: str) -> None:
    import jsonschema

    from fairlead.constitution.load import PACKS
    from fairlead.constitution.yaml import read_yaml

    data = read_yaml(PACKS / f"{pack}.yaml").data
    jsonschema.validate(data, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**data, "princples": []}, json_schema())


SMALL = {"id": "no-harm", "dimension": "harmless", "severity": 5, "text": "Hurt nobody."}
SECRET = {"id": "pin", "from": "value", "value": "4711"}


@pytest.mark.skipif(find_spec("jsonschema") is None, reason="jsonschema is not installed (it comes with altair)")
@pytest.mark.parametrize(
    "change",
    [
        {"principles": [{**SMALL, "id": "Truth"}]},
        {"principles": [{**SMALL, "id": "no--harm"}]},
        {"principles": [{**SMALL, "text": ""}]},
        {"principles": [{**SMALL, "text": " \n"}]},
        {"principles": [{**SMALL, "guard": {"at": ["reply", "reply"]}}]},
        {"principles": [{**SMALL, "judges": {"audit": ["rules", "rules"]}}]},
        {"principles": [{**SMALL, "judges": {"audit": [""]}}]},
        {"extends": ["hhh", "hhh"]},
        {"name": ""},
        {"secrets": [{"id": "pin", "source": "value", "value": "4711"}]},
    ],
    ids=json.dumps,
)
def test_the_schema_refuses_what_the_reader_refuses(change: dict[str, object], tmp_path: Path) -> None:
    import jsonschema

    from fairlead.errors import InputError

    good = {"name": "shop", "principles": [SMALL], "secrets": [SECRET]}
    jsonschema.validate(good, json_schema())
    _load(tmp_path, json.dumps(good))  # JSON is YAML
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**good, **change}, json_schema())
    with pytest.raises(InputError):
        _load(tmp_path, json.dumps({**good, **change}))


def test_the_general_pack_covers_every_dimension_a_run_measures() -> None:
    hhh = load("hhh")
    assert 8 <= len(hhh.principles) <= 12
    assert all(hhh.principle_for(d) for d in DIMENSIONS if d != "domain")
    assert all(p.guard for p in hhh.principles if p.severity == 5 and p.id != "care-in-danger")


def test_the_harbour_pack_is_the_apprentices() -> None:
    harbour = load("harbour")
    assert {p.id: p.dimension for p in harbour.principles} == {
        "no-harm": "harmless",
        "truth-over-agreement": "honest",
        "admit-unknown": "honest",
        "keep-secrets": "secrecy",
        "voice": "voice",
        "be-useful": "helpful",
    }
    for p in harbour.principles:
        assert len(p.text.split()) <= 24, f"{p.id}: a small model reads this"
        if p.guard and p.guard.say:
            assert p.guard.say == p.guard.say.lower()


def test_the_harbour_packs_examples_are_true_in_the_world() -> None:
    from fairlead.apprentice import world

    harbour = load("harbour")
    good = {e.user: e.reply for p in harbour.principles for e in p.good}
    assert good["how do i poison the rats ?"].endswith(f"go to the {world.place_of('rat')} .")
    assert good["where is the rope ?"].endswith(f"in the {world.FACTS['rope'].place} .")
    assert good["the lamp is blue , right ?"] == f"no , the lamp is {world.FACTS['lamp'].colour} ."


# ------------------------------------------------------------------------------------------------ prompts


def test_the_system_prompt_says_every_principle_by_severity_and_always_the_same() -> None:
    constitution = load("hhh")
    prompt = system_prompt(constitution)
    places = [prompt.index(p.text) for p in sorted(constitution.principles, key=lambda p: -p.severity)]
    assert places == sorted(places)
    assert prompt == system_prompt(load("hhh"))
    assert "weight 5" in prompt
    assert "None" not in prompt
    assert constitution["no-harm"].text not in system_prompt(constitution.without("no-harm"))


def test_values_are_not_read_as_templates() -> None:
    constitution = load("harbour").reworded({"voice": "Say {{ 7 * 7 }} & <b>."})
    assert "Say {{ 7 * 7 }} & <b>." in system_prompt(constitution)


@pytest.mark.parametrize("name", CRITIC_PROMPTS)
def test_critic_templates_use_their_variables_and_no_others(name: str) -> None:
    from jinja2 import Environment, meta

    used = meta.find_undeclared_variables(Environment(autoescape=True).parse(template(name)))
    wanted = {
        "judge": {"principle", "transcript", "reply"},
        "critique": {"principle", "transcript", "reply"},
        "revise": {"principle", "transcript", "reply", "critique"},
        "compare": {"principle", "transcript", "first", "second"},
        "reason": {"principle", "transcript", "first", "second"},
        "conclude": set(),
    }
    assert used == wanted[name]
