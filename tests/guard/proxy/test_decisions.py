"""Best-of-n, escalation and spend through the running proxy: what the client reads, what is counted, what the log has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

import anthropic
import openai

from fairlead.errors import InputError
from fairlead.exchange import Exchange, Verdict
from fairlead.guard.audit import queue, spend, store
from fairlead.guard.audit.verify import verify
from fairlead.guard.proxy.startup import told
from fairlead.guard.proxy.tenants import draw_key
from fairlead.judges import reward_ensemble
from fairlead.judges.lineage import Lineage, leaf
from support.guard_proxy import POLICY, RULES, Proxy
from support.mock_upstream import Asked, Mock, chat, chat_stream, json_reply, message, sse_reply

ASKED: list[Any] = [{"role": "user", "content": "hello"}]
BEST = POLICY + "best: {n: 3, reward: ./reward, threshold: 0.3, principle: no-poison}\n"
REFUSED = "i keep silent about that ."


class ByLength:
    """A reward model for which longer is better: ten characters score 1. Remembers the sizes of its batches."""

    name = "by length"

    def __init__(self) -> None:
        self.batches: list[int] = []

    @property
    def lineage(self) -> Lineage:
        return leaf("reward", text=self.name)

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        self.batches.append(len(exchanges))
        return [Verdict(min(1.0, len(item.reply_text) / 10)) for item in exchanges]


@pytest.fixture
def reward(monkeypatch: pytest.MonkeyPatch) -> ByLength:
    judge = ByLength()
    monkeypatch.setattr(reward_ensemble, "open_reward_folder", lambda folder: judge)
    return judge


def _say(proxy: Proxy, key: str = "k", **more: Any) -> tuple[str, str]:
    """What the client reads, and how it finished."""
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=key, max_retries=0, timeout=30)
    given = client.chat.completions.create(model="mock", messages=ASKED, **more)
    if not more.get("stream"):
        return given.choices[0].message.content or "", given.choices[0].finish_reason
    text, finish = "", ""
    for chunk in given:
        for choice in chunk.choices:
            assert choice.index == 0
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
    return text, finish


def _entries(log: Path) -> list[dict[str, Any]]:
    with closing(store.connect(log)) as db:
        return [
            b
            for (t,) in db.execute("select body from records order by row")
            if (b := json.loads(t))["kind"] == "exchange"
        ]


def _whole(log: Path) -> None:
    report = verify(log, log.with_suffix(".key"), log.with_suffix(".heads"))
    assert report.whole, report.breaks
    assert report.uncovered == 0


# ---------------------------------------------------------------------------------------------- best of n


def _streamed(*texts: str) -> list[Any]:
    """Alternatives that come one after the other, each in two pieces."""
    out: list[Any] = []
    for index, text in enumerate(texts):
        for event in chat_stream(text[:2], text[2:]):
            if isinstance(event, dict):
                event["choices"][0]["index"] = index
                out.append(event)
    return [*out, "data: [DONE]\n\n"]


def test_the_best_leaves_alone_and_where_none_is_good_enough_the_principle_speaks(
    tmp_path: Path, reward: ByLength
) -> None:
    log = tmp_path / "audit.db"
    with (
        Mock(lambda _: json_reply(chat("no", "longest", "long"))) as mock,
        Proxy(tmp_path, mock.url, policy=BEST, audit=log) as proxy,
    ):
        assert _say(proxy) == ("longest", "stop")
        assert mock.seen[-1].body["n"] == 3 and reward.batches == [3]
        mock.script = lambda _: sse_reply(*_streamed("no", "longest", "long"))
        assert _say(proxy, stream=True) == ("longest", "stop")
        mock.script = lambda _: json_reply(chat("no", "a", "b"))
        assert _say(proxy) == (REFUSED, "content_filter")
        mock.script = lambda _: sse_reply(*_streamed("no", "a", "b"))
        assert _say(proxy, stream=True) == (REFUSED, "content_filter")
        mock.script = lambda _: json_reply(chat("much arsenic", "some", "arsenic , and a lot of it"))
        assert _say(proxy) == ("some", "stop")
        counts = proxy.command("metrics")["counts"]
        assert ["decisions", "no-poison", "refuse", 4.0] in counts  # twice none good enough, two with poison
    _whole(log)
    told_by = [[v for v in entry["verdicts"] if v[1] == "best-of-n"] for entry in _entries(log)]
    assert [v[3] for [v] in told_by] == ["allow", "allow", "refuse", "refuse", "allow"]
    assert told_by[2][0][5] == "the best of 3 candidates scored 0.20, the threshold is 0.3"


def test_a_stream_of_which_every_candidate_is_refused_ends_with_a_refusal(tmp_path: Path, reward: ByLength) -> None:
    """All of them are over before the server has ended any: the guard does not wait for it."""
    text = "arsenic , and more of it " * 100
    events = [event for event in _streamed(text, text, text) if isinstance(event, dict) and not _finish(event)]
    policy = BEST + "limits: {idle: 5.0}\n"
    with Mock(lambda _: sse_reply(*events, "hang")) as mock, Proxy(tmp_path, mock.url, policy=policy) as proxy:
        assert _say(proxy, stream=True) == (REFUSED, "content_filter")
    assert reward.batches == []


def _finish(event: dict[str, Any]) -> bool:
    return any(choice.get("finish_reason") for choice in event["choices"])


def test_a_format_without_alternatives_has_one_that_must_be_good_enough(tmp_path: Path, reward: ByLength) -> None:
    with Mock(lambda _: json_reply(message("longest"))) as mock, Proxy(tmp_path, mock.url, policy=BEST) as proxy:
        client = anthropic.Anthropic(base_url=proxy.url, api_key="k", max_retries=0, timeout=30)
        assert client.messages.create(model="mock", max_tokens=9, messages=ASKED).content[0].text == "longest"  # type: ignore[union-attr]
        assert "n" not in mock.seen[-1].body
        mock.script = lambda _: json_reply(message("no"))
        assert client.messages.create(model="mock", max_tokens=9, messages=ASKED).content[0].text == REFUSED  # type: ignore[union-attr]
        with pytest.raises(openai.BadRequestError, match="the best of 3 replies is chosen here"):
            _say(proxy, n=2)


def test_in_shadow_the_first_candidate_leaves_and_what_would_have_been_is_counted(
    tmp_path: Path, reward: ByLength
) -> None:
    with (
        Mock(lambda _: json_reply(chat("no", "a", "b"))) as mock,
        Proxy(tmp_path, mock.url, policy=BEST, shadow=True) as proxy,
    ):
        assert _say(proxy) == ("no", "stop")
        assert ["no-poison", "refuse", 1] in proxy.command("shadow")["shadow"]


# --------------------------------------------------------------------------------------------- escalation

ESCALATES = RULES.replace("on_violation: refuse", "at: [prompt, reply], on_violation: escalate")


def test_what_is_escalated_waits_in_the_queue_whether_asked_or_answered_streamed_or_not(tmp_path: Path) -> None:
    log = tmp_path / "audit.db"
    with (
        Mock(lambda _: json_reply(chat("a little arsenic"))) as mock,
        Proxy(tmp_path, mock.url, constitution=ESCALATES, audit=log) as proxy,
    ):
        assert _say(proxy) == (REFUSED, "content_filter")
        mock.script = lambda _: sse_reply(*chat_stream("a little ", "arse", "nic"))
        assert _say(proxy, stream=True) == (REFUSED, "content_filter")
        before = len(mock.seen)
        client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0, timeout=30)
        asked: Any = [{"role": "user", "content": "where is the arsenic ?"}]
        given = client.chat.completions.create(model="mock", messages=asked)
        assert given.choices[0].message.content == REFUSED and len(mock.seen) == before
    _whole(log)
    with closing(store.connect(log)) as db:
        waiting = queue.waiting(db)
    assert [(one.principle, one.state) for one in waiting] == [("no-poison", "open")] * 3
    read = [one.exchange for one in waiting if one.exchange is not None]
    assert [item.reply_text for item in read] == ["a little arsenic", "a little arsenic", ""]
    assert read[2].messages[0].text == "where is the arsenic ?"
    assert [entry["decision"] for entry in _entries(log)] == ["escalate"] * 3


def test_what_code_sees_a_part_of_is_said_so_and_waits_like_the_rest(tmp_path: Path) -> None:
    """Personal data is a part of privacy: the principle is not unchecked, and not checked either."""
    written = """
