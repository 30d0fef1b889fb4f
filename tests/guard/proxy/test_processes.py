"""The command itself: processes, signals, the admin port, tenants, a model in the process."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is missing: pip install 'fairlead[guard]'")
pytest.importorskip("aiohttp", reason="aiohttp is missing: pip install 'fairlead[guard]'")

import anthropic
import openai

from fairlead.cli.main import main
from fairlead.guard.proxy.tenants import draw_key
from support.guard_proxy import POLICY, RULES, Proxy
from support.mock_upstream import Mock, chat, chat_stream, json_reply, sse_reply

WAIT = 60.0  # seconds for a process to say something on a busy machine


class Running:
    """`fairlead guard serve …` as a process of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fairlead.cli.main", "guard", "serve", "--port", "0", "--admin-port", "0", *arguments],
            stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
        )  # fmt: skip

    def until(self, pattern: str) -> re.Match[str]:
        """The first line from here on that matches."""
        assert self.process.stderr is not None
        until = time.monotonic() + WAIT
        while time.monotonic() < until and (line := self.process.stderr.readline()):
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        raise AssertionError(f"no {pattern!r} in {''.join(self.lines)}")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(WAIT)


@contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[tuple[Running, str, str]]:
    """A running guard, its address and that of its admin port."""
    running = Running(*arguments, **environment)
    try:
        yield running, running.until(r"guard at (\S+),")[1], running.until(r"admin at (\S+):")[1]
    finally:
        running.process.kill()
        running.process.wait()


def _get(url: str, method: str = "GET") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=WAIT) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def _say(url: str, key: str = "k", **more: Any) -> str:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=WAIT)
    reply = client.chat.completions.create(model="mock", messages=[{"role": "user", "content": "hello"}], **more)
    return reply.choices[0].message.content or ""


def _files(folder: Path) -> tuple[str, ...]:
    (folder / "c.yaml").write_text(RULES)
    (folder / "guard.yaml").write_text(POLICY)
    return "--constitution", str(folder / "c.yaml"), "--policy", str(folder / "guard.yaml")


def test_several_workers_one_command(tmp_path: Path) -> None:
    """Two workers answer, are counted together, reload together or not at all, keep one log, and end in order."""
    files, log = _files(tmp_path), tmp_path / "audit.db"
    with (
        Mock(lambda _: json_reply(chat("say abracadabra"))) as mock,
        serving("--upstream", mock.url, "--workers", "2", "--audit", str(log), *files) as (running, url, admin),
    ):
        said = "".join(running.lines)
        assert "no-poison" in said.split("buffer: ")[1].split(".")[0] and "no-shouting" in said.split("window: ")[1]
        for _ in range(16):  # a connection of its own each time
            assert _say(url) == "say [redacted]"
        status = json.loads(_get(f"{admin}/status")[1])["workers"]
        assert len({worker["pid"] for worker in status}) == 2 and all(worker["ready"] for worker in status)
        metrics = _get(f"{admin}/metrics")[1]
        assert re.search(r'requests_total\{decision="redact",.*status="200",.*\} 16.0', metrics), metrics
        assert "fairlead_guard_workers 2.0" in metrics
        heads = json.loads(_get(f"{admin}/audit/heads")[1])["heads"]
        assert len({head["chain"] for head in heads}) == 2
        (tmp_path / "c.yaml").write_text(RULES.replace("severity: 2", "severity: 9"))
        code, told = _get(f"{admin}/reload", "POST")
        assert code == 422 and "c.yaml:6" in told
        assert _say(url) == "say [redacted]"
        (tmp_path / "c.yaml").write_text(RULES.replace("on_violation: redact", "on_violation: refuse", 1))
        running.process.send_signal(signal.SIGHUP)
        running.until("^reloaded")
        assert {_say(url) for _ in range(8)} == {"i will not say it ."}
        os.kill(status[0]["pid"], signal.SIGKILL)
        running.until("started anew")
        assert _get(f"{admin}/healthz")[0] == 200
        assert _ready(admin)
        assert _say(url) == "i will not say it ."
        assert running.end() == 0
    assert b"falcon" not in log.read_bytes()


