"""What a model can do, found out from servers that can do different things, kept by date and obeyed afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairlead.cli.main import main
from fairlead.errors import InputError, MissingResource
from fairlead.exchange import assistant, user
from fairlead.models import Budget, CapabilityError, Reply, Sampling, Usage, open_model
from fairlead.models.capabilities import Record, capabilities_of, read_record, record_path, write_record
from fairlead.models.probe import LIMITS, probe
from fairlead.models.protocol import Alternative
from support.batches import Batching
from support.bodies import error_body
from support.fakes import Echo, Fault, Faulty

QUICK = LIMITS.model_copy(update={"backoff": 0.01, "backoff_cap": 0.02})


class Counts(Echo):
    """Counts to nine, minds its stop and its limit, and tells log-probs where it has them."""

    def generate(self, prompts, sampling=Sampling()):  # noqa: B008
        text = "1, 2, 3, 4, 5, 6, 7, 8, 9" if "Count" in prompts[0][-1].text else "SUN"
        for stop in sampling.stop or ():
            text = text.partition(stop)[0]
        top = ((Alternative("1", -0.1), Alternative("2", -3.0)),) if sampling.top_logprobs else None
        more = {"logprobs": (-0.1,), "top_logprobs": top} if top else {}
        reply = Reply((assistant(text),), "stop", usage=Usage(9, 9), **more)
        return [(reply,) * sampling.n for _ in prompts]


ALL = frozenset({"max_tokens", "temperature", "top_p", "stop", "seed", "top_logprobs"})


def found(provider: str, server: Faulty, **more) -> Record:
    url = server.url + ("" if provider == "anthropic" else "/v1")
    model = open_model(f"{provider}/echo@{url}", limits=QUICK, budget=Budget(tokens=100_000), **more)
    record, ended = probe(model, today="2026-11-26")
    assert ended is None and model.spent.tokens <= 100_000
    return record


def test_a_server_that_can_do_all(tmp_path: Path) -> None:
    with Batching(Counts(capabilities=ALL)) as server:
        chat, responses, messages = (found(p, server) for p in ("openai", "openai-responses", "anthropic"))
    assert set(chat.can) == ALL | {"n", "batch"} and not chat.cannot
    assert set(responses.can) == {"max_tokens", "temperature", "top_p", "top_logprobs", "batch"}
    assert set(messages.can) == {"max_tokens", "stop", "batch"}
    limits = [r.found["limit"] for r in (chat, responses, messages)]
    assert limits == ["max_tokens", "max_output_tokens", "max_tokens"]
    for record in (chat, messages):
        assert record.found["system"] == "taken and obeyed" and record.found["stream"].startswith("yes, in ")
        assert "tools" in record.found["tools"], "this server has none, and its words say so"
    assert responses.found["stream"].startswith("no: ")


def test_a_model_that_refuses_and_one_that_ignores() -> None:
    """Like a reasoning model: no temperature, another name of the limit; and a server that drops n, stop and tools."""

    def plan(i: int, body: bytes) -> Fault | None:
        row = json.loads(body)
        if "temperature" in row:
            words = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is."
            return Fault(400, error_body("openai", words, "invalid_request_error", param="temperature"))
        if "max_tokens" in row:
            words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return Fault(400, error_body("openai", words, "invalid_request_error", param="max_tokens"))
        if "tools" in row:
            return Fault(200, TOOL_CALL)
        return None

    class Deaf(Counts):
        def generate(self, prompts, sampling=Sampling()):  # noqa: B008
            return super().generate(prompts, Sampling())

    with Faulty(Deaf(capabilities=ALL), plan) as server:
        record = found("openai", server)
    assert set(record.can) == {"max_tokens", "top_p", "seed"}
    assert set(record.cannot) == {"temperature", "stop", "n", "top_logprobs", "batch"}
    assert "Only the default" in record.cannot["temperature"]
    assert all("taken and ignored" in record.cannot[name] for name in ("stop", "n", "top_logprobs"))
    assert (record.found["limit"], record.found["tools"]) == ("max_completion_tokens", "taken, and called")


TOOL_CALL = json.dumps({
    "id": "c", "object": "chat.completion", "created": 0, "model": "echo",
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    "choices": [{"index": 0, "finish_reason": "tool_calls", "logprobs": None, "message": {
        "role": "assistant", "content": None, "refusal": None,
        "tool_calls": [{"id": "t", "type": "function", "function": {"name": "lookup", "arguments": "{}"}}]}}],
}).encode()  # fmt: skip


def test_a_record_is_obeyed(tmp_path: Path) -> None:
    with Faulty(Counts(capabilities=ALL), lambda i, body: None) as server:
        url = f"{server.url}/v1"
        write_record(Record("echo", url, "chat", "2026-11-26", ("top_p",), {"temperature": "no", "n": "no"}), tmp_path)
        model = open_model(f"openai/echo@{url}", limits=QUICK, records=tmp_path)
        with pytest.raises(CapabilityError, match="temperature"):
            model.generate([[user("hi")]], Sampling(temperature=0.0))
        assert server.count == 0 and "n" not in model.capabilities
        (replies,) = model.generate([[user("hi")]], Sampling(n=3, max_tokens=9))
        assert len(replies) == 3 and server.count == 3, "n replies by n calls"
        other = open_model(f"openai-responses/echo@{url}", limits=QUICK, records=tmp_path)
        assert "temperature" in other.capabilities, "the record is of the other API"
        assert json.loads(server.seen[0]).get("n") is None


def test_what_a_server_refuses_is_gone_from_the_capabilities() -> None:
    refusal = error_body("openai", "'temperature' is not supported", "invalid_request_error", param="temperature")
    with Faulty(Echo(), lambda i, body: Fault(400, refusal)) as server:
        model = open_model(f"openai/echo@{server.url}/v1", limits=QUICK)
        assert "temperature" in model.capabilities
        for _ in range(2):
            with pytest.raises(CapabilityError, match="temperature"):
                model.generate([[user("hi")]], Sampling(temperature=0.0))
    assert "temperature" not in model.capabilities and server.count == 1


def test_known_refusals_by_name_at_the_providers_own_address_and_a_record_before_them(tmp_path: Path) -> None:
    has = frozenset({"temperature", "top_p", "stop", "seed"})
    url = "https://api.openai.com/v1"

    def can(model: str, *, official: bool = True) -> frozenset[str]:
        return capabilities_of("chat", model, url, has, official=official, records=tmp_path)

    assert can("gpt-6-sol") == can("o3") == can("gpt-5.6-luna") == {"seed"}
    assert can("gpt-4.1") == can("gpt-5-chat-latest") == can("gpt-6-sol", official=False) == has
    write_record(Record("gpt-6-sol", url, "chat", "2026-11-26", ("temperature",), {"seed": "refused"}), tmp_path)
    assert can("gpt-6-sol") == {"temperature"}


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 9}', '{"schema": 1}', '{"schema": 1, "can": 3}'])
def test_a_file_that_is_no_record(text: str, tmp_path: Path) -> None:
    record_path("chat", "m", "u", tmp_path).write_text(text)
    with pytest.raises(InputError, match="doctor --live"):
        read_record("chat", "m", "u", tmp_path)


def test_nothing_is_kept_of_a_model_that_does_not_answer() -> None:
    with Faulty(Echo(), lambda i, body: Fault(500)) as server, pytest.raises(MissingResource, match="500"):
        found("openai", server)


def test_the_budget_ends_it_and_what_was_found_is_kept(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Batching(Counts(capabilities=ALL)) as server:
        spec = f"openai/echo@{server.url}/v1"
        assert main(["doctor", "--live", spec, "--budget", "250 tokens", "--json"]) == 5
        row = json.loads(capsys.readouterr().out)["live"]
        assert 0 < len(row["can"]) < len(ALL) and row["schema"] == 1 and row["date"].startswith("20")
        assert main(["doctor", "--live", spec, "--budget", "100k tokens"]) == 0
        said = capsys.readouterr().out
        assert "it takes: batch, max_tokens, n, seed" in said and "kept in runs/.cache/capabilities/echo-chat-" in said
        (file,) = (tmp_path / "runs/.cache/capabilities").iterdir()
        assert set(json.loads(file.read_text())) == {"schema", "date", "model", "url", "api", "can", "cannot", "found"}
        assert main(["doctor", "--live", spec, "--budget", "0.05"]) == 2, "no price is known here"
        assert "price is unknown" in capsys.readouterr().err
        prices = tmp_path / "prices.json"
        prices.write_text(json.dumps({"echo": {"input": 1, "output": 1}}))
        assert main(["doctor", "--live", spec, "--budget", "0.05", "--prices", str(prices)]) == 0
        assert "spent 1" in capsys.readouterr().out
    assert main(["doctor", "--budget", "1 USD"]) == 2
