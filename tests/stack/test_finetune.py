"""Fine-tuning at a provider as a layer: tuned once, measured like any other layer, paid for once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/support

from fairlead.cli.main import main
from fairlead.models.finetuning import job
from support.talker import CONSTITUTION
from support.tuner import MODEL, Provider


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOGETHER_API_KEY", "k")
    monkeypatch.setattr("fairlead.stack.managed.Pace", lambda: job.Pace(poll=0.0, poll_cap=0.0, backoff=0.0))
    Path("brand.yaml").write_text(CONSTITUTION)
    rows = [{"prompt": f"may I moor at {i}?", "chosen": "yes, and welcome", "rejected": "no"} for i in range(12)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    talk = [{"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["chosen"]}]}
            for r in rows]  # fmt: skip
    Path("talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talk))


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider(served=[MODEL]) as p:
        yield p


def argv(p: Provider, *more: str, budget: str | None = "20 USD", prices: bool = True) -> list[str]:
    Path("calls.json").write_text(json.dumps({MODEL: {"input": 0.1, "output": 0.1}}))
    return ["align", *(more or ("--recipe", "managed-finetune")), "--model", p.spec, "--constitution", "brand.yaml",
            "--preferences", "pairs.jsonl", "--cases", "2", "--measures", "facts,sums", "--out", "run",
            "--prices", "calls.json", *(["--budget", budget] if budget else [])]  # fmt: skip


def output(p: Provider, number: int = 1) -> str:
    told = p.job_told(f"ft-{number:04}")
    return str(told["model_output_name"])


def test_tuned_served_measured_and_paid_for_once(provider: Provider, capsys: pytest.CaptureFixture[str]) -> None:
    p = provider
    assert main(argv(p)) == 4
    captured = capsys.readouterr()
    assert "about $4.00" in captured.out and captured.out.index("remote:") < captured.out.index("about $4.00")
    assert "the model is tuned, and does not answer" in captured.err and "endpoint: PROJECT/NAME" in captured.err
    assert len(p.jobs) == 1 and not Path("run").exists()
    p.served.add(output(p))
    assert main(argv(p)) == 0
    assert "billed" in captured.err and "counted as free" in capsys.readouterr().out
    assert len(p.jobs) == 1 and sum(method == "PUT" for method, _ in p.seen) == 1
    results = json.loads(Path("run/results.json").read_bytes())
    assert results["layers"] == ["base", "finetune", "prompt", "guard"]
    layer = json.loads(Path("run/layers/finetune/layer.json").read_bytes())
    assert layer["job"] == "ft-0001" and layer["result"] == f"together/{output(p)}@{p.url}"
    asked = [
        json.loads(raw)["model"] for raw, (_, path) in zip(p.raw, p.seen, strict=True) if path == "/chat/completions"
    ]
    assert set(asked) == {MODEL, output(p)}  # the base, then the tuned model, were asked
    # all work again does not mean another job
    assert main([*argv(p), "--fresh"]) == 0
    assert len(p.jobs) == 1


def test_the_endpoint_that_serves_it_is_asked(provider: Provider) -> None:
    Path("stack.yaml").write_text(
        "layers:\n - finetune: {method: sft, data: talk.jsonl, endpoint: mine/tuned, epochs: 2}\n"
    )
    provider.served.add("mine/tuned")
    assert main(argv(provider, "stack.yaml")) == 0
    body = provider.jobs["ft-0001"].body
    assert body["n_epochs"] == 2 and body["training_method"]["method"] == "sft"
    layer = json.loads(Path("run/layers/finetune/layer.json").read_bytes())
    assert layer["asked"] == f"together/mine/tuned@{provider.url}"
    lock = Path("run/stack.lock.yaml").read_text()
    assert "finetune" in lock and "endpoint: mine/tuned" in lock


def test_a_second_tuning_goes_on_from_the_first(provider: Provider) -> None:
    Path("stack.yaml").write_text(
        "layers:\n - finetune: {name: one, method: sft, data: talk.jsonl, endpoint: a/one}\n"
        " - finetune: {name: two, method: dpo, endpoint: a/two}\n"
    )
    provider.served |= {"a/one", "a/two"}
    assert main(argv(provider, "stack.yaml")) == 0
    assert provider.jobs["ft-0002"].body["from_checkpoint"] == "ft-0001"
    assert json.loads(Path("run/results.json").read_bytes())["layers"] == ["base", "one", "two"]


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ("[prompt, finetune]", "is a prompt around a model; put it first"),
        ("[{finetune: {method: sft}}]", "name a file as `data:`"),
        ("[{finetune: {method: sft, data: talk.jsonl, beta: 0.1}}]", "beta belongs to method: dpo"),
        ("[{finetune: {provider: openai}}]", "stack.yaml:1: layer 'finetune': provider"),
        ("[{finetune: {epochs: 0}}]", "epochs"),
        ("[{finetune: {full: true, rank: 8}}]", "take one"),
    ],
)
def test_what_cannot_be_tuned_is_found_first(
    layers: str, says: str, provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("stack.yaml").write_text(f"layers: {layers}\n")
    assert main(argv(provider, "stack.yaml")) == 2
    assert says in capsys.readouterr().err and provider.seen == []


def test_other_models_and_missing_budgets(provider: Provider, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv(provider, budget=None)) == 2
    assert "buys a job: give a limit with --budget" in capsys.readouterr().err
    for model, says in (("apprentice", "has weights here: use dpo"), ("openai/gpt-4.1-mini", "closing")):
        given = argv(provider)
        given[given.index("--model") + 1] = model
        given[given.index("--measures") + 1] = "facts"
        assert main(given) == 2
        assert says in capsys.readouterr().err
    assert main(argv(provider, budget="3 USD")) == 5
    assert "$4.00 is over the budget of $3.00" in capsys.readouterr().err
    assert provider.jobs == {} and provider.files == {}
