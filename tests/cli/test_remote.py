"""Models behind an API: cost first, three columns, and what a wrong key, a dead server or an empty purse say."""

from __future__ import annotations

import json
import os
import pty
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead.cli.main import main
from fairlead.exchange import assistant
from fairlead.models import Reply, Sampling
from fairlead.models.serve import Server
from support.fakes import Echo
from support.talker import CONSTITUTION


def spec(wire: str, server: Server) -> str:
    return f"openai/echo@{server.url}/v1" if wire == "openai" else f"anthropic/echo@{server.url}"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    Path("brand.yaml").write_text(CONSTITUTION)


def argv(name: str, *more: str) -> list[str]:
    return ["align", "--model", name, "--constitution", "brand.yaml", "--cases", "2", "--out", "run", *more]


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_a_managed_model_is_measured_bare_prompted_and_guarded(wire: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Server(Echo()) as server:
        assert main(argv(spec(wire, server), "--budget", "2M tokens")) == 0
    out = capsys.readouterr().out
    assert "recipe managed, because" in out  # said aloud
    cost = next(line for line in out.splitlines() if line.startswith("remote:"))
    assert "calls" in cost and "tokens" in cost and "budget" in cost
    assert out.index("remote:") < out.index("measured")
    results = json.loads(Path("run/results.json").read_bytes())
    assert results["layers"] == ["base", "prompt", "guard"]
    assert not Path("run/model").exists()
    assert Path("run/report.html").is_file()


def test_without_a_terminal_it_starts_only_with_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    with Server(echo) as server:
        assert main(argv(spec("openai", server))) == 2
    captured = capsys.readouterr()
    assert "--budget" in captured.err and "calls" in captured.out
    assert echo.asked == []


CRITICS = """
layers:
  - sft: {data: {revise: {rounds: 1, critic: openai/x@http://127.0.0.1:9/v1}}}
  - dpo: {preferences: {from: ai, critic: openai/gpt-5-mini}}
"""


def test_critics_of_training_stages_are_costed_and_opened_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """96 prompts: judged by 6 principles before and after a round, criticised and revised; a pair each in two orders."""
    pytest.importorskip("torch")
    Path("critics.yaml").write_text(CRITICS)
    told = ["align", "--recipe", "critics.yaml", "--smoke", "--out", "run"]
    assert main(told) == 2
    out = capsys.readouterr().out
    calls = 96 * (6 * 2 + 2) + 96 * 2
    assert f"remote: {calls:,} calls" in out and f"at most {calls:,} of the calls by critics of training stages" in out
    assert "measured" not in out and "price unknown" in out
    monkeypatch.delenv("OPENAI_API_KEY")
    assert main([*told, "--budget", "2M tokens"]) == 4
    captured = capsys.readouterr()
    assert "no key" in captured.err and "measured" not in captured.out


@pytest.mark.parametrize(
    ("given", "replies"),
    [
        ("", 6 * 16 * 4),  # no steps given: one pass over 96 prompts, by 16 as --smoke has it
        ("steps: 5", 5 * 16 * 4),
        ("steps: 2, algorithm: dapo", 2 * 16 * 4 * 4),  # three more rounds of dynamic sampling
        ("steps: 2, tasks: true", 2 * 16 * 4),
    ],
)
def test_a_remote_reader_of_a_policys_replies_is_costed_however_its_steps_are_given(
    given: str, replies: int, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    kind = "dapo" if "dapo" in given else "grpo"
    given = given.replace(", algorithm: dapo", ", resample: 3")
    given = given.replace(", tasks: true", ", prompts: {tasks: given, n: 20}")
    layer = "{reward: [constitution:harmless], reader: openai/x@http://127.0.0.1:9/v1, replies: 4, prompts_per_step: 32"
    Path("reader.yaml").write_text(f"layers:\n  - {kind}: {layer}{', ' if given else ''}{given}}}\n")
    assert main(["align", "--recipe", "reader.yaml", "--smoke", "--out", "run"]) == 2
    captured = capsys.readouterr()
    assert "--budget" in captured.err and "measured" not in captured.out
    assert f"remote: {replies:,} calls" in captured.out, captured.out


@pytest.mark.parametrize("keyboard", ["0</dev/null", "0<&-"])
def test_a_terminal_that_cannot_answer_is_not_asked(keyboard: str, elsewhere: Path) -> None:
    """The output is watched, the input is closed, as in `yes | …` or under a scheduler: a limit is asked for, exit 2."""
    shown, far = pty.openpty()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with Server(Echo()) as server, os.fdopen(shown, "rb", 0):
        code = f"import sys; from fairlead.cli.main import main; sys.exit(main({argv(spec('openai', server))!r}))"
        command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} {keyboard}"
        done = subprocess.run(
            ["sh", "-c", command], cwd=elsewhere, env=env, stdout=subprocess.PIPE, stderr=far, check=False
        )
        os.close(far)
        said = os.read(shown, 10_000).decode()
    assert done.returncode == 2, said
    assert "--budget" in said


def test_answers_are_paid_for_once(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    with Server(echo) as server:
        name = spec("openai", server)
        assert main(argv(name, "--budget", "2M tokens")) == 0
        asked = len(echo.asked)
        capsys.readouterr()
        assert main(argv(name)) == 0  # nothing to ask, so no budget is needed either
    assert len(echo.asked) == asked > 0
    assert "nothing to ask" in capsys.readouterr().out


def test_a_training_stage_on_a_model_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    with Server(Echo()) as server:
        assert main(argv(spec("openai", server), "--recipe", "constitutional")) == 2
    assert "--recipe managed" in capsys.readouterr().err


def test_a_wrong_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with Server(Echo(), key="right") as server:
        code = main(argv(spec("openai", server), "--budget", "2M tokens"))
    error = capsys.readouterr().err
    assert code == 4 and "OPENAI_API_KEY" in error and "sk-wrong" not in error
    assert not Path("run").exists()


def test_a_dead_endpoint(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = main(argv(f"openai/echo@http://127.0.0.1:{port}/v1", "--budget", "2M tokens"))
    assert code == 4 and str(port) in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_a_dead_endpoint_in_a_process_of_its_own_prints_its_message_alone(wire: str, elsewhere: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}" + ("/v1" if wire == "openai" else "")
    command = ["-m", "fairlead.cli.main", *argv(f"{wire}/echo@{url}", "--budget", "2M tokens", "--cases", "20")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, *command], cwd=elsewhere, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and f"nothing answers at {url}" in lines[0]


def guarded_by(critic: str) -> list[str]:
    """A sound model behind a guard whose critic is another one."""
    Path("stack.yaml").write_text(f"layers: [{{guard: {{critic: '{critic}'}}}}]\n")
    return ["stack.yaml", "--budget", "2M tokens", "--measures", "over_refusal"]


def test_a_wrong_key_of_the_guards_critic_is_no_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    with Server(Echo()) as server, Server(Echo(), key="right") as closed:
        stack, *more = guarded_by(f"openai/echo@{closed.url}/v1")
        code = main([*argv(spec("openai", server), *more), stack])
    error = capsys.readouterr().err
    assert code == 4 and "refused the key (401)" in error and closed.url in error
    assert not Path("run").exists()


def test_a_dead_endpoint_of_the_guards_critic_is_no_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Server(Echo()) as server:
        stack, *more = guarded_by(f"openai/echo@http://127.0.0.1:{port}/v1")
        code = main([*argv(spec("openai", server), *more), stack])
    assert code == 4 and str(port) in capsys.readouterr().err
    assert not Path("run").exists()


def test_an_exhausted_budget_keeps_what_was_paid_for(capsys: pytest.CaptureFixture[str]) -> None:
    echo = Echo()
    with Server(echo) as server:
        name = spec("openai", server)
        assert main(argv(name, "--budget", "1500 tokens", "--measures", "facts,sums")) == 5
        assert "budget of 1,500 tokens is reached" in capsys.readouterr().err
        assert not Path("run").exists()
        before = len(echo.asked)
        assert main(argv(name, "--budget", "2M tokens", "--measures", "facts,sums")) == 0
        once = len(echo.asked)
    assert 0 < before < once
    bare = [text for text, _ in echo.asked[:4]]
    assert len(set(bare)) == 4  # the base's questions were asked once, over both runs


@pytest.mark.parametrize("wire", ["openai", "anthropic"])
def test_a_reply_that_ends_inside_a_character(wire: str, capsys: pytest.CaptureFixture[str]) -> None:
    class Torn(Echo):
        def generate(self, prompts, sampling=Sampling()):  # noqa: B008
            return [(Reply((assistant("the boat is \ud83d"),), "stop"),) for _ in prompts]

    with Server(Torn()) as server:
        assert main(argv(spec(wire, server), "--budget", "2M tokens")) == 0
    assert "replies held broken characters" in capsys.readouterr().out
    exchanges = Path("run/exchanges/base.jsonl").read_text(encoding="utf-8")
    assert "the boat is \ufffd" in exchanges


def test_it_works_without_torch(elsewhere: Path) -> None:
    code = (
        "import sys; import support.no_torch\n"
        "from fairlead.cli.main import main; from fairlead.models.serve import Server; from support.fakes import Echo\n"
        "with Server(Echo()) as server:\n"
        "    name = f'openai/echo@{server.url}/v1'\n"
        "    sys.exit(main(['align', '--model', name, '--constitution', 'brand.yaml', '--cases', '2', "
        "'--measures', 'facts,sums', '--budget', '2M tokens', '--out', 'run']))\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path("run/report.html").is_file()
