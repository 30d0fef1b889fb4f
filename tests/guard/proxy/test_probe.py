"""A probe from command to proxy: fitted on rows, served beside the model whose states it reads."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")
pytest.importorskip("sklearn", reason="scikit-learn is missing: pip install 'fairlead[guard]'")

import openai

from fairlead.apprentice import world
from fairlead.apprentice.corpus import WORDS
from fairlead.cli import guard_train
from fairlead.constitution import load
from fairlead.errors import FairleadError, InputError
from fairlead.exchange import Exchange, Media, Message, ToolCall, exchange, to_json, user
from fairlead.guard.classifier.probe import load_probes
from fairlead.guard.classifier.probe_check import probe_checks
from fairlead.guard.compile import policies_from
from fairlead.guard.plan import plan
from fairlead.guard.proxy.setup import Keep, Options, read_setup
from fairlead.models.apprentice import open_apprentice
from support.guard_proxy import Proxy

WRITTEN = """
name: quay
principles:
  - id: no-places
    dimension: domain
    severity: 5
    text: Tell nobody where a thing is.
    guard: {at: [reply], on_violation: refuse, say: "where it is stays with me ."}
  - {id: be-kind, dimension: helpful, severity: 2, text: Be kind.}
"""
POLICY = "checks: {classifier: {deadline: 60.0}}\nbudget: 60.0\n"
WHERE, WHICH = "where is the lamp ?", "what colour is the lamp ?"


def _rows(n: int) -> list[dict[str, Any]]:
    """Places broke it, colours kept it; what was asked is words without order, so that no two are nearly the same."""
    rng = random.Random(5)
    out = []
    for _ in range(n):
        for broken in (True, False):
            item = rng.choice(world.ITEMS)
            said = f"the {item} is in the {rng.choice(world.PLACES)} ." if broken else (
                f"the {item} is {rng.choice(world.COLOURS)} ."
            )  # fmt: skip
            asked = " ".join(rng.sample(WORDS, 8))
            out.append({**to_json(exchange(asked, said)), "meta": {"principle": "no-places", "broken": broken}})
    return out


def _train(*arguments: object) -> int:
    app = typer.Typer()
    app.callback()(lambda: None)
    guard_train.add(app)
    try:
        return int(typer.main.get_command(app)(["train", *map(str, arguments)], standalone_mode=False) or 0)
    except FairleadError as problem:
        return problem.exit_code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("probe")
    (here / "quay.yaml").write_text(WRITTEN)
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in _rows(80)))
    given = ("-c", here / "quay.yaml", "--exchanges", here / "rows.jsonl", "--rate", 0.1)
    assert _train(*given, "--probe", "apprentice", "-o", here / "made") == 0
    return here


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Iterator[Proxy]:
    here = tmp_path_factory.mktemp("proxy")
    options: Any = {"model": "apprentice", "probe": folder / "made"}
    with Proxy(here, None, constitution=WRITTEN, policy=POLICY, **options) as proxy:
        yield proxy


def _say(proxy: Proxy, asked: str, stream: bool) -> str:
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, timeout=90)
    told: Any = client.chat.completions.create(
        model="apprentice", messages=[{"role": "user", "content": asked}], temperature=0, max_tokens=24, stream=stream
    )
    if stream:
        return "".join(chunk.choices[0].delta.content or "" for chunk in told if chunk.choices)
    return str(told.choices[0].message.content)


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_model_says_is_refused_by_its_own_states(proxy: Proxy, stream: bool) -> None:
    ((plain,),) = open_apprentice().generate([[user(WHERE)]], _greedy())
    assert any(place in plain.text for place in world.PLACES)  # without the probe it tells
    assert _say(proxy, WHERE, stream) == "where it is stays with me ."
    said = _say(proxy, WHICH, stream)
    assert any(colour in said for colour in world.COLOURS)
    assert proxy.worker.app.setup.all()[0].book.checked.unchecked == ()


def _greedy() -> Any:
    from fairlead.models.protocol import Sampling

    return Sampling(max_tokens=24, temperature=0.0)


def test_the_card_tells_how_well_and_of_whom(folder: Path) -> None:
    card = json.loads((folder / "made" / "card.json").read_text())
    [one] = card["probes"]
    assert one["principle"] == "no-places" and one["test"]["auroc"]["value"] > 0.9 and one["test"]["kept"] >= 8
    assert card["model"]["lineage"] == open_apprentice().lineage and card["rows"]["rows"] == 160
    [probe] = load_probes(folder / "made", model=card["model"]["lineage"])
    assert probe.sha256 == one["sha256"] and probe.constitution == load(str(folder / "quay.yaml")).sha256


def test_probes_of_a_layer_read_an_exchange_once_and_say_the_same_alone(folder: Path) -> None:
    model, written = open_apprentice(torch=False), load(str(folder / "quay.yaml"))
    [check] = probe_checks(written, load_probes(folder / "made", model=model.lineage), model)
    told = exchange(WHERE, "the lamp is in the shed .")
    kept = exchange(WHICH, "the lamp is red .")
    nothing = [
        Exchange((user("hello"),), ()),
        Exchange((user("hello"),), (Message("assistant", (ToolCall("", "f", "{}"),)),)),
    ]
    assert [d.outcome for d in check.decide([told, nothing[0], kept, nothing[1]])] == [
        "refuse",
        "allow",
        "allow",
        "allow",
    ]
    assert check.said(check.read([told])[0]) == check.decide([told])[0]


def test_an_exchange_that_the_model_cannot_read_fails_alone(folder: Path) -> None:
    model, written = open_apprentice(torch=False), load(str(folder / "quay.yaml"))
    [check] = probe_checks(written, load_probes(folder / "made", model=model.lineage), model)
    told, long = exchange(WHERE, "the lamp is in the shed ."), exchange(WHICH, "the lamp is red . " * 500)
    image = Exchange((Message("user", (Media("image", "0" * 64),)),), told.reply)
    said = check.decide([long, told, image])
    assert [d.outcome for d in said] == ["failed", "refuse", "failed"] and said[1] == check.decide([told])[0]
    assert "room for" in said[0].evidence and "more than text" in said[2].evidence
    assert [d.check for d in said] == [check.name] * 3


def test_probes_of_two_layers_and_principles_are_each_its_own_in_a_plan(folder: Path) -> None:
    pytest.importorskip("torch", reason="torch is missing: the apprentice on NumPy gives no other layer")
    model, written = open_apprentice(), load(str(folder / "quay.yaml"))
    guarded = written.model_copy(
        update={
            "principles": tuple(p.model_copy(update={"guard": written["no-places"].guard}) for p in written.principles)
        }
    )
    [one] = load_probes(folder / "made")
    made = replace(one, constitution="", sha256="")
    probes = [replace(made, layer=layer, principle=id) for layer in (-1, 1) for id in guarded.ids]
    followed = plan(probe_checks(guarded, probes, model), policies_from(guarded)).followed
    assert len({one.name for one in followed}) == len({one.identity for one in followed}) == 4
    assert len({one.check.lineage for one in followed}) == 4
    assert sorted(map(len, by_model(followed))) == [2, 2]  # a layer is read once, for both its principles
    with pytest.raises(InputError, match="two probes of 'no-places' on layer 1"):
        probe_checks(guarded, [*probes, replace(probes[2], bias=0.5)], model)
    with pytest.raises(InputError, match="none of layer 40"):
        probe_checks(guarded, [replace(made, layer=40)], model)
    assert made.lineage == replace(made, constitution="").lineage != one.lineage
    assert replace(one, sha256="").lineage == one.lineage  # before it is saved as after


def by_model(followed: Any) -> list[list[str]]:
    names: dict[Any, list[str]] = {}
    for one in followed:
        names.setdefault(one.model, []).append(one.name)
    return list(names.values())


def test_what_does_not_fit_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    model = open_apprentice(torch=False)
    [probe] = load_probes(folder / "made")
    other = tmp_path / "other.yaml"
    other.write_text(WRITTEN.replace("where a thing is", "where any thing is"))
    with pytest.raises(InputError, match="another constitution"):
        probe_checks(load(str(other)), [probe], model)
    with pytest.raises(InputError, match="no probe"):
        load_probes(tmp_path)
    (tmp_path / "quay.yaml").write_text(WRITTEN)
    at_a_server = Options(str(tmp_path / "quay.yaml"), upstream="http://127.0.0.1:9", probe=folder / "made")
    with pytest.raises(InputError, match="model in this process"):
        read_setup(at_a_server, Keep())


def test_what_is_told_by_chance_is_no_probe_and_one_of_an_earlier_call_is_not_served(tmp_path: Path) -> None:
    written = WRITTEN + WRITTEN.split("principles:\n")[1].split("  - {id: be-kind")[0].replace("no-places", "noise")
    (tmp_path / "quay.yaml").write_text(written)
    rows, rng, out = _rows(80), random.Random(3), tmp_path / "made"
    rows += [{**row, "meta": {"principle": "noise", "broken": rng.random() < 0.5}} for row in _rows(80)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    old = out / "noise"
    old.mkdir(parents=True)
    for name in ("probe.json", "probe.safetensors", "notes.txt"):
        (old / name).write_text("of an earlier call")
    assert _train(
        "-c", tmp_path / "quay.yaml", "--exchanges", tmp_path / "rows.jsonl", "--rate", 0.1,
        "--probe", "apprentice", "-o", out,
    ) == 0  # fmt: skip
    [(id, why)] = json.loads((out / "card.json").read_text())["left_out"]
    assert id == "noise" and "not told from chance" in why
    assert [file.name for file in old.iterdir()] == ["notes.txt"]
    [probe] = load_probes(out)
    assert probe.principle == "no-places"


def test_the_command_says_what_it_cannot_do(folder: Path, tmp_path: Path) -> None:
    given = ("-c", folder / "quay.yaml", "--probe", "apprentice", "-o", tmp_path / "made")
    assert _train(*given) == 3  # no row breaks it
    assert _train(*given, "--tune") == 2
    assert _train(*given[:2], "--probe", "openai/x", "-o", tmp_path / "made") == 2
