"""The classifier and the critic of one principle in the proxy: the dear one is asked where the cheap one is in doubt."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")
pytest.importorskip("sklearn", reason="scikit-learn is missing: pip install 'fairlead[guard]'")

import openai
import typer

from fairlead.cli import guard_audit
from fairlead.constitution import load as load_constitution
from fairlead.exchange import Exchange, exchange, to_json, user
from fairlead.guard import checked
from fairlead.guard.classifier.model import Classifier, load
from fairlead.guard.proxy import setup
from fairlead.guard.proxy.startup import told
from guard.classifier.made import trained
from guard.helpers import ScriptedModel
from guard.proxy.test_classifier import BROKEN, KEPT, WRITTEN
from support.guard_proxy import Proxy
from support.mock_upstream import Mock, chat, chat_stream, json_reply, sse_reply

DOUBT = "First sink badar, then leave kofin alone."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classifier") / "made"
    trained(out)
    return out


def _say(proxy: Proxy, **more: Any) -> str:
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, timeout=30)
    asked: Any = [{"role": "user", "content": "sink badar kofin luhup?"}]
    told_ = client.chat.completions.create(model="mock", messages=asked, **more)
    if more.get("stream"):
        return "".join(c.choices[0].delta.content or "" for c in told_ if c.choices)
    return told_.choices[0].message.content or ""


def _between(folder: Path, seen: float = 0.95) -> Classifier:
    """The trained one, with its doubt around one of the texts: from halfway between it and the kept to halfway to the
    broken."""
    made = load(folder)
    h = made.head("no-sinking", "exchange")
    assert h is not None
    asked = [exchange("sink badar kofin luhup?", text) for text in (KEPT, DOUBT, BROKEN)]
    kept, doubt, broken = made.judge(asked)[:, h]
    assert kept < doubt < broken
    heads = list(made.heads)
    low, high = float(kept + doubt) / 2, float(doubt + broken) / 2
    heads[h] = dataclasses.replace(heads[h], doubt=low, threshold=high, seen=seen)
    return dataclasses.replace(made, manifest=dataclasses.replace(made.manifest, heads=tuple(heads)))


@pytest.mark.parametrize(("cascade", "seen"), [(True, 0.95), (True, 0.5), (False, 0.95)])
def test_the_critic_is_asked_where_the_classifier_is_in_doubt(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, cascade: bool, seen: float
) -> None:
    critic = ScriptedModel(lambda _: "no", capabilities=frozenset({"max_tokens", "temperature", "seed"}))
    monkeypatch.setattr(setup, "open_model", lambda *_, **__: critic)
    monkeypatch.setattr(checked, "load_classifier", lambda _: _between(folder, seen))
    policy = "{}\n" if cascade else "checks: {cascade: false}\n"
    sleeps = cascade and seen > 0.9  # half of what is broken goes by without a doubt: the critic reads all
    with (
        Mock(lambda _: json_reply(chat(KEPT))) as mock,
        Proxy(tmp_path, mock.url, constitution=WRITTEN, policy=policy, classifier=folder, critic="scripted") as proxy,
    ):
        said = {}
        for text in (KEPT, DOUBT, BROKEN):
            for stream in (False, True):
                mock.script = lambda _, text=text, stream=stream: (
                    sse_reply(*chat_stream(*text)) if stream else json_reply(chat(text))
                )
                before = critic.calls
                proxy.worker.keep.cache.clear()
                said[text, stream] = (_say(proxy, stream=stream), critic.calls - before)
        for stream in (False, True):
            assert said[DOUBT, stream] == ("I sink nothing.", 1)
            assert said[BROKEN, stream] == ("I sink nothing.", 0)  # a sure classifier spares the critic either way
            assert said[KEPT, stream] == ((KEPT, 0) if sleeps else ("I sink nothing.", 1))
        lines = "\n".join(told(proxy.worker.app.setup))
        low, high = next(one.check.doubt for one in proxy.worker.app.setup.all()[0].book.plan.followed if one.cost == 1)  # type: ignore[attr-defined]
        assert (f"from {low:.3f} to below {high:.3f}" in lines) is sleeps
        assert ("cascade: no-sinking" in lines) is sleeps and ("95% of what broke it" in lines) is sleeps


@pytest.mark.parametrize("cascade", [True, False])
def test_exchanges_that_happened_are_read_by_the_critic_where_the_proxy_would_have_it_read(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cascade: bool
) -> None:
    critic = ScriptedModel(lambda _: "no", capabilities=frozenset({"max_tokens", "temperature", "seed"}))
    monkeypatch.setattr("fairlead.models.open_model", lambda *_, **__: critic)
    monkeypatch.setattr(checked, "load_classifier", lambda _: _between(folder))
    (tmp_path / "c.yaml").write_text(WRITTEN)
    (tmp_path / "guard.yaml").write_text("{}\n" if cascade else "checks: {cascade: false}\n")
    rows = [exchange("sink badar kofin luhup?", text) for text in (KEPT, DOUBT, BROKEN)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(to_json(row)) + "\n" for row in rows))
    app = typer.Typer()
    guard_audit.add(app)
    asked = ["check", "-c", str(tmp_path / "c.yaml"), "--classifier", str(folder), "--critic", "scripted"]
    asked += ["--policy", str(tmp_path / "guard.yaml"), "--json", str(tmp_path / "rows.jsonl")]
    assert typer.main.get_command(app)(asked, standalone_mode=False) == 1
    told_ = capsys.readouterr()
    body = json.loads(told_.out)
    assert len(critic.asked) == (1 if cascade else 3)
    assert [row["outcome"] for row in body["rows"]] == ["allow" if cascade else "refuse", "refuse", "refuse"]
    assert body["on_doubt"] == ({"no-sinking": 1} if cascade else {})
    assert [row["unasked"] for row in body["rows"]] == ([["no-sinking"], [], ["no-sinking"]] if cascade else [[]] * 3)
    (rate,) = body["principles"]
    assert (rate["acted"], rate["n"]) == ((2, 3) if cascade else (3, 3))  # of every row, whoever read it
    assert ("The critic is asked about a reply where the classifier is in doubt" in told_.err) is cascade


ASKED = WRITTEN.replace("at: [reply]", "at: [prompt]")


def _ask(proxy: Proxy, text: str) -> str:
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, timeout=30)
    asked: Any = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="mock", messages=asked).choices[0].message.content or ""


@pytest.mark.parametrize("policy", ["{}\n", "checks: {prompts: false}\n"])
def test_the_critic_reads_what_is_asked_before_the_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    answers = {"badar": "no", "kofin": "yes", "luhup": "perhaps"}
    critic = ScriptedModel(
        lambda prompt: next(answer for word, answer in answers.items() if word in prompt[-1].text),
        capabilities=frozenset({"max_tokens", "temperature", "seed"}),
    )
    monkeypatch.setattr(setup, "open_model", lambda *_, **__: critic)
    with (
        Mock(lambda _: json_reply(chat(KEPT))) as mock,
        Proxy(tmp_path, mock.url, constitution=ASKED, policy=policy, critic="scripted") as proxy,
    ):
        lines = "\n".join(told(proxy.worker.app.setup))
        if policy == "{}\n":
            assert "the critic reads what is asked, for no-sinking" in lines and "WHAT IS ASKED IS NOT" not in lines
            assert (_ask(proxy, "sink badar"), len(mock.seen)) == ("I sink nothing.", 0)
            assert (_ask(proxy, "sink kofin"), len(mock.seen)) == (KEPT, 1)
            with pytest.raises(openai.APIStatusError) as broken:  # it says neither: no model is asked
                _ask(proxy, "sink luhup")
            assert broken.value.status_code == 503 and len(mock.seen) == 1
        else:
            assert "the critic reads" not in lines and "WHAT IS ASKED IS NOT CHECKED: no-sinking" in lines
            assert (_ask(proxy, "sink badar"), critic.calls) == (KEPT, 0)


@pytest.mark.parametrize(("cascade", "seen"), [(True, 0.95), (True, 0.5), (False, 0.95)])
def test_a_classifier_without_a_doubt_spares_the_critic_of_what_is_asked(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, cascade: bool, seen: float
) -> None:
    made = load(folder)
    h = made.head("no-sinking", "prompt")
    assert h is not None
    benign, broken = "paint badar kofin luhup?", "sink badar kofin luhup?"
    low, high = (float(p) for p in made.judge([Exchange((user(text),), ()) for text in (benign, broken)])[:, h])
    heads = list(made.heads)
    heads[h] = dataclasses.replace(heads[h], doubt=(2 * low + high) / 3, threshold=(low + 2 * high) / 3, seen=seen)
    (tmp_path / "asked.yaml").write_text(ASKED)
    sha256 = load_constitution(str(tmp_path / "asked.yaml")).sha256
    about = dataclasses.replace(made.manifest, heads=tuple(heads), constitution=sha256)
    changed = dataclasses.replace(made, manifest=about)
    critic = ScriptedModel(lambda _: "yes", capabilities=frozenset({"max_tokens", "temperature", "seed"}))
    monkeypatch.setattr(setup, "open_model", lambda *_, **__: critic)
    monkeypatch.setattr(checked, "load_classifier", lambda _: changed)
    policy = "{}\n" if cascade else "checks: {cascade: false}\n"
    with (
        Mock(lambda _: json_reply(chat(KEPT))) as mock,
        Proxy(tmp_path, mock.url, constitution=ASKED, policy=policy, classifier=folder, critic="scripted") as proxy,
    ):
        assert _ask(proxy, broken) == "I sink nothing." and critic.calls == 0  # the sure classifier refuses by itself
        assert _ask(proxy, benign) == KEPT
        assert critic.calls == (0 if cascade and seen > 0.9 else 1)