def _ready(admin: str) -> bool:
    until = time.monotonic() + WAIT
    while (code := _get(f"{admin}/readyz")[0]) != 200 and time.monotonic() < until:
        time.sleep(0.2)
    return code == 200


def test_a_worker_that_is_started_anew_goes_by_what_was_committed(tmp_path: Path) -> None:
    """The files have changed since, and are broken then: until somebody reloads, nobody goes by them."""
    files = _files(tmp_path)
    with (
        Mock(lambda _: json_reply(chat("say abracadabra"))) as mock,
        serving("--upstream", mock.url, "--workers", "2", *files) as (running, url, admin),
    ):
        for text in (RULES.replace("on_violation: redact", "on_violation: refuse", 1), "name: [broken\n"):
            (tmp_path / "c.yaml").write_text(text)
            first, other = json.loads(_get(f"{admin}/status")[1])["workers"]
            os.kill(first["pid"], signal.SIGKILL)
            code, told = _get(f"{admin}/status")
            assert code == 200 and '"ready":false' in told, "a worker that is dead is told, and no fault of the port's"
            assert _get(f"{admin}/readyz")[0] == 503
            running.until("worker 0 died; it is started anew in ")
            assert _ready(admin)
            anew = json.loads(_get(f"{admin}/status")[1])["workers"]
            assert anew[0]["pid"] != first["pid"] and anew[0]["constitutions"] == other["constitutions"]
            assert {_say(url) for _ in range(8)} == {"say [redacted]"}
        assert _get(f"{admin}/reload", "POST")[0] == 422
        (tmp_path / "c.yaml").write_text(RULES.replace("on_violation: redact", "on_violation: refuse", 1))
        assert _get(f"{admin}/reload", "POST")[0] == 200
        assert {_say(url) for _ in range(8)} == {"i will not say it ."}


def _first(admin: str) -> str:
    """Why the first worker is down."""
    told = json.loads(_get(f"{admin}/status")[1])["workers"][0]
    return "up" if told["ready"] else str(told.get("down"))


def test_a_worker_that_is_started_anew_serves_the_classifier_that_was_committed_and_no_other(tmp_path: Path) -> None:
    """The folder holds another one since: till that is put back, or somebody reloads, there is one worker less."""
    pytest.importorskip("sklearn", reason="scikit-learn is missing: pip install 'fairlead[guard]'")
    from fairlead.guard.classifier import artefact
    from guard.classifier.made import trained
    from guard.proxy.test_classifier import BROKEN, WRITTEN

    folder, kept = tmp_path / "made", tmp_path / "kept"
    trained(folder)
    (tmp_path / "c.yaml").write_text(WRITTEN)
    first = artefact.open_folder(folder)[2]
    with (
        Mock(lambda _: json_reply(chat(BROKEN))) as mock,
        serving(
            "--upstream", mock.url, "--workers", "2", "--constitution", str(tmp_path / "c.yaml"), "--classifier", str(folder)
        ) as (running, url, admin),
    ):  # fmt: skip
        shutil.copytree(folder, kept)
        manifest, files, _ = artefact.open_folder(folder)
        other = artefact.save(folder, replace(manifest, rows={**manifest.rows, "more": 1}), files)
        os.kill(json.loads(_get(f"{admin}/status")[1])["workers"][0]["pid"], signal.SIGKILL)
        running.until("worker 0 died")
        until = time.monotonic() + WAIT
        while "sha256" not in (why := _first(admin)) and why != "up" and time.monotonic() < until:
            time.sleep(0.2)
        assert f"sha256 {other[:12]}…, and the one in use {first[:12]}…: put that one back, or reload" in why
        assert {_say(url) for _ in range(4)} == {"I sink nothing."}, "the other goes on"
        shutil.rmtree(folder)
        kept.rename(folder)
        assert _ready(admin) and {_say(url) for _ in range(4)} == {"I sink nothing."}
        artefact.save(folder, replace(manifest, rows={**manifest.rows, "more": 1}), files)
        code, told = _get(f"{admin}/reload", "POST")
        assert code == 200 and json.loads(told)["workers"] == 2
        os.kill(json.loads(_get(f"{admin}/status")[1])["workers"][1]["pid"], signal.SIGKILL)
        running.until("worker 1 died; it is started anew in ")
        assert _ready(admin), "it goes by the one that was reloaded"


