"""`fairlead train sft|dpo` at a provider: what it would cost, what is sent, what comes back, and what stops it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fairlead.cli.main import main
from fairlead.models import open_model
from fairlead.models.finetuning import job
from support.tuner import MODEL, Fault, Provider

ROWS = 12
CANARY = "tgp_canary_5b1f0c9e"


@pytest.fixture(autouse=True)
def data(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pairs.jsonl and talk.jsonl; a key; a provider is asked without pauses."""
    monkeypatch.setenv("TOGETHER_API_KEY", "k")
    quick = job.Pace(poll=0.0, poll_cap=0.0, backoff=0.0)
    monkeypatch.setattr("fairlead.stack.managed.Pace", lambda: quick)
    write("talk.jsonl", *(talk(f"may I fish at pier {i}?", f"yes, at pier {i}") for i in range(ROWS)))
    write("pairs.jsonl", *(pair(f"may I fish at pier {i}?", "yes, and take a lamp", "no") for i in range(ROWS)))


def talk(asked: str, said: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}


def pair(asked: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": asked, "chosen": chosen, "rejected": rejected}


def write(name: str, *rows: dict[str, Any]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def argv(method: str, model: str, *more: str, budget: str | None = "5 USD", out: str | None = "out") -> list[str]:
    file = {"sft": "talk.jsonl", "dpo": "pairs.jsonl"}[method]
    given = ["train", method, "--model", model, "--data", file, *more]
    return given + (["--budget", budget] if budget else []) + (["--out", out] if out else [])


def refused(capsys: pytest.CaptureFixture[str], given: list[str], code: int = 2) -> str:
    assert main(given) == code
    error = capsys.readouterr().err
    assert "Traceback" not in error and "internal error" not in error
    return error


# ---------------------------------------------------------------------------------------------- the whole way


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_file_goes_up_a_job_runs_and_a_model_comes_back(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Provider() as p:
        assert main(argv(method, p.spec, "--epochs", "2")) == 0
        said = capsys.readouterr().out
        assert [call for call in p.seen if call[0] != "GET"] == [
            ("POST", "/files"), ("PUT", "/store/file-1"), ("POST", "/files/file-1/preprocess"),
            ("POST", "/fine-tunes/estimate-price"), ("POST", "/fine-tunes"),
        ]  # fmt: skip
        body = p.jobs["ft-0001"].body
        result = Path("out/model.txt").read_text().strip()
        assert result == f"together/tester/{MODEL}:{body['suffix']}:ft-0001@{p.url}"
        assert said.splitlines()[-1] == result
        found = json.loads(Path("out/train.json").read_bytes())
        sent = Path("out/data.jsonl").read_bytes()
        assert p.files["file-1"].content == sent
        assert found["sha256"] == hashlib.sha256(sent).hexdigest() == p.files["file-1"].checksum
        assert found["result"] == result and found["job"] == "ft-0001" and found["usd_billed"] == 4.0
        assert json.loads(Path("out/job.json").read_bytes())["status"] == "completed"
        assert not Path("out.unfinished").exists()
        for state in ("pending", "queued", "running", "completed"):
            assert f"job ft-0001 is {state}" in said
        assert "billed by the minute" in said  # it does not answer yet, and that is said
        # it is a model that can be opened, and answers once it is served
        p.served.add(result.removeprefix("together/").partition("@")[0])
        (reply,) = open_model(result).generate([[__import__("fairlead.exchange").exchange.user("hello")]])
        assert reply[0].text.endswith("hello")
    assert body["n_epochs"] == 2 and body["model"] == MODEL
    wanted = {"sft": {"method": "sft", "train_on_inputs": False},
              "dpo": {"method": "dpo", "dpo_beta": 0.1, "dpo_normalize_logratios_by_length": False,
                      "dpo_reference_free": False}}[method]  # fmt: skip
    assert body["training_method"] == wanted
    row = json.loads(sent.splitlines()[0])
    assert set(row) == ({"messages"} if method == "sft" else {"input", "preferred_output", "non_preferred_output"})


def test_settings_reach_the_provider(capsys: pytest.CaptureFixture[str]) -> None:
    with Provider() as p:
        given = ["--epochs", "3", "--lr", "2e-5", "--beta", "0.3", "--nll", "0.2", "--lora-rank", "8", "--warmup", "0.1",
                 "--schedule", "cosine", "--rows-per-step", "8", "--seed", "7", "--grad-clip", "none"]  # fmt: skip
        assert main(argv("dpo", p.spec, *given)) == 0
        body = p.jobs["ft-0001"].body
    assert body["training_method"]["dpo_beta"] == 0.3 and body["training_method"]["rpo_alpha"] == 0.2
    assert body["training_type"] == {
        "type": "Lora", "lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "lora_trainable_modules": "all-linear",
    }  # fmt: skip
    assert (body["learning_rate"], body["warmup_ratio"], body["batch_size"]) == (2e-5, 0.1, 8)
    assert (body["n_epochs"], body["random_seed"], body["max_grad_norm"]) == (3, 7, 0.0)
    assert body["lr_scheduler"]["lr_scheduler_type"] == "cosine"


def test_an_earlier_job_is_trained_on(capsys: pytest.CaptureFixture[str]) -> None:
    with Provider() as p:
        assert main(argv("sft", p.spec)) == 0
        assert main(argv("dpo", f"together/ft-0001@{p.url}", out="second")) == 0
        body = p.jobs["ft-0002"].body
    assert body["from_checkpoint"] == "ft-0001" and "model" not in body and "training_type" not in body


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--epochs", "0.5"], "--epochs: 0.5"),
        (["--steps", "3"], "--steps: a managed fine-tuning has no such setting; it takes --epochs"),
        (["--label-smoothing", "0.1"], "--label-smoothing: a managed"),
        (["--schedule", "constant"], "--schedule: constant"),
        (["--full", "--lora"], "--full and --lora"),
        (["--epochs", "21"], "at most 20"),
        (["--lora-rank", "128"], "at most 64"),
        (["--rows-per-step", "33"], "this model takes 8 to 32"),
        (["--lr", "0.5"], "the learning rate is 0.5"),
        (["--threads", "2"], "--threads is for training here"),
        (["--budget", "lots"], "budget 'lots' is not understood"),
        (["--data", "nowhere.jsonl"], "no such file"),
    ],
)
def test_what_a_provider_has_no_place_for(given: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Provider() as p:
        budget = None if "--budget" in given else "5 USD"
        assert says in refused(capsys, argv("dpo", p.spec, *given, budget=budget))
        assert p.files == {} and p.jobs == {}


def test_a_model_the_provider_does_not_tune(capsys: pytest.CaptureFixture[str]) -> None:
    with Provider() as p:
        error = refused(capsys, argv("sft", f"together/no/such-8B@{p.url}"))
    assert "does not fine-tune 'no/such-8B'" in error and p.files == {}


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_openai_is_export_only_and_says_so(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, argv(method, "openai/gpt-4.1-mini"))
    for part in ("closing", "6 January 2027", "https://developers.openai.com/api/docs/deprecations", "--export openai"):
        assert part in error
    assert "offers no fine-tuning" in refused(capsys, argv(method, "anthropic/claude-haiku-4-5"))


# ---------------------------------------------------------------------------------------------- money


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY")  # no key is needed for it either
    with Provider() as p:
        assert main(argv("dpo", p.spec, "--epochs", "3", "--dry-run", "--json", budget=None, out=None)) == 0
        captured = capsys.readouterr()
        assert p.seen == []
    found = json.loads(captured.out)

    # the estimate, by hand: the prompt is read with either reply; a token for every 3 bytes, 5 more a turn
    def tokens(text: str) -> int:
        return -(-len(text.encode()) // 3) + 5

    by_hand = sum(
        2 * tokens(f"may I fish at pier {i}?") + tokens("yes, and take a lamp") + tokens("no") for i in range(ROWS)
    )
    assert found["tokens"] == by_hand and found["tokens_to_bill"] == 3 * by_hand and found["rows"] == ROWS
    assert found["usd"] == max(4.0, 3 * by_hand * 1.20 / 1e6) and found["counted_by"] == "estimate"
    assert "nothing was sent" in captured.err and found["sha256"][:16] in captured.err
    assert list(Path().glob("out*")) == [] and sorted(f.name for f in Path().iterdir()) == ["pairs.jsonl", "talk.jsonl"]


def test_a_budget_is_held_before_anything_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    with Provider() as p:
        assert "$4.00 is over the budget of $3.00" in refused(capsys, argv("sft", p.spec, budget="3 USD"), 5)
        assert "tokens are over the budget" in refused(capsys, argv("sft", p.spec, budget="100 tokens"), 5)
        assert p.seen == []
        assert "--budget" in refused(capsys, argv("sft", p.spec, budget=None))  # nobody can be asked here
        assert p.seen == []


def test_a_budget_is_held_against_the_providers_own_quote(capsys: pytest.CaptureFixture[str]) -> None:
    with Provider(quote=7.5) as p:
        assert "$7.50 is over the budget of $5.00" in refused(capsys, argv("sft", p.spec), 5)
        assert p.jobs == {} and len(p.files) == 1
        # more money, and the same command goes on; the file is there already
        assert main(argv("sft", p.spec, budget="8 USD")) == 0
        assert len(p.jobs) == 1 and p.times("PUT", "/store/file-1") == 1


def test_an_unknown_price_is_not_zero(capsys: pytest.CaptureFixture[str]) -> None:
    with Provider(quote=None) as p:
        assert main(argv("sft", p.spec)) == 0  # the list knows it
        nameless = argv("dpo", f"together/ft-0001@{p.url}", out="second")
        assert "neither a price list nor the provider says" in refused(capsys, nameless)
        Path("mine.json").write_text(json.dumps({"ft-0001": {"sft": 1.0, "dpo": 2.0}}))
        assert main([*nameless, "--prices", "mine.json"]) == 0
        Path("mine.json").write_text(json.dumps({"ft-0001": {"sft": 1.0}}))
        assert "mine.json: price of training 'ft-0001': dpo" in refused(capsys, [*nameless, "--prices", "mine.json"])
    with Provider(allowed=False) as p:
        assert "cannot pay for this job (the account's limit is $25.00)" in refused(
            capsys, argv("sft", p.spec, out="third"), 5
        )
        assert p.jobs == {}


def test_options_of_managed_models_are_not_silently_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in (["--budget", "5 USD"], ["--full"], ["--no-wait"], ["--min-strength", "0.7"], ["--tokenizer", "x"]):
        assert f"{flag[0]} is for managed models" in refused(capsys, argv("dpo", "apprentice", *flag, budget=None))
    assert "say which model" in refused(capsys, ["train", "sft", "--data", "talk.jsonl", "--out", "out"])


# ---------------------------------------------------------------------------------------------- the data


def test_what_became_of_every_pair_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def strong(strength: float, chosen: str = "yes", rejected: str = "no") -> dict[str, Any]:
        turn = lambda role, text: [{"role": role, "parts": [{"type": "text", "text": text}]}]  # noqa: E731
        return {"messages": turn("user", "may I?"), "chosen": turn("assistant", chosen),
                "rejected": turn("assistant", rejected), "strength": strength}  # fmt: skip

    write("pairs.jsonl", strong(1.0), strong(0.5), strong(0.6), strong(0.9), strong(1.0, "same", "same"))
    with Provider() as p:
        assert main(argv("dpo", p.spec, "--min-strength", "0.7", "--json")) == 0
        captured = capsys.readouterr()
        assert p.files["file-1"].content.count(b"\n") == 2
    found = json.loads(captured.out)
    assert {k: found[k] for k in ("rows", "ties", "weak", "soft", "identical")} == {
        "rows": 2, "ties": 1, "weak": 1, "soft": 1, "identical": 1,
    }  # fmt: skip
    assert "1 ties left out" in captured.err and "1 pairs of a strength below 1 written as certain" in captured.err


def test_a_file_the_provider_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    with Provider(invalid="line 3: messages must alternate") as p:
        error = refused(capsys, argv("sft", p.spec))
        assert "Together refuses the file: line 3: messages must alternate" in error and p.jobs == {}


# ---------------------------------------------------------------------------------------------- faults


def test_what_passes_is_tried_again_and_nothing_happens_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """Every kind of request fails at first: 500 on the upload, a lost answer to the job, 429 and a cut while polling."""
    faults = {
        ("POST", "/files", 0): Fault(500),
        ("PUT", "/store/file-1", 0): Fault(503),
        ("GET", "/files/file-1", 0): Fault(429, headers=(("retry-after", "0"),)),
        ("POST", "/fine-tunes/estimate-price", 0): Fault(502),
        ("POST", "/fine-tunes", 0): Fault(after=True),  # it was created; the answer never came
        ("GET", "/fine-tunes/ft-0001", 1): Fault(429, headers=(("retry-after-ms", "1"),)),
        ("GET", "/fine-tunes/ft-0001", 2): Fault(),
        ("GET", "/fine-tunes/ft-0001", 3): Fault(200, b"<html>a proxy</html>"),
    }
    with Provider(plan=lambda *call: faults.get(call)) as p:
        assert main(argv("sft", p.spec)) == 0
        assert len(p.jobs) == 1 and p.times("POST", "/fine-tunes") == 1
        assert [bool(f.content) for f in p.files.values()] == [True]
    assert "another try follows" in capsys.readouterr().out


def test_a_job_that_cannot_be_created_keeps_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    down = True
    with Provider(plan=lambda m, path, n: Fault(503) if down and (m, path) == ("POST", "/fine-tunes") else None) as p:
        assert "no job was created in 6 tries" in refused(capsys, argv("sft", p.spec), 4)
        down = False
        assert main(argv("sft", p.spec)) == 0
        assert len(p.jobs) == 1 and p.times("PUT", "/store/file-1") == 1


@pytest.mark.parametrize(
    ("state", "code", "says"),
    [
        ("error", 4, "job ft-0001 failed at the provider: out of memory on node 7"),
        ("user_error", 2, "ended job ft-0001 for a reason you can mend: out of memory on node 7"),
        ("cancelled", 4, "job ft-0001 was cancelled at the provider"),
    ],
)
def test_a_job_that_fails(state: str, code: int, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    event = {"object": "fine-tune-event", "created_at": "", "type": "job_error", "level": "error",
             "message": "out of memory on node 7"}  # fmt: skip
    with Provider(states=["running", state], events=[event]) as p:
        assert says in refused(capsys, argv("sft", p.spec), code)
        # asked again it says the same, and submits nothing
        error = refused(capsys, argv("sft", p.spec), code)
        assert says in error and "remove out.unfinished" in error and len(p.jobs) == 1
    assert not Path("out").exists()


def test_a_long_queue_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    with Provider(states=["queued"] * 200 + ["completed"]) as p:
        assert main(argv("sft", p.spec)) == 0
        assert p.times("GET", "/fine-tunes/ft-0001") > 200
    assert capsys.readouterr().out.count("is queued") == 1  # a state is said once


def test_not_waiting_and_coming_back(capsys: pytest.CaptureFixture[str]) -> None:
    with Provider(states=["queued", "queued", "running", "completed"]) as p:
        assert main(argv("sft", p.spec, "--no-wait")) == 0
        assert capsys.readouterr().out.splitlines()[-1] == "ft-0001" and not Path("out").exists()
        # without a budget now: the job runs already, and nothing more is bought
        assert main(argv("sft", p.spec, budget=None)) == 0
        assert len(p.jobs) == 1 and Path("out/model.txt").is_file()


def test_another_order_in_the_same_place_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with Provider(states=["queued"]) as p:
        assert main(argv("sft", p.spec, "--no-wait")) == 0
        error = refused(capsys, argv("sft", p.spec, "--epochs", "2"))
        assert "holds another order (job ft-0001)" in error and len(p.jobs) == 1


# ---------------------------------------------------------------------------------------------- killed

CHILD = """
import sys
from pathlib import Path
from fairlead.models import Budget
from fairlead.models.finetuning.job import Pace
from fairlead.stack.managed import Terms, tune_stage
from fairlead.stack.single import Order
from fairlead.stack.voice import Quiet

class Aloud(Quiet):
    def say(self, text):
        print(text, flush=True)

pace = Pace(poll=0.02, poll_cap=0.02, backoff=0.01)
terms = Terms(budget=Budget(usd=5.0), pace=pace, cancel="cancel" in sys.argv)
try:
    tune_stage(Order("sft", sys.argv[1], Path("talk.jsonl"), {}), Path("out"), Aloud(), terms)
except KeyboardInterrupt:
    sys.exit(130)
"""


def started(*given: str) -> subprocess.Popen[str]:
    """The command without its command line, which is quicker to start; the key comes from the environment."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *given], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/files"),  # before the file is sent
        ("PUT", "/store/file-1"),  # the file has arrived, nobody knows it
        ("POST", "/fine-tunes/estimate-price"),  # between upload and create
        ("POST", "/fine-tunes"),  # the job is created, the answer is not heard
        ("GET", "/fine-tunes/ft-0001"),  # while polling
    ],
)
def test_killed_anywhere_it_goes_on_and_submits_once(method: str, path: str) -> None:
    with Provider(states=["queued"] * 3 + ["completed"]) as p:
        child: list[subprocess.Popen[str]] = []

        def kill() -> None:
            if p.times(method, path) == 1:
                while not child:  # it may be quicker than its handle
                    time.sleep(0.01)
                child[0].send_signal(signal.SIGKILL)
                child[0].wait(10)

        p.on[method, path] = kill
        child.append(started(p.spec))
        assert child[0].wait(300) == -signal.SIGKILL, child[0].communicate()[0]
        assert not Path("out").exists()
        again = started(p.spec)
        said, _ = again.communicate(timeout=300)
        assert again.returncode == 0, said
        assert len(p.jobs) == 1 and p.times("POST", "/fine-tunes") == 1
        assert [f.content for f in p.files.values()] == [Path("out/data.jsonl").read_bytes()]
        assert sum(call == "PUT" for call, _ in p.seen) == 1


@pytest.mark.parametrize("cancel", [False, True])
def test_interrupted_the_job_goes_on_unless_it_was_to_be_cancelled(cancel: bool) -> None:
    with Provider(states=["running"]) as p:
        child: list[subprocess.Popen[str]] = []
        p.on["GET", "/fine-tunes/ft-0001"] = lambda: child and child[0].send_signal(signal.SIGINT)
        child.append(started(p.spec, *(["cancel"] if cancel else [])))
        said, _ = child[0].communicate(timeout=300)
        assert child[0].returncode == 130, said
        assert p.jobs["ft-0001"].cancelled is cancel
        assert ("goes on at the provider" in said) is not cancel and Path("out.unfinished/order.json").is_file()


# ---------------------------------------------------------------------------------------------- the key


def test_the_key_is_nowhere_but_in_the_header(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("TOGETHER_API_KEY", CANARY)
    faults = {("POST", "/fine-tunes", 0): Fault(500, f'{{"error": {{"message": "key {CANARY} seen"}}}}'.encode())}
    with Provider(key=CANARY, plan=lambda *call: faults.get(call)) as p:
        assert main(["--debug", *argv("dpo", p.spec)]) == 0
        assert all(CANARY.encode() not in raw for raw in p.raw)
    with Provider(key="another") as p:  # refused, by a server that echoes what it was given
        assert main(argv("dpo", p.spec, out="refused")) == 4
        assert main(argv("dpo", f"together/{MODEL}@http://{CANARY}@127.0.0.1:1/v1", out="odd")) == 2
    captured = capsys.readouterr()
    assert "refused the key (401)" in captured.err and "TOGETHER_API_KEY" in captured.err
    written = [f for f in Path().rglob("*") if f.is_file()]
    assert any(f.name == "order.json" for f in written)
    for text in (captured.out, captured.err, caplog.text, *(f.read_text(errors="replace") for f in written)):
        assert CANARY not in text


def test_no_key(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOGETHER_API_KEY")
    assert "TOGETHER_API_KEY" in refused(capsys, argv("sft", f"together/{MODEL}"), 4)
    monkeypatch.setenv("TOGETHER_API_KEY", CANARY)
    error = refused(capsys, argv("sft", f"together/{MODEL}@http://example.com/v1", out="clear"))
    assert "travel in clear" in error and CANARY not in error


# ---------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("form", ["openai", "together", "fireworks"])
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_an_exported_file_is_read_again_as_the_same_rows(
    form: str, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairlead.feedback.formats import read_demonstrations, read_preferences

    file = {"sft": "talk.jsonl", "dpo": "pairs.jsonl"}[method]
    assert main(["train", method, "--data", file, "--export", form, "--out", "sent.jsonl"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "sent.jsonl"
    assert ("closing its self-serve fine-tuning" in captured.out) is (form == "openai")
    read = {"sft": read_demonstrations, "dpo": read_preferences}[method]
    assert read("sent.jsonl").rows == read(file).rows


def test_exports_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    export = ["train", "dpo", "--data", "pairs.jsonl", "--out", "sent.jsonl", "--export"]
    assert "holds no preference pairs" in refused(capsys, [*export, "bedrock"])
    assert "no export format 'mistral'; known: openai, together" in refused(capsys, [*export, "mistral"])
    for flag in (["--dry-run"], ["--budget", "1 USD"], ["--model", "apprentice"], ["--full"]):
        assert f"{flag[0]}: --export writes a file" in refused(capsys, [*export, "openai", *flag])
    assert "--min-strength is of pairs" in refused(
        capsys, ["train", "sft", "--data", "talk.jsonl", "--out", "s", "--export", "openai", "--min-strength", "0.7"]
    )
    assert "--beta: a file holds data, and no settings" in refused(capsys, [*export, "openai", "--beta", "0.2"])
    assert not Path("sent.jsonl").exists()
    Path("sent.jsonl").write_text("mine")
    assert "exists already" in refused(capsys, [*export, "openai"])


def test_all_of_it_works_without_torch() -> None:
    code = "import sys, support.no_torch\nfrom fairlead.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TOGETHER_API_KEY": "k"}
    with Provider(reads=0, states=["completed"]) as p:
        for given in (
            argv("dpo", p.spec),
            ["train", "sft", "--data", "talk.jsonl", "--export", "bedrock", "--out", "b"],
        ):
            done = subprocess.run(
                [sys.executable, "-c", code, *given], env=env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    assert Path("out/model.txt").is_file() and Path("b").is_file()