name: two
principles:
  - id: privacy
    dimension: secrecy
    severity: 4
    text: Keep private facts about people private.
    guard: {at: [reply], on_violation: refuse, stream: buffer, say: "no ."}
  - {id: no-gossip, dimension: harmless, severity: 3, text: Do not gossip., guard: {on_violation: refuse, say: "no ."}}
"""
    with (
        Mock(lambda _: json_reply(chat("hello"))) as mock,
        Proxy(tmp_path, mock.url, constitution=written, policy="{}\n") as proxy,
    ):
        lines = told(proxy.worker.app.setup)
    (partly,) = [line for line in lines if "CHECKED IN PART" in line]
    assert partly.startswith("  CHECKED IN PART: privacy, by personal:privacy, ")
    (unseen,) = [line for line in lines if "NOT CHECKED" in line]
    assert unseen.startswith("  NOT CHECKED: no-gossip. ")
    assert any(line.startswith("  buffer: ") and "privacy" in line for line in lines)


def test_without_a_log_nobody_reads_what_is_escalated_which_is_said_and_counted(tmp_path: Path) -> None:
    with (
        Mock(lambda _: json_reply(chat("a little arsenic"))) as mock,
        Proxy(tmp_path, mock.url, constitution=ESCALATES) as proxy,
    ):
        assert any("escalate: no-poison" in line and "NOBODY READS IT" in line for line in told(proxy.worker.app.setup))
        assert _say(proxy) == (REFUSED, "content_filter")
        assert ["check_failures", "escalation", "closed", 1.0] in proxy.command("metrics")["counts"]


# -------------------------------------------------------------------------------------------------- spend

ONE = """
name: one
principles:
  - {id: be-kind, dimension: helpful, severity: 3, text: Be kind., guard: {on_violation: refuse, stream: window, say: "no ."}}