def test_a_worker_that_is_started_anew_holds_no_connection_of_the_admin_port(tmp_path: Path) -> None:
    """Else who asks that port would wait for an end that the parent has sent, and the worker keeps from coming."""
    with (
        Mock(lambda _: json_reply(chat("hello"))) as mock,
        serving("--upstream", mock.url, "--workers", "2", *_files(tmp_path)) as (running, url, admin),
    ):
        there = urlsplit(admin)
        held = http.client.HTTPConnection(str(there.hostname), there.port or 0, timeout=10)
        held.request("GET", "/healthz")
        assert held.getresponse().read() and held.sock is not None
        os.kill(json.loads(_get(f"{admin}/status")[1])["workers"][0]["pid"], signal.SIGKILL)
        running.until("started anew")
        assert _ready(admin) and _say(url) == "hello"
        held.sock.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = b""
        while piece := held.sock.recv(4096):  # to its end
            answer += piece
        assert b"200 OK" in answer
        assert running.end() == 0


def test_why_a_worker_does_not_start_is_told_and_it_is_tried_later_each_time(tmp_path: Path) -> None:
    files, key = _files(tmp_path), tmp_path / "server.key"
    key.write_text("sk-one")
    key.chmod(0o600)
    with (
        Mock(lambda _: json_reply(chat("hello"))) as mock,
        serving(
            "--upstream", mock.url, "--workers", "2", "--upstream-key", "OWN_KEY", *files, OWN_KEY_FILE=str(key)
        ) as (running, url, admin),
    ):  # fmt: skip
        key.unlink()
        os.kill(json.loads(_get(f"{admin}/status")[1])["workers"][1]["pid"], signal.SIGKILL)
        running.until(r"worker 1 does not start: .*OWN_KEY_FILE names .* is not there; it is tried again in 2 s")
        running.until(r"worker 1 does not start: .* tried again in 4 s")
        down = json.loads(_get(f"{admin}/status")[1])["workers"][1]
        assert down["ready"] is False and ("OWN_KEY_FILE" in down["down"] or "started" in down["down"])
        assert _say(url) == "hello"
        key.write_text("sk-two")
        key.chmod(0o600)
        assert _get(f"{admin}/reload", "POST")[0] == 200, "the one that runs reloads; the other is started by it"
        assert _ready(admin) and _say(url) == "hello"


def test_what_is_in_flight_ends_before_the_process_does(tmp_path: Path) -> None:
    files = _files(tmp_path)
    with (
        Mock(lambda _: sse_reply(*chat_stream("good ")[:2], 1.0, *chat_stream("morning")[1:])) as mock,
        serving("--upstream", mock.url, *files) as (running, url, _),
    ):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
        stream = client.chat.completions.create(
            model="mock", messages=[{"role": "user", "content": "hello"}], stream=True
        )
        while not mock.seen:
            time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == "good morning"
        assert running.process.wait(WAIT) == 0


def test_ctrl_c_ends_it_in_words_of_a_server(tmp_path: Path) -> None:
    with (
        Mock(lambda _: json_reply(chat("hello"))) as mock,
        serving("--upstream", mock.url, *_files(tmp_path)) as (
            running,
            _,
            _,
        ),
    ):
        running.process.send_signal(signal.SIGINT)
        assert running.until("stopped; what was in flight has ended")
        assert running.process.wait(WAIT) == 130
        assert not [line for line in running.lines if "the same command goes on" in line]


