"""Remote models over loopback: both wire formats, with faults."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback

import pytest

from fairlead.errors import BudgetReached, FairleadError, InputError, MissingResource
from fairlead.exchange import Message, Refusal, Text, ToolCall, system, user
from fairlead.models import Budget, CapabilityError, Price, Reply, Sampling, open_model
from fairlead.models.access import Transient
from fairlead.models.remote import Limits, RemoteModel
from fairlead.models.toolong import TooLong
from support.bodies import error_body
from support.fakes import Echo, Fault, Faulty

QUICK = Limits(backoff=0.01, backoff_cap=0.05, timeout=30.0, deadline=60.0)
BOTH = pytest.mark.parametrize("provider", ["openai", "anthropic"])


def fine(i: int, body: bytes) -> Fault | None:
    return None


def first(n: int, fault: Fault):
    return lambda i, body: fault if i < n else None


def opened(provider: str, server: Faulty, **more):
    url = server.url + ("/v1" if provider != "anthropic" else "")
    return open_model(f"{provider}/echo@{url}", limits=more.pop("limits", QUICK), **more)


@BOTH
def test_answers_with_usage_and_finish(provider: str) -> None:
    with Faulty(Echo(), fine) as server:
        model = opened(provider, server)
        prompts = [[system("be kind"), user("good day")], [user("be long")], [user("filter me")]]
        (a,), (b,), (c,) = model.generate(prompts, Sampling(max_tokens=20))
    assert a.text == "good day #0" and a.finish == "stop"
    assert (a.usage.prompt_tokens, a.usage.completion_tokens) == (4, 2)
    assert b.finish == "length"
    assert c.finish == {"openai": "filter", "anthropic": "refusal"}[provider]  # Anthropic's format has no filter
    assert [type(p) for p in c.messages[0].parts] == [Refusal] and c.text == "not allowed"
    assert (model.spent.calls, model.spent.prompt_tokens, model.spent.usd) == (3, 4 + 2 + 2, None)


@BOTH
def test_two_hundred_calls_none_lost_none_twice_order_kept(provider: str) -> None:
    echo = Echo()
    faults = {7: Fault(429), 50: Fault(503), 90: Fault(kind="reset"), 120: Fault(kind="malformed"), 150: Fault(529)}
    with Faulty(echo, lambda i, body: faults.get(i)) as server:
        replies = opened(provider, server).generate([[user(f"number {i}")] for i in range(200)], Sampling(max_tokens=9))
    assert [r[0].text for r in replies] == [f"number {i} #0" for i in range(200)]
    assert sorted(t for t, _ in echo.asked) == sorted(f"number {i}" for i in range(200))
    assert server.count == 205 and server.most_active <= 16


@BOTH
def test_n_replies(provider: str) -> None:
    with Faulty(Echo(), fine) as server:
        (replies,) = opened(provider, server).generate([[user("hi")]], Sampling(n=3, max_tokens=9))
    expected = ["hi #0", "hi #1", "hi #2"] if provider == "openai" else ["hi #0"] * 3
    assert [r.text for r in replies] == expected


def test_a_server_that_ignores_n_is_asked_again_with_other_seeds() -> None:
    class One(Echo):
        def generate(self, prompts, sampling=Sampling()):  # noqa: B008
            return [group[:1] for group in super().generate(prompts, sampling)]

    one = One()
    with Faulty(one, fine) as server:
        (replies,) = opened("openai", server).generate([[user("hi")]], Sampling(n=3, max_tokens=9, seed=5))
    assert len(replies) == 3 and [s.seed for _, s in one.asked] == [5, 6, 7]


@BOTH
@pytest.mark.parametrize(
    "fault",
    [Fault(429), Fault(500), Fault(529), Fault(408), Fault(kind="reset"), Fault(kind="malformed"), Fault(kind="cut"),
     Fault(kind="shape"), Fault(kind="hang")],
    ids=lambda f: f.kind or str(f.status),
)  # fmt: skip
def test_passing_faults_are_tried_again(provider: str, fault: Fault) -> None:
    with Faulty(Echo(), first(2, fault)) as server:
        ((reply,),) = opened(provider, server, limits=QUICK.model_copy(update={"timeout": 0.3})).generate(
            [[user("hi")]]
        )
    assert reply.text == "hi #0" and server.count == 3


def test_waits_between_tries_grow_to_a_cap_and_are_spread() -> None:
    """Full jitter: uniform up to backoff * 2^try, at most the cap. P(a wrong failure) < 1e-9 for each bound."""
    with Faulty(Echo(), fine) as server:
        model = opened("openai", server, limits=Limits(backoff=0.5, backoff_cap=6.0))
    for attempt, most in enumerate([0.5, 1.0, 2.0, 4.0, 6.0, 6.0]):
        waits = [model.pause(attempt, Transient("busy")) for _ in range(400)]
        assert 0 <= min(waits) < 0.1 * most and 0.9 * most < max(waits) <= most, attempt
        assert len({round(w / most, 3) for w in waits}) > 250, "many clients do not come back at one time"
        told = [model.pause(attempt, Transient("busy", wait=3.0)) for _ in range(400)]
        assert min(told) >= 3.0 and max(told) <= 3.0 + min(most, 1.0), "what the server asks for, and a little more"
        assert max(told) - min(told) > 0.3


@BOTH
def test_retry_after_is_honoured(provider: str) -> None:
    with Faulty(Echo(), first(1, Fault(429, headers=(("retry-after", "0.4"),)))) as server:
        opened(provider, server).generate([[user("hi")]])
    assert server.times[1] - server.times[0] >= 0.4


@BOTH
def test_a_fault_that_stays_is_a_missing_answer_and_spoils_no_other(provider: str) -> None:
    with Faulty(Echo(), lambda i, body: Fault(500) if b"bad" in body else None) as server:
        limits = QUICK.model_copy(update={"attempts": 3})
        (a,), (b,) = opened(provider, server, limits=limits).generate([[user("good")], [user("bad")]])
    assert a.text == "good #0"
    assert b.finish == "error" and b.messages == () and "500" in b.error and "3 tries" in b.error


@BOTH
def test_a_wrong_key_names_its_variable_and_never_the_key(provider: str, monkeypatch, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    canary = "sk-canary-90210"
    variable = f"{provider.upper()}_API_KEY"
    monkeypatch.setenv(variable, canary)

    def echo_key(i: int, body: bytes) -> Fault:
        return Fault(401, error_body(provider, f"Incorrect API key {canary}", "authentication_error"))

    with Faulty(Echo(), echo_key) as server:
        model = opened(provider, server)
        with pytest.raises(MissingResource) as caught:
            model.generate([[user("hi")]] * 5)
    shown = "".join(traceback.format_exception(caught.value))
    assert variable in str(caught.value) and caught.value.exit_code == 4
    everything = [str(caught.value), shown, repr(model), repr(vars(model)), caplog.text, repr(model.endpoint)]
    assert not any(canary in text for text in everything)
    assert any(canary in v for v in server.headers_seen[0].values()), "the key is sent where it belongs"


@BOTH
def test_our_own_server_checks_the_key(provider: str, monkeypatch) -> None:
    with Faulty(Echo(), fine, key="right") as server:
        monkeypatch.setenv(f"{provider.upper()}_API_KEY", "wrong")
        with pytest.raises(MissingResource, match="_API_KEY"):
            opened(provider, server).generate([[user("hi")]])
        monkeypatch.setenv(f"{provider.upper()}_API_KEY", "right")
        assert opened(provider, server).generate([[user("hi")]])[0][0].text == "hi #0"


@BOTH
def test_an_unknown_model_says_model_or_url(provider: str) -> None:
    with Faulty(Echo(), fine) as server:
        url = server.url + ("/v1" if provider == "openai" else "")
        with pytest.raises(MissingResource, match=r"does not know model 'ekko', or the URL is wrong"):
            open_model(f"{provider}/ekko@{url}", limits=QUICK).generate([[user("hi")]])


@BOTH
def test_a_dead_endpoint_names_its_url(provider: str) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(MissingResource, match=f"nothing answers at {url}"):
            open_model(f"{provider}/echo@{url}", limits=QUICK).generate([[user("hi")]] * 20)


def test_calls_that_fail_while_others_end_the_run_leave_asyncio_nothing_to_print(caplog) -> None:
    """Each call fails some turns of the loop after the one before, so that some fail while they are being cancelled."""

    class Dead:
        capabilities, replies_per_call = frozenset({"max_tokens"}), None

        def ready(self) -> None: ...

        async def ask(self, prompt, n, sampling, timeout):
            for _ in range(int(prompt[-1].text)):
                await asyncio.sleep(0)
            raise Transient("ConnectError", dead=True)

    model = RemoteModel("openai/x", Dead(), lineage="api:x", url="http://x", price=None, limits=Limits(backoff=0))  # type: ignore[arg-type]
    with pytest.raises(MissingResource, match="nothing answers at http://x"):
        model.generate([[user(str(turns))] for turns in range(16)])
    gc.collect()  # what nobody asked how it ended is told when it is collected
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_no_key_at_all_names_the_variable() -> None:
    with pytest.raises(MissingResource, match="OPENAI_API_KEY"):
        open_model("openai/gpt-6-sol")
    with pytest.raises(MissingResource, match="ANTHROPIC_API_KEY"):
        open_model("anthropic/claude-sonnet-5-5")


def test_a_key_does_not_travel_in_clear(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    with pytest.raises(InputError, match="plain http") as caught:
        open_model("openai/m@http://models.example.com/v1")
    assert "sk-canary" not in str(caught.value)
    open_model("openai/m@http://10.0.0.4:8000/v1")


@BOTH
def test_a_field_the_api_lacks_is_named(provider: str) -> None:
    with Faulty(Echo(), fine) as server:
        model = opened(provider, server)
        with pytest.raises(CapabilityError, match="top_k"):
            model.generate([[user("hi")]], Sampling(top_k=5))
        if provider == "anthropic":
            with pytest.raises(CapabilityError, match="temperature"):
                model.generate([[user("hi")]], Sampling(temperature=0.5))
    assert server.count == 0


def test_a_field_the_server_refuses_is_named() -> None:
    words = "Unsupported value: 'temperature' does not support 0"
    refusal = error_body("openai", words, "invalid_request_error", param="temperature")
    with (
        Faulty(Echo(), lambda i, body: Fault(400, refusal)) as server,
        pytest.raises(CapabilityError, match="temperature"),
    ):
        opened("openai", server).generate([[user("hi")]], Sampling(temperature=0.0))
    assert server.count == 1


def test_other_refused_requests_name_the_row() -> None:
    server = Faulty(Echo(), lambda i, body: Fault(400) if b"worst" in body else None)
    with server, pytest.raises(InputError, match=r"prompt 2: .*planned"):
        opened("openai", server).generate([[user("a")], [user("b")], [user("worst")]])


@BOTH
def test_our_own_server_says_too_long_as_the_providers_do(provider: str) -> None:
    class Narrow(Echo):
        def generate(self, prompts, sampling=Sampling()):  # noqa: B008
            raise TooLong("prompt 0: 9 tokens, but the model has room for 8")

    with Faulty(Narrow(), fine) as server, pytest.raises(TooLong, match="prompt 0: .* room for 8") as caught:
        opened(provider, server).generate([[user("second")]])
    assert [key[0].text for key in caught.value.prompts] == ["second"]


@BOTH
def test_a_prompt_that_the_server_finds_too_long_is_named(provider: str) -> None:
    words = "prompt is too long: maximum context length is 8 tokens"
    body = error_body(provider, words, "invalid_request_error")
    with Faulty(Echo(), lambda i, sent: Fault(400, body) if b"second" in sent else None) as server:
        model = opened(provider, server)
        with pytest.raises(TooLong, match="prompt 1: ") as caught:
            model.generate([[user("first")], [user("second")], [user("third")]])
        assert [key[0].text for key in caught.value.prompts] == ["second"]


def test_a_server_that_wants_max_completion_tokens_gets_it() -> None:
    words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    refusal = error_body("openai", words, "invalid_request_error")

    def plan(i: int, body: bytes) -> Fault | None:
        return Fault(400, refusal) if b'"max_tokens"' in body else None

    with Faulty(Echo(), plan) as server:
        model = opened("openai", server)
        assert model.generate([[user("hi")]])[0][0].text == "hi #0"
        model.generate([[user("hi")]])
    assert server.count == 3, "asked once, remembered after"


def test_a_prompt_the_provider_filters_is_a_refusal() -> None:
    body = error_body("openai", "flagged", "invalid_request_error", code="content_filter")
    with Faulty(Echo(), lambda i, raw: Fault(400, body)) as server:
        ((reply,),) = opened("openai", server).generate([[user("hi")]])
    assert reply.finish == "filter" and isinstance(reply.messages[0].parts[0], Refusal)


@BOTH
def test_a_refusal_in_the_providers_own_form_is_an_answer(provider: str) -> None:
    class Declining(Echo):
        def generate(self, prompts, sampling=Sampling()):  # noqa: B008
            return [(Reply((Message("assistant", (Refusal("not that"),)),), "refusal"),) for _ in prompts]

    with Faulty(Declining(), fine) as server:
        ((reply,),) = opened(provider, server).generate([[user("hi")]])
    assert reply.finish == "refusal" and reply.messages[0].parts == (Refusal("not that"),)


@BOTH
def test_replies_are_told_one_by_one_and_those_before_a_failure_are_not_lost(provider: str) -> None:
    told: dict[int, str] = {}
    refusing = threading.Event()

    def plan(i: int, body: bytes) -> Fault | None:
        if b"worst" not in body:
            return None
        refusing.wait(10)  # until the others have been told
        return Fault(401)

    def came(row: int, replies: tuple[Reply, ...]) -> None:
        told[row] = replies[0].text
        if len(told) == 2:
            refusing.set()

    prompts = [[user("a")], [user("worst")], [user("b")]]
    with Faulty(Echo(), plan) as server, pytest.raises(MissingResource):
        opened(provider, server).generate(prompts, on_replies=came)
    assert told == {0: "a #0", 2: "b #0"}


HALF = "\ud83d"  # the first half of an emoji: legal as an escape in JSON, no character by itself


@BOTH
def test_half_a_character_is_mended_and_counted(provider: str) -> None:
    class Torn(Echo):
        def generate(self, prompts, sampling=Sampling()):  # noqa: B008
            call = ToolCall("1", f"f{HALF}", json.dumps({"a": HALF, "b": "\U0001f600", "c": "\\ud83d"}))
            parts = (Text(f"fine \U0001f600, then {HALF}{HALF}"), call)
            return [(Reply((Message("assistant", parts),), "stop"),) for _ in prompts]

    with Faulty(Torn(), fine) as server:
        ((reply,),) = opened(provider, server).generate([[user("hi")]])
    text, call = reply.messages[0].parts
    assert text == Text("fine \U0001f600, then \ufffd\ufffd") and call.name == "f\ufffd"
    assert json.loads(call.arguments) == {"a": "\ufffd", "b": "\U0001f600", "c": "\\ud83d"}, "only what is broken"
    assert reply.mended == 4
    reply.text.encode()


@BOTH
def test_a_servers_error_with_half_a_character_can_be_printed(provider: str) -> None:
    body = error_body(provider, "bad \ud83d", "invalid_request_error")
    with (
        Faulty(Echo(), lambda i, raw: Fault(400, body)) as server,
        pytest.raises(InputError, match="bad \ufffd") as said,
    ):
        opened(provider, server).generate([[user("hi")]])
    str(said.value).encode()


# ---------------------------------------------------------------------------------------------- budget


@BOTH
def test_the_budget_is_never_exceeded_by_concurrent_calls(provider: str) -> None:
    echo = Echo(words=40)
    budget = Budget(tokens=3000)
    with Faulty(echo, fine) as server:
        model = opened(provider, server, budget=budget)
        with pytest.raises(BudgetReached) as caught:
            model.generate([[user(f"number {i}")] for i in range(200)], Sampling(max_tokens=40))
    assert budget.spent.tokens <= 3000
    answered = [group for group in caught.value.replies if group]
    assert len(answered) == len(echo.asked) == budget.spent.calls
    assert budget.spent.tokens > 2700, "and it is used, not wasted on reservations"
    assert caught.value.exit_code == 5 and "3,000 tokens" in str(caught.value)


def test_a_budget_in_money_and_one_budget_for_two_models() -> None:
    prices = {"echo": Price(input=1000.0, output=1000.0)}
    budget = Budget.parse("$0.5")
    with Faulty(Echo(words=10), fine) as server:
        models = [opened(p, server, budget=budget, prices=prices) for p in ("openai", "anthropic")]
        errors = []

        def work(model) -> None:
            try:
                model.generate([[user(f"n {i}")] for i in range(100)], Sampling(max_tokens=10))
            except BudgetReached as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(m,)) for m in models]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert len(errors) == 2 and 0.4 < budget.used <= 0.5
    assert budget.used == pytest.approx(sum(m.spent.usd for m in models))


def test_calls_that_may_be_billed_are_booked_at_their_worst() -> None:
    with Faulty(Echo(), first(1, Fault(kind="reset"))) as server:
        model = opened("openai", server, budget=Budget(tokens=10_000))
        model.generate([[user("hi")]], Sampling(max_tokens=100))
    assert model.spent.unsure == 1 and model.spent.completion_tokens >= 100


def test_a_money_budget_needs_a_price() -> None:
    with Faulty(Echo(), fine) as server, pytest.raises(InputError, match="price is unknown"):
        opened("openai", server, budget=Budget(usd=1.0))


@pytest.mark.parametrize("text", ["", "five", "5 EUR", "-1", "0", "5k", "1.2.3"])
def test_bad_budgets(text: str) -> None:
    with pytest.raises(InputError):
        Budget.parse(text)


def test_budgets_are_read() -> None:
    assert [Budget.parse(t).limit for t in ("5", "$2.50", "3 USD", "200k tokens", "1,000 tokens")] == [
        5,
        2.5,
        3,
        2e5,
        1e3,
    ]


def test_estimates_before_anything_is_sent() -> None:
    with Faulty(Echo(), fine) as server:
        prices = {"echo": Price(input=1.0, output=2.0)}
        one = opened("openai", server, prices=prices).estimate([[user("x" * 400)]] * 10, Sampling(n=2, max_tokens=50))
        two = opened("anthropic", server).estimate([[user("x" * 400)]] * 10, Sampling(n=2, max_tokens=50))
    assert (one.calls, one.completion_tokens, two.calls) == (10, 1000, 20)
    assert one.usd == pytest.approx((one.prompt_tokens * 1 + 1000 * 2) / 1e6)
    assert two.usd is None and "price unknown" in str(two)
    assert server.count == 0


# ------------------------------------------------------------------------------------------------ other


def test_an_interrupt_ends_it_at_once() -> None:
    script = """