"""
CRITIC = "openai/gpt-6-luna@{url}/v1"  # a model with a price


def _yes(asked: Asked) -> list[Any]:
    """A critic that finds everything well: log-probs of its one token where it is asked for them."""
    body = chat("Yes")
    body["usage"] = {"prompt_tokens": 100_000, "completion_tokens": 100_000, "total_tokens": 200_000}
    top = [{"token": "Yes", "logprob": -0.1, "bytes": None}, {"token": "No", "logprob": -3.0, "bytes": None}]
    body["choices"][0]["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return json_reply(body)


def _tenants(folder: Path, **budgets: str | None) -> tuple[Path, dict[str, str]]:
    keys, lines = {}, ["tenants:"]
    for name, budget in budgets.items():
        keys[name], digest = draw_key()
        lines += [f"  - name: {name}", f'    keys: ["{digest}"]'] + ([f"    budget: {budget}"] if budget else [])
    path = folder / "tenants.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path, keys


def test_a_tenant_whose_budget_is_used_up_gets_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A critic's question that the budget does not allow is a check that failed. The ledger is that of the log: it
    holds for all workers, and after a restart."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    log = tmp_path / "audit.db"
    tenants, keys = _tenants(tmp_path, shop="0.25 USD", bank=None)
    options: dict[str, Any] = {"constitution": ONE, "tenants": tenants, "audit": log}
    (tmp_path / "prices.json").write_text('{"gpt-6-luna": {"input": 0.1, "output": 0.5}}')
    options["policy"] = f"checks: {{spend: 5 USD, prices: {tmp_path / 'prices.json'}}}\n"
    with Mock(_yes) as judge, Mock(lambda _: json_reply(chat("good morning"))) as mock:
        options["critic"] = CRITIC.format(url=judge.url)
        with Proxy(tmp_path, mock.url, **options) as proxy:
            assert _say(proxy, keys["shop"])[0] == "good morning"
            question = sum(one.method == "POST" for one in judge.seen)  # calls for one question, of 6 cents each
            mock.script = lambda _: json_reply(chat("good evening"))  # another question: no verdict is kept for it
            _used_up(proxy, keys["shop"])
            asked = sum(one.method == "POST" for one in judge.seen)
            assert _say(proxy, keys["bank"])[0] == "good evening"
            assert sum(one.method == "POST" for one in judge.seen) == asked + question
            counts = proxy.command("metrics")["counts"]
            assert [row[2:] for row in counts if row[0] == "model_calls" and row[2] == "refused by a cap"] == [
                ["refused by a cap", 1.0]
            ]
        with Proxy(tmp_path, mock.url, **options) as proxy:
            _used_up(proxy, keys["shop"])
    _whole(log)
    with closing(store.connect(log)) as db:
        assert [spend.spent(db, who) for who in ("shop", "bank")] == [pytest.approx(0.06 * question)] * 2
    broken = [entry for entry in _entries(log) if entry["status"] == 503]
    assert len(broken) == 2
    for entry in broken:
        assert any(v[3] == "failed" and v[5] == "the tenant's budget is used up" for v in entry["verdicts"])
        assert any(what.startswith("refused by a cap critic:be-kind") for what in entry["usage"])


def _used_up(proxy: Proxy, key: str) -> None:
    with pytest.raises(openai.InternalServerError, match="a check of this guard is broken"):
        _say(proxy, key)


def test_where_the_principle_lets_it_pass_it_passes_unread_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    lenient = ONE.replace("stream: window", "stream: window, on_error: allow")
    with Mock(_yes) as judge, Mock(lambda _: json_reply(chat("good morning"))) as mock:
        critic = CRITIC.format(url=judge.url)
        policy = "checks: {spend: 10 tokens}\n"
        with Proxy(tmp_path, mock.url, constitution=lenient, policy=policy, critic=critic) as proxy:
            assert _say(proxy)[0] == "good morning" and not judge.seen
            counts = proxy.command("metrics")["counts"]
            assert any(row[0] == "check_failures" and row[2] == "open" for row in counts)


def test_a_request_has_its_own_cap_of_critics_and_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    log = tmp_path / "audit.db"
    with Mock(_yes) as judge, Mock(lambda _: json_reply(chat("good morning"))) as mock:
        critic = CRITIC.format(url=judge.url)
        with Proxy(
            tmp_path, mock.url, constitution=ONE, policy="checks: {dear: 0}\n", critic=critic, audit=log
        ) as proxy:
            _used_up(proxy, "k")
        assert not judge.seen
    [entry] = _entries(log)
    assert any("has had its 0 dear calls" in v[5] for v in entry["verdicts"]) and entry["status"] == 503


@pytest.mark.parametrize(("dear", "asked"), [(1, 1), (2, 2)])
def test_the_cap_counts_what_is_asked_and_the_reply_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dear: int, asked: int
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    both = ONE.replace("stream: window", "stream: window, at: [prompt, reply]")
    with Mock(_yes) as judge, Mock(lambda _: json_reply(chat("good morning"))) as mock:
        policy, critic = f"checks: {{dear: {dear}}}\n", CRITIC.format(url=judge.url)
        with Proxy(tmp_path, mock.url, constitution=both, policy=policy, critic=critic) as proxy:
            if asked < 2:
                _used_up(proxy, "k")
            else:
                assert _say(proxy)[0] == "good morning"
        answers = sum(request.path.endswith("/chat/completions") for request in judge.seen)
        assert answers == 5 * asked and len(mock.seen) == 1  # five answers to a question


def test_a_budget_for_a_critic_that_costs_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="costs nothing"):
        Proxy(tmp_path, "http://127.0.0.1:9", constitution=ONE, policy="checks: {spend: 5 USD}\n", critic="apprentice")


REFUSALS: dict[str, tuple[str, str]] = {
    "money": ("checks:\n  spend: much\n", "guard.yaml:2: checks: spend: budget 'much' is not understood"),
    "principle": (
        "best: {n: 3, reward: ./r, threshold: 0.3, principle: be-tall}\n",
        "best names the principle 'be-tall'",
    ),
    "reward": ("best: {n: 3, reward: ./r, threshold: 0.3}\n", "r"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_settings_that_cannot_be_followed_are_refused_at_start(tmp_path: Path, what: str) -> None:
    policy, said = REFUSALS[what]
    with pytest.raises(InputError) as error:
        Proxy(tmp_path, "http://127.0.0.1:9", policy=policy)
    assert said in str(error.value)
