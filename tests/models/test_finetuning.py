"""Fine-tuning at a provider, below the command line: prices, the wire, uploads that broke off, the clock of polling."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import InputError, MissingResource
from fairlead.models.access import Transient, Who
from fairlead.models.finetuning import Tuning, Upload, open_tuner
from fairlead.models.finetuning import job as jobs
from fairlead.models.finetuning.prices import billions, price_of, read_training_prices
from fairlead.models.finetuning.protocol import Adapters, Tuned
from fairlead.models.finetuning.together import Together
from fairlead.models.finetuning.wire import Wire
from fairlead.models.keys import Secret
from support.tuner import MODEL, Fault, File, Provider

SFT = Tuning(model=MODEL, method="sft")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGETHER_API_KEY", "k")


@pytest.fixture
def data(tmp_path: Path) -> Upload:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"messages": []}\n' * 3)
    return Upload(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, 3)


# ------------------------------------------------------------------------------------------------ prices


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("Qwen/Qwen3-8B", 8),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct-Reference", 8),
        ("openai/gpt-oss-20b", 20),
        ("Qwen/Qwen3.5-0.8B", 0.8),
        ("Qwen/Qwen3-235B-A22B", 235),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 56),
        ("30b-labs/Kimi-K2-Instruct", None),
        ("x/model-8bit", None),
        ("ft-0001", None),
    ],
)
def test_a_models_size_by_its_name(model: str, size: float | None) -> None:
    assert billions(model) == size


def test_the_price_list(tmp_path: Path) -> None:
    small, large = price_of("Qwen/Qwen3-8B", full=False), price_of("Qwen/Qwen2.5-72B", full=True)
    assert small is not None and large is not None
    assert small.cost("dpo", 10_000_000) == pytest.approx(12.0) and small.cost("sft", 1000) == 4.0
    assert large.cost("sft", 2_000_000) == pytest.approx(6.4)
    assert price_of("Qwen/Qwen3-235B-A22B", full=False) is None  # priced by itself: not known here, and not zero
    own = tmp_path / "prices.json"
    own.write_text('{"Qwen/Qwen3-8B": {"sft": 1, "dpo": 2}}')
    mine = price_of("Qwen/Qwen3-8B", full=False, extra=read_training_prices(own))
    assert mine is not None and mine.cost("dpo", 1_000_000) == 2.0 and mine.minimum == 0
    for text, says in (("[]", "expected"), ("{", "not a JSON"), ('{"a": {"sft": -1, "dpo": 1}}', "'a': sft")):
        own.write_text(text)
        with pytest.raises(InputError, match=f"prices.json: .*{says}"):
            read_training_prices(own)


# ------------------------------------------------------------------------------------------------ the wire


@contextmanager
def listener(answer: Any) -> Iterator[tuple[str, list[Any]]]:
    """A server that keeps the requests it hears; `answer(handler)` sends something."""
    heard: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.command, self.path, dict(self.headers.items())))
            answer(self)

        do_POST = do_PUT = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", heard
    finally:
        server.shutdown()
        server.server_close()


def sends(status: int, body: bytes = b"{}", **headers: str) -> Any:
    def answer(handler: Any) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_the_key_follows_no_redirect() -> None:
    with (
        listener(sends(200)) as (elsewhere, heard),
        listener(sends(302, Location=f"{elsewhere}/steal")) as (url, asked),
    ):
        answer = Wire(Who("m", "m", url, "K"), Secret("canary")).call("GET", "/files", expect=(302,))
        assert answer.status == 302 and heard == []
        assert asked[0][2]["Authorization"] == "Bearer canary"


def test_a_file_goes_without_key_or_content_type(data: Upload) -> None:
    with listener(sends(200)) as (url, heard):
        Wire(Who("m", "m", url, "K"), Secret("canary")).put(f"{url}/store", data.path, data.bytes)
    ((method, _, headers),) = heard
    assert method == "PUT" and headers["Content-Length"] == str(data.bytes)
    assert "canary" not in str(headers) and "Content-Type" not in headers


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (sends(503), Transient, "answered 503"),
        (sends(429, **{"retry-after": "7"}), Transient, "answered 429"),
        (sends(200, b"<html>"), Transient, "not JSON"),
        (sends(200, b"[]"), Transient, "not a JSON object"),
        (sends(400, b'{"error": {"message": "bad canary"}}'), InputError, r"bad \[key\]"),
        (sends(403, b'{"error": "no"}'), MissingResource, "refused the key"),
        (sends(402, b'{"message": "no credit"}'), MissingResource, "no credit left"),
        (lambda handler: handler.connection.close(), Transient, "no answer from 127.0.0.1"),
    ],
)
def test_what_a_failed_call_means(answer: Any, error: type[Exception], says: str) -> None:
    with listener(answer) as (url, _), pytest.raises(error, match=says) as caught:
        Wire(Who("m", "m", url, "K"), Secret("canary")).call("GET", "/files").json(url)
    assert "canary" not in str(caught.value)
    if "429" in says:
        assert isinstance(caught.value, Transient) and caught.value.wait == 7.0


def test_a_dead_server_and_a_name_that_is_none() -> None:
    with listener(sends(200)) as (url, _):
        pass
    with pytest.raises(Transient, match="no answer from") as caught:
        Wire(Who("m", "m", url, "K"), None).call("GET", "/files")
    assert caught.value.dead


@pytest.mark.parametrize(
    ("base", "place", "fine"),
    [
        ("https://api.together.ai/v1", "https://store.example/x", True),
        ("https://api.together.ai/v1", "http://store.example/x", False),
        ("http://127.0.0.1:1/v1", "http://127.0.0.1:1/x", True),
        ("https://api.together.ai/v1", "file:///etc/passwd", False),
        ("https://api.together.ai/v1", "", False),
    ],
)
def test_where_a_file_may_go(base: str, place: str, fine: bool) -> None:
    tuner = Together(Wire(Who("m", "m", base, "K"), Secret("canary")))
    assert "canary" not in repr(tuner)
    if fine:
        tuner._check_place(place, "file-1")
    else:
        with pytest.raises(Transient, match="did not say where"):
            tuner._check_place(place, "file-1")
    with pytest.raises(Transient):
        tuner._check_place(place, "")


# ------------------------------------------------------------------------------------------------ uploads


def test_a_file_is_sent_once(data: Upload) -> None:
    with Provider(reads=0) as p:
        tuner = open_tuner(p.spec)
        assert tuner.upload(data) == tuner.upload(data) == "file-1"
        assert p.times("PUT", "/store/file-1") == 1 and p.files["file-1"].content == data.path.read_bytes()
        assert p.files["file-1"].name == f"fairlead-{data.sha256[:16]}.jsonl"


def test_an_upload_that_broke_off_is_made_again(data: Upload) -> None:
    with Provider(reads=0) as p:
        p.files["file-1"] = File("half", data.sha256)  # its name was given, its bytes never came
        assert open_tuner(p.spec).upload(data) == "file-1"
        assert ("DELETE", "/files/file-1") in p.seen and p.files["file-1"].content == data.path.read_bytes()


def test_bytes_that_were_lost_are_noticed(data: Upload) -> None:
    with Provider(reads=0) as p:
        p.files["file-1"] = File("half", data.sha256, b"short")
        with pytest.raises(MissingResource, match="5 of the file's 51 bytes arrived"):
            open_tuner(p.spec).upload(data)


def test_a_file_that_is_gone_is_sent_again(data: Upload) -> None:
    kept: list[jobs.Progress] = []
    with Provider(reads=0) as p:
        tuner = open_tuner(p.spec)
        pace = jobs.Pace(poll=0, backoff=0)
        start = jobs.Progress("order", "tag", "sent", "file-99")
        done = jobs.submit(tuner, SFT, data, start, kept.append, lambda quote: None, pace=pace)
        assert (
            done.file_id == "file-1" and done.job_id == "ft-0001" and p.jobs["ft-0001"].body["suffix"] == "fairlead-tag"
        )
    assert [step.step for step in kept] == ["sending", "sent", "creating", "created"]


def test_a_provider_that_never_reads_the_file_through(data: Upload) -> None:
    with Provider(reads=10**9) as p, pytest.raises(MissingResource, match="has not read the file through"):
        jobs.submit(
            open_tuner(p.spec), SFT, data, jobs.Progress("o", "t"), lambda now: None, lambda quote: None,
            pace=jobs.Pace(poll=0, backoff=0, reading=0.2),
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------ jobs


def started(p: Provider) -> tuple[Any, jobs.Progress]:
    p.files["file-1"] = File("f", "c", b"x")
    tuner = open_tuner(p.spec)
    made = tuner.create("file-1", SFT, "tag")
    return tuner, jobs.Progress("o", "tag", "created", "file-1", made.id, made.said)


def test_polls_get_rarer_up_to_a_cap_and_a_change_starts_them_anew() -> None:
    waits: list[float] = []
    with Provider(reads=0, states=["queued"] * 7 + ["running"] * 2 + ["completed"]) as p:
        tuner, order = started(p)
        pace = jobs.Pace(poll=4, growth=2, poll_cap=20)
        done = jobs.follow(tuner, order, lambda now: None, pace=pace, sleep=waits.append)
    assert waits == [4, 8, 16, 20, 20, 20, 20, 4, 8] and done.usd == 4.0 and done.tokens == 1234


def test_a_server_that_says_how_long_to_wait_is_heard() -> None:
    waits: list[float] = []
    faults = {("GET", "/fine-tunes/ft-0001", 0): Fault(429, headers=(("retry-after", "33"),))}
    with Provider(reads=0, states=["completed"], plan=lambda *call: faults.get(call)) as p:
        tuner, order = started(p)
        jobs.follow(tuner, order, lambda now: None, sleep=waits.append)
    assert waits == [33.0]


def test_silence_has_an_end() -> None:
    with Provider(reads=0, plan=lambda m, path, n: Fault(500) if m == "GET" else None) as p:
        tuner, order = started(p)
        with pytest.raises(
            MissingResource, match=r"nothing was heard of job ft-0001 for 0 s .*may be running all the same"
        ):
            jobs.follow(tuner, order, lambda now: None, pace=jobs.Pace(backoff=0.01, patience=0.2))


def test_an_unknown_state_is_under_way_and_a_job_without_a_model_is_no_success() -> None:
    with Provider(reads=0, states=["pondering"]) as p:
        tuner, order = started(p)
        assert (tuner.job(order.job_id).state, tuner.job(order.job_id).said) == ("running", "pondering")
    with pytest.raises(MissingResource, match="names no model"):
        jobs.outcome(tuner, Tuned("ft-1", "done", "completed"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "sft", "beta": 0.1}, "belong to dpo"),
        ({"method": "dpo", "on_text": True}, "belongs to sft"),
        ({"method": "sft", "epochs": 0}, "epochs"),
        ({"method": "kto"}, "method"),
    ],
)
def test_orders_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Tuning(model=MODEL, **settings)
    with pytest.raises(ValueError, match="of a given rank"):
        Adapters(dropout=0.1)