import sys, time
from fairlead.models import open_model, Sampling
from fairlead.exchange import user
model = open_model(sys.argv[1])
model.endpoint.ready()
print("ready", flush=True)
try:
    model.generate([[user("hi")]] * 40, Sampling(max_tokens=5))
except KeyboardInterrupt:
    time.sleep(0.3)  # the background loop books what was in flight
    print("interrupted", model.spent.unsure, flush=True)
"""
    with Faulty(Echo(), lambda i, body: Fault(kind="hang")) as server:
        command = [sys.executable, "-c", script, f"openai/echo@{server.url}/v1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            while server.count < 16:
                time.sleep(0.02)
            child.send_signal(signal.SIGINT)
            out, _ = child.communicate(timeout=60)
    assert out == "interrupted 16\n"


@BOTH
def test_a_model_that_is_dropped_closes_its_connections_on_the_loop(provider: str) -> None:
    """Left to the collector, an open client unhooks the sockets of later ones, whose answers are then never read."""
    with Faulty(Echo(), fine) as server:
        model = opened(provider, server)
        model.generate([[user("hi")]])
        client = model.endpoint.connection.client
        assert not client.is_closed()
        del model
        gc.collect()
        for _ in range(500):
            if client.is_closed():
                return
            time.sleep(0.02)
    raise AssertionError("the client is still open")


def test_works_inside_a_running_event_loop() -> None:
    with Faulty(Echo(), fine) as server:

        async def notebook() -> str:
            return opened("openai", server).generate([[user("hi")]])[0][0].text

        assert asyncio.run(notebook()) == "hi #0"


def test_identity_is_the_model_not_the_spelling(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    lineage = lambda spec: open_model(spec).lineage  # noqa: E731
    assert lineage("openai/gpt-4o") == lineage("openai/gpt-4o-2024-08-06") == "api:openai/gpt-4o"
    assert lineage("openai/m@http://localhost:8/v1") == lineage("vllm/m@http://127.0.0.1:8/v1")
    assert lineage("openai/m@http://127.0.0.1:8/v1") != lineage("openai/m@http://127.0.0.1:9/v1")


def test_every_error_is_for_the_user() -> None:
    with Faulty(Echo(), lambda i, body: Fault(418)) as server, pytest.raises(FairleadError, match="418"):
        opened("openai", server).generate([[user("hi")]])