def test_a_model_in_the_process_serves_the_same_routes(tmp_path: Path) -> None:
    with serving("--model", "apprentice", "--constitution", "harbour", PYTHONHASHSEED="0") as (running, url, _):
        assert "NOT CHECKED" in "".join(running.lines)
        names = [m.id for m in openai.OpenAI(base_url=f"{url}/v1", api_key="k").models.list()]
        assert names == ["apprentice"]
        asked: Any = [{"role": "user", "content": "where is the red lamp ?"}]
        told = openai.OpenAI(base_url=f"{url}/v1", api_key="k").chat.completions.create(
            model="apprentice", messages=asked, temperature=0, stream=True
        )
        text = "".join(c.choices[0].delta.content or "" for c in told if c.choices)
        said = anthropic.Anthropic(base_url=url, api_key="k").messages.create(
            model="apprentice", messages=asked, max_tokens=40
        )
        assert len(text) > 3 and said.content[0].text  # type: ignore[union-attr]
        with pytest.raises(openai.NotFoundError, match="apprentice"):
            openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0).chat.completions.create(
                model="other", messages=asked
            )


# ------------------------------------------------------------------------------------------------ tenants


def _tenants(folder: Path, text: str) -> Path:
    path = folder / "tenants.yaml"
    path.write_text(text)
    return path


def test_tenants_have_their_own_key_constitution_server_and_rate(tmp_path: Path) -> None:
    (shop, shop_digest), (bank, bank_digest) = draw_key(), draw_key()
    (tmp_path / "lenient.yaml").write_text(RULES.replace("on_violation: refuse", "on_violation: allow"))
    with (
        Mock(lambda _: json_reply(chat("a little arsenic"))) as one,
        Mock(lambda _: json_reply(chat("arsenic elsewhere"))) as two,
    ):
        tenants = _tenants(
            tmp_path,
            f'tenants:\n  - name: shop\n    keys: ["{shop_digest}"]\n    requests_per_minute: 60\n'
            f'  - name: bank\n    keys: ["{bank_digest}"]\n    constitution: lenient.yaml\n'
            f'    upstream: {{url: "{two.url}"}}\n',
        )
        with Proxy(tmp_path, one.url, tenants=tenants) as proxy:
            assert _say(proxy.url, shop) == "i keep silent about that ."
            assert _say(proxy.url, bank) == "arsenic elsewhere"
            for wrong in ("k", shop[:-1] + ("a" if shop[-1] != "a" else "b"), shop_digest, "fl-" + "a" * 43):
                with pytest.raises(openai.AuthenticationError):
                    _say(proxy.url, wrong)
            with pytest.raises(openai.RateLimitError) as error:
                for _ in range(40):
                    _say(proxy.url, shop)
            assert int(error.value.response.headers["retry-after"]) >= 1
            assert _say(proxy.url, bank) == "arsenic elsewhere", "one tenant's rate is not another's"
            metrics = proxy.command("metrics")["counts"]
            assert not any(shop in str(row) or bank in str(row) for row in metrics)


def test_two_tenants_with_crossed_secrets_over_one_cache(tmp_path: Path) -> None:
    """Each keeps its own; what is a secret of one is a word like any other for the other, whoever asked first."""
    (shop, shop_digest), (bank, bank_digest) = draw_key(), draw_key()
    for name, secret in (("one", "falcon-7781-heron"), ("two", "saltmarsh-4417-tern")):
        (tmp_path / f"{name}.yaml").write_text(RULES.replace("falcon-7781-heron", secret))
    tenants = _tenants(
        tmp_path,
        f'tenants:\n  - {{name: shop, keys: ["{shop_digest}"], constitution: one.yaml}}\n'
        f'  - {{name: bank, keys: ["{bank_digest}"], constitution: two.yaml}}\n',
    )
    text = "falcon-7781-heron and saltmarsh-4417-tern"
    with Mock(lambda _: json_reply(chat(text))) as mock, Proxy(tmp_path, mock.url, tenants=tenants) as proxy:
        for _ in range(3):
            assert _say(proxy.url, shop) == "[redacted] and saltmarsh-4417-tern"
            assert _say(proxy.url, bank) == "falcon-7781-heron and [redacted]"


