"""Keys: where they may come from, and that they end up nowhere else than in the header they are for."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from fairlead.errors import FairleadError, InputError, MissingResource
from fairlead.exchange import user
from fairlead.models import Sampling, open_model
from fairlead.models.keys import Secret, key_from, near
from fairlead.models.remote import Limits
from support.bodies import KINDS, error_body
from support.fakes import Echo, Fault, Faulty

CANARY = "sk-canary-7f3e9d41b2"
QUICK = Limits(backoff=0.01, backoff_cap=0.02, attempts=2, timeout=30.0)
HASTY = QUICK.model_copy(update={"timeout": 2.0, "attempts": 1})
PROVIDERS = ("openai", "openai-responses", "anthropic")
VARIABLE = {"openai": "OPENAI_API_KEY", "openai-responses": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}


def spec(provider: str, server: Faulty) -> str:
    return f"{provider}/echo@{server.url}" + ("" if provider == "anthropic" else "/v1")


def test_a_secret_shows_itself_nowhere() -> None:
    key = Secret(CANARY)
    assert CANARY not in f"{key} {key!r} {[key]} {dir(key)}" and key.reveal() == CANARY
    with pytest.raises(TypeError):
        vars(key)
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(key)
    assert key.taken_out_of(f"bad key {CANARY}!") == "bad key [key]!"


@pytest.mark.parametrize(("host", "is_near"), [
    ("localhost", True), ("box", True), ("10.0.0.1", True), ("::1", True), ("critic.internal", True),
    ("8.8.8.8", False), ("134744072", False), ("0x8080808", False), ("api.openai.com", False),
])  # fmt: skip
def test_what_is_near(host: str, is_near: bool) -> None:
    assert near(host) is is_near  # 134744072 is 8.8.8.8, written as one number


def test_a_key_file(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "key"
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(file))

    def read() -> Secret | None:
        return key_from("OPENAI_API_KEY", url="https://api.openai.com/v1", optional=False, name="openai/m")

    with pytest.raises(MissingResource, match="not there"):
        read()
    file.touch(mode=0o600)
    with pytest.raises(MissingResource, match="empty"):
        read()
    file.write_text(f"{CANARY}\n")
    assert read().reveal() == CANARY
    for mode in (0o640, 0o604, 0o660):
        file.chmod(mode)
        with pytest.raises(InputError, match=f"others may read .*{mode:04o}.*chmod 600"):
            read()
    file.chmod(0o600)
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with pytest.raises(InputError, match="both OPENAI_API_KEY and OPENAI_API_KEY_FILE"):
        read()
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(tmp_path))
    with pytest.raises(InputError, match="no file"):
        read()


@pytest.mark.parametrize("key", [f"{CANARY} {CANARY}", f"{CANARY}\u00e4", f"{CANARY}\r\nx: y"])
def test_what_is_no_key_is_refused_without_showing_it(key: str, monkeypatch) -> None:
    """Such a key fails inside the SDK, whose error would show a part of it."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match="OPENAI_API_KEY holds blanks or characters") as caught:
        open_model("openai/gpt-6-sol")
    assert CANARY not in _shown(caught.value)


def _shown(error: BaseException) -> str:
    """Everything a traceback can show, local variables included."""
    ours = error.__traceback__.tb_next if error.__traceback__ else None  # without this file's frame, which knows it
    with_locals = traceback.TracebackException(type(error), error, ours, capture_locals=True)
    return "".join(traceback.format_exception(error)) + "".join(with_locals.format())


def _faults(provider: str) -> list[Fault | None]:
    echoed = f"Incorrect API key provided: {CANARY}. Authorization: Bearer {CANARY}"
    statuses = (400, 401, 403, 404, 429, 500)
    faults: list[Fault | None] = [
        Fault(s, error_body(provider, echoed, KINDS.get(s, "api_error"), code=CANARY)) for s in statuses
    ]
    plain = [Fault(400, echoed.encode(), free=True), Fault(200, json.dumps({"echo": echoed}).encode(), free=True)]
    return faults + plain + [Fault(kind=k) for k in ("malformed", "cut", "shape", "reset", "hang")] + [None]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_no_error_log_or_cache_holds_the_key(provider: str, monkeypatch, caplog, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)  # of the SDKs too, which tell what they send
    monkeypatch.setenv(VARIABLE[provider], CANARY)
    everything: list[str] = []
    for fault in _faults(provider):
        with Faulty(Echo(), lambda i, body, fault=fault: fault, hang=4.0) as server:
            limits = HASTY if fault is not None and fault.kind == "hang" else QUICK
            model = open_model(spec(provider, server), limits=limits, cache=tmp_path)
            try:
                replies = model.generate([[user("good day")]], Sampling(max_tokens=9))
                everything.append(repr(replies))
            except FairleadError as error:
                everything.append(_shown(error))
            connection = model.endpoint.connection
            everything += [repr(x) for x in (model, vars(model), model.endpoint, vars(model.endpoint), connection)]
            sent = [v for seen in server.headers_seen for v in seen.values()]
            assert limits is HASTY or any(CANARY in value for value in sent), "sent where it belongs"
            assert all(CANARY not in body.decode() for body in server.seen), "and in no body"
    assert "[key]" in "".join(everything), "the servers' words are told, without the key"
    everything += [r.getMessage() + str(r.args) for r in caplog.records]
    everything += [p.read_text() for p in tmp_path.rglob("*") if p.is_file()] + [str(p) for p in tmp_path.rglob("*")]
    found = [text for text in everything if CANARY in text]
    assert not found, found[0][:2000]


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_no_command_prints_or_writes_the_key(provider: str, tmp_path: Path) -> None:
    """Commands that fail and that succeed, with --debug and the SDKs' own logs at their loudest."""
    env = {
        **os.environ, "PYTHONPATH": os.pathsep.join(sys.path), VARIABLE[provider]: CANARY, "OPENAI_LOG": "debug",
        "ANTHROPIC_LOG": "debug", "PYTHONASYNCIODEBUG": "1",
    }  # fmt: skip
    refused = Fault(401, error_body(provider, f"Incorrect API key {CANARY}", "authentication_error"))
    printed = ""
    for plan in (lambda i, body: refused, lambda i, body: None):
        with Faulty(Echo(), plan) as server:
            measure = [
                "measure",
                spec(provider, server),
                "--measures",
                "facts",
                "--cases",
                "2",
                "--budget",
                "1M tokens",
            ]
            for command in (["doctor", "--live", spec(provider, server)], [*measure, "--out", "run"]):
                done = subprocess.run(
                    [sys.executable, "-m", "fairlead.cli.main", "--debug", *command], env=env, cwd=tmp_path,
                    capture_output=True, text=True, timeout=300,
                )  # fmt: skip
                printed += done.stdout + done.stderr
    assert "Traceback" in printed and "[key]" in printed
    written = "".join(p.read_text(errors="replace") for p in tmp_path.rglob("*") if p.is_file())
    assert written and CANARY not in printed + written
