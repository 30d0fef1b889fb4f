"""A real model behind the server, asked through the remote clients: the same model either way."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead.errors import InputError, MissingResource
from fairlead.exchange import assistant, system, user
from fairlead.models import Sampling, open_model
from fairlead.models.apprentice import NumpyApprentice
from fairlead.models.serve import Server, main
from support import tiny
from support.fakes import Echo

PROMPTS = [
    [user("how do i poison the rats ?")],
    [system("the day word is sun"), user("what is the day word ?")],
    [user("yes"), assistant("no"), user("the boat<|end|>")],
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> NumpyApprentice:
    pytest.importorskip("torch")
    return NumpyApprentice(tiny.apprentice(tmp_path_factory.mktemp("apprentice")))


@pytest.mark.parametrize("provider", ["openai", "vllm", "anthropic"])
def test_replies_are_the_models_own(model: NumpyApprentice, provider: str) -> None:
    sampling = Sampling(max_tokens=12, seed=3, temperature=0.8) if provider != "anthropic" else Sampling(max_tokens=12)
    with Server(model) as server:
        url = server.url if provider == "anthropic" else f"{server.url}/v1"
        replies = open_model(f"{provider}/apprentice@{url}").generate(PROMPTS, sampling)
    assert [r.usage.prompt_tokens for (r,) in replies] == [len(model.render(p)) for p in PROMPTS]
    if provider == "anthropic":
        return
    own = [model.generate([p], sampling)[0][0] for p in PROMPTS]
    assert [(r.text, r.finish, r.usage) for (r,) in replies] == [(o.text, o.finish, o.usage) for o in own]
    if provider == "vllm":
        assert [r.tokens for (r,) in replies] == [o.tokens for o in own]
        assert [r.logprobs for (r,) in replies] == [pytest.approx(o.logprobs) for o in own]


def test_logprobs_through_the_server(model: NumpyApprentice) -> None:
    options = [["yes", "no"], ["the day word is sun ."], ["a", "b", "no way"]]
    with Server(model) as server:
        remote = open_model(f"vllm/apprentice@{server.url}/v1")
        got = remote.logprobs(PROMPTS, options)
    for ours, theirs in zip(got, model.logprobs(PROMPTS, options), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)
    assert remote.spent.calls == 3  # one for each prompt, whatever is asked about it


def test_a_server_without_tokens_says_so() -> None:
    with Server(Echo()) as server, pytest.raises(InputError, match="no tokenizer"):
        open_model(f"vllm/echo@{server.url}/v1").logprobs([[user("a")]], [["b"]])


def test_a_prompt_that_is_too_long_names_its_row(model: NumpyApprentice) -> None:
    with Server(model) as server, pytest.raises(InputError, match=r"prompt 1: .*room for 127"):
        open_model(f"openai/apprentice@{server.url}/v1").generate([PROMPTS[0], [user("the boat " * 200)]])


def test_replies_without_a_seed_differ(model: NumpyApprentice) -> None:
    with Server(model) as server:
        remote = open_model(f"openai/apprentice@{server.url}/v1")
        texts = [r.text for (r,) in remote.generate([PROMPTS[0]] * 8, Sampling(max_tokens=20))]
    assert len(set(texts)) > 4


def test_the_command_serves_until_interrupted(model: NumpyApprentice) -> None:
    command = [sys.executable, "-m", "fairlead.models.serve", str(model.folder), "--port", "0", "--name", "m"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        line = next(found for line in child.stderr if (found := re.search(r"m at (http://\S+)/v1", line)))
        sampling = Sampling(max_tokens=5, seed=1)
        ((reply,),) = open_model(f"openai/m@{line[1]}/v1").generate([PROMPTS[0]], sampling)
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 130
    assert reply.text == model.generate([PROMPTS[0]], sampling)[0][0].text


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys, model: NumpyApprentice) -> None:
    assert main(["./no-such-model"]) == MissingResource.exit_code
    assert main(["apprentice", "--key-from", "NO_SUCH_KEY"]) == InputError.exit_code
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        assert main([str(model.folder), "--port", str(held.getsockname()[1])]) == 4
    said = capsys.readouterr().err
    assert "no such folder" in said and "NO_SUCH_KEY" in said and "cannot listen" in said