def test_a_key_that_is_taken_out_of_the_file_is_unknown_after_a_reload(tmp_path: Path) -> None:
    (old, old_digest), (new, new_digest) = draw_key(), draw_key()
    tenants = _tenants(tmp_path, f'tenants:\n  - {{name: shop, keys: ["{old_digest}"]}}\n')
    with Mock(lambda _: json_reply(chat("hello"))) as mock, Proxy(tmp_path, mock.url, tenants=tenants) as proxy:
        assert _say(proxy.url, old) == "hello"
        tenants.write_text(f'tenants:\n  - {{name: shop, keys: ["{new_digest}"]}}\n')
        assert "error" not in proxy.command("prepare")
        proxy.command("commit")
        with pytest.raises(openai.AuthenticationError):
            _say(proxy.url, old)
        assert _say(proxy.url, new) == "hello"


def test_the_servers_key_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", "sk-of-the-server")
    with Mock(lambda _: json_reply(chat("hello"))) as mock, Proxy(tmp_path, mock.url, key="SERVER_KEY") as proxy:
        assert _say(proxy.url, "client") == "hello"
        assert mock.seen[0].headers["authorization"] == "Bearer sk-of-the-server"
        before = proxy.worker.app.setup.all()[0].upstream
        monkeypatch.setenv("SERVER_KEY", "sk-rotated")
        assert _say(proxy.url, "client") == "hello" and mock.seen[1].headers == mock.seen[0].headers
        assert "error" not in proxy.command("prepare")
        proxy.command("commit")
        assert _say(proxy.url, "client") == "hello"
        assert mock.seen[2].headers["authorization"] == "Bearer sk-rotated"
        assert mock.connections == 1, "a reload keeps the connections"
        now = proxy.worker.app.setup.all()[0].upstream
        assert "error" not in proxy.command("prepare")
        proxy.command("commit")
        assert proxy.worker.app.setup.all()[0].upstream is now is not before


# ------------------------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "either --upstream URL or --model MODEL"),
        (["--upstream", "http://a", "--model", "apprentice"], "either --upstream URL or --model MODEL"),
        (["--upstream", "ftp://a"], "no URL of a server"),
        (["--upstream", "http://user:pass@127.0.0.1"], "holds credentials"),
        (["--upstream", "http://127.0.0.1:1", "--host", "0.0.0.0"], "give --tenants FILE"),
        (["--upstream", "http://127.0.0.1:1", "-c", "no-such-pack"], "no-such-pack"),
        (["--upstream", "http://127.0.0.1:1", "--policy", "nowhere.yaml"], "no such guard policy"),
        (["--upstream", "http://127.0.0.1:1", "--tenants", "nowhere.yaml"], "no such tenant file"),
    ],
)
def test_wrong_options_are_told_before_anything_listens(
    arguments: list[str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["guard", "serve", "--port", "0", "--admin-port", "-1", *arguments]) == 2
    assert told in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize("option", ["--port", "--admin-port"])
def test_a_port_that_is_taken_is_told_with_its_option(option: str, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = {"--port": "0", "--admin-port": "0", option: str(taken.getsockname()[1])}
        given = [word for pair in ports.items() for word in pair]
        assert main(["guard", "serve", "--upstream", "http://127.0.0.1:1", "--upstream-key", "PATH", *given]) == 4
    assert f"choose another {option}" in " ".join(capfd.readouterr().err.split())


def test_a_missing_key_ends_with_exit_4(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["guard", "serve", "--upstream", "http://127.0.0.1:1", "--upstream-key", "NO_SUCH_KEY_HERE"]) == 4
    assert "NO_SUCH_KEY_HERE" in capfd.readouterr().err


def test_a_key_is_drawn_once_and_its_digest_goes_into_the_file(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["guard", "key", "shop"]) == 0
    out, err = capfd.readouterr()
    assert re.fullmatch(r"fl-[\w-]{43}\n", out)
    assert out.strip() not in err and "name: shop" in err and "sha256:" in err
