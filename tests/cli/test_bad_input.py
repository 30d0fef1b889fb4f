"""Bad input: each a clear message, its exit code, and nothing half-written left behind."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fairlead.cli.main import main
from fairlead.models.serve import Server
from support import tiny
from support.fakes import Echo
from support.talker import CONSTITUTION, preferences, talker


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return talker(tmp_path_factory.mktemp("talker") / "model")


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """(exit code, last words on standard error) of a command that fails."""
    code = main(list(argv))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.err.strip()


def write(name: str, text: str | bytes) -> str:
    path = Path(name)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


@pytest.fixture(autouse=True)
def nothing_left(elsewhere: Path) -> object:
    """After a refusal there is no run folder, no temporary file, and no cache but an empty one."""
    yield
    left = [p for p in elsewhere.rglob("*") if p.name.startswith((".tmp", ".new", ".old")) or p.name == "results.json"]
    assert left == []


# ------------------------------------------------------------------------------------------ stacks, constitutions


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such stack"),
        ("", "is empty"),
        ("# nothing\n", "holds nothing but comments"),
        ("- a\n", "this holds a list"),
        ("model: apprentice\nlayers:\n  - sft: {data: {revise: {roundz: 2}}}\n", "stack.yaml:3: layer 'sft': data: revise: unknown key 'roundz'. Did you mean 'rounds'?"),
        ("layers:\n\t- sft\n", "stack.yaml:2: a tab"),
        ("model: apprentice\nlayers: []\n", "has no layers"),
        ("model: [a]\nlayers: [guard]\n", "stack.yaml:1: model: must be text"),
        ("model: apprentice\nmodel: b\nlayers: [guard]\n", "given twice"),
    ],
)  # fmt: skip
def test_a_wrong_stack(text: str | None, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        write("stack.yaml", text)
    code, error = told(capsys, "align", "stack.yaml")
    assert code == 2 and says in error


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such constitution"),
        ("", "is empty"),
        (CONSTITUTION.replace("severity: 5", "severty: 5"), "brand.yaml:7: principle 'no-harm': unknown key 'severty'. Did you mean 'severity'?"),
        (CONSTITUTION.replace("id: honest", "id: no-harm"), "brand.yaml:12: principle 'no-harm' is given twice, first on line 5"),
        ("name: x\n", "has no principles"),
    ],
)  # fmt: skip
def test_a_wrong_constitution(text: str | None, says: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        write("brand.yaml", text)
    code, error = told(capsys, "align", "--model", str(model), "--constitution", "brand.yaml")
    assert code == 2 and says in error


def test_a_recipe_that_does_not_exist(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = told(capsys, "align", "--model", str(model), "--recipe", "dop")
    assert code == 2 and "Did you mean 'dpo'" in error


def test_a_stack_under_torchrun(model: Path, capsys: pytest.CaptureFixture[str], elsewhere: Path) -> None:
    """One process of several, as torchrun starts it: refused before anything is asked, trained or written."""
    write("brand.yaml", CONSTITUTION)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
        "fairlead.cli.main", *align(str(model), "--out", "run"),
    ]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode != 0 and "torchrun --nproc-per-node N -m fairlead.cli.main train" in done.stderr
    assert sorted(p.name for p in elsewhere.iterdir()) == ["brand.yaml"]


@pytest.mark.parametrize("command", ["align", "measure"])
def test_one_of_several_processes(
    command: str, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    argv = align(str(model), "--out", "run") if command == "align" else ["measure", str(model), "--cases", "2"]
    code, error = told(capsys, *argv)
    assert code == 2 and "torchrun --nproc-per-node N -m fairlead.cli.main train" in error and "WORLD_SIZE" in error
    assert not (elsewhere / "run").exists() and not (elsewhere / "runs").exists()


# ------------------------------------------------------------------------------------------------- model folders


def align(model: str, *more: str) -> list[str]:
    write("brand.yaml", CONSTITUTION)
    return ["align", "--model", model, "--constitution", "brand.yaml", "--measures", "sums", "--cases", "2", *more]


def test_a_model_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    code, error = told(capsys, *align("./nowhere"))
    assert code == 4 and "./nowhere: no such model folder" in error


def test_a_folder_that_holds_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    code, error = told(capsys, *align("./empty"))
    assert code == 2 and "config.json" in error


def test_a_truncated_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy(model, "cut")
    weights = Path("cut/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    code, error = told(capsys, *align("./cut"))
    assert code == 2 and "model.safetensors" in error and "cut off" in error


def test_a_model_that_is_not_causal(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy(model, "bert")
    config = json.loads(Path("bert/config.json").read_text())
    config |= {"architectures": ["BertForMaskedLM"], "model_type": "bert"}
    write("bert/config.json", json.dumps(config))
    code, error = told(capsys, *align("./bert"))
    assert code == 2 and "not a causal language model" in error


def test_a_tokenizer_without_eos(capsys: pytest.CaptureFixture[str]) -> None:
    tiny.folder(Path("mute"), eos=None)
    code, error = told(capsys, *align("./mute"))
    assert code == 2 and "no EOS token" in error


def test_a_tokenizer_without_a_chat_template_gets_the_plain_one_and_it_is_said(model: Path, elsewhere: Path) -> None:
    copy(model, "plain")
    Path("plain/chat_template.jinja").unlink()
    argv = align("./plain", "--recipe", "managed", "--out", "run")
    done = subprocess.run(command(*argv), cwd=elsewhere, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("plain: no chat template; using the plain one ('User: …'") == 1
    asked = [json.loads(line) for line in Path("run/exchanges/base.jsonl").read_text().splitlines()]
    assert asked
    Path("run/results.json").unlink()


def test_a_model_that_the_server_does_not_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    with Server(Echo()) as server:
        for name in (f"openai/ecco@{server.url}/v1", f"anthropic/ecco@{server.url}"):
            code, error = told(capsys, *align(name, "--budget", "2M tokens", "--out", "run"))
            assert code == 4 and "does not know model 'ecco'" in error and "404" in error
            code, error = told(capsys, "measure", name, "--measures", "sums", "--cases", "2", "--budget", "2M tokens")
            assert code == 4 and "does not know model 'ecco'" in error
    assert not Path("run").exists()


def copy(model: Path, name: str) -> None:
    Path(name).mkdir()
    for file in model.iterdir():
        if file.is_file():
            (Path(name) / file.name).write_bytes(file.read_bytes())


# ------------------------------------------------------------------------------------------------------ data files

PAIR = {"prompt": "a", "chosen": "yes", "rejected": "no"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (None, "pairs.jsonl"),
        (b"", "pairs.jsonl"),
        (json.dumps(PAIR | {"prompt": "caf\u00e9"}, ensure_ascii=False).encode("latin-1"), "UTF-8"),
        (json.dumps(PAIR).encode("utf-16"), "UTF-16"),
        ((json.dumps(PAIR) + "\n{\n").encode(), "pairs.jsonl:2"),
        ((json.dumps(PAIR) + "\n" + json.dumps({"prompt": "a", "chosen": "b"}) + "\n").encode(), "pairs.jsonl:2"),
        (b"PK\x03\x04rest", "zip archive"),
        (gzip.compress(json.dumps(PAIR).encode(), mtime=0)[:-4], "pairs.jsonl"),
    ],
)
def test_wrong_preference_data(body: bytes | None, says: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if body is not None:
        write("pairs.jsonl", body)
    code, error = told(capsys, *align(str(model), "--preferences", "pairs.jsonl"))
    assert code == 2 and says in error


def test_bad_rows_are_skipped_only_when_asked_and_counted(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preferences(Path("pairs.jsonl"), n=30)
    with Path("pairs.jsonl").open("a") as file:
        file.write("{\n")
    code, error = told(capsys, *align(str(model), "--preferences", "pairs.jsonl"))
    assert code == 2 and "pairs.jsonl:31" in error and "--skip-bad-rows" in error
    code = main(align(str(model), "--preferences", "pairs.jsonl", "--skip-bad-rows", "--out", "run"))
    assert code == 0 and "1 bad rows skipped" in capsys.readouterr().out
    Path("run/results.json").unlink()


@pytest.mark.parametrize(
    ("body", "says"), [(None, "prompts.txt"), (b"", "prompts.txt"), ("caf\u00e9".encode("latin-1"), "UTF-8")]
)
def test_wrong_prompts(body: bytes | None, says: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if body is not None:
        write("prompts.txt", body)
    code, error = told(capsys, *align(str(model), "--prompts", "prompts.txt"))
    assert code == 2 and says in error


def test_a_prompt_longer_than_the_context_is_refused_by_its_row(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("prompts.txt", "is the boat blue ?\n" + "poison " * 1200 + "\nthe rope is red\n")
    code, error = told(capsys, *align(str(model), "--prompts", "prompts.txt"))
    assert code == 2 and "prompts.txt:2" in error and "tokens" in error


def sft_stack(model: Path, **settings: object) -> str:
    """A stack that learns talk.jsonl: six short conversations, and one that is longer than the context."""
    talks = [[f"is the boat blue ? {i}", "yes"] for i in range(6)] + [["poison " * 1200, "no"]]
    rows = [
        {"messages": [{"role": r, "content": c} for r, c in zip(("user", "assistant"), t, strict=True)]} for t in talks
    ]
    write("talk.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write("brand.yaml", CONSTITUTION)
    layer = {"data": {"file": "talk.jsonl"}, "rows_per_step": 4, **settings}
    stack = {"model": str(model), "constitution": "brand.yaml", "layers": [{"sft": layer}]}
    return write("stack.yaml", json.dumps({**stack, "measure": {"cases": 2, "only": ["sums"]}}))


def test_rows_that_are_too_long_are_refused_or_cut_on_request_and_counted(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = told(capsys, "align", sft_stack(model, steps=2), "--out", "run")
    assert code == 2 and "talk.jsonl:7 (" in error and "do not fit the context" in error
    for what, counted, said in (("cut", [0, 1], "1 rows cut"), ("skip", [1, 0], "1 rows too long, left out")):
        assert main(["align", sft_stack(model, steps=2, too_long=what), "--out", "run"]) == 0
        assert said in capsys.readouterr().out
        facts = json.loads(Path("run/layers/sft/train.json").read_bytes())
        assert [facts["skipped_too_long"], facts["cut"]] == counted
        Path("run/results.json").unlink()
        shutil.rmtree("run")


def test_preference_pairs_longer_than_the_context_are_refused_by_their_row(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preferences(Path("pairs.jsonl"), n=40)
    rows = Path("pairs.jsonl").read_text().splitlines()
    rows[20:20] = [json.dumps(PAIR | {"prompt": f"{i} " + "poison " * 1200}) for i in range(8)]
    Path("pairs.jsonl").write_text("\n".join(rows) + "\n")
    code, error = told(capsys, *align(str(model), "--preferences", "pairs.jsonl"))
    assert code == 2 and "pairs.jsonl:2" in error and "do not fit the context" in error


def test_gold_labels_need_a_world_and_a_word(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = told(capsys, *align(str(model), "--recipe", "gold", "--oracle"))
    assert code == 2 and "only for the apprentice" in error


@pytest.mark.parametrize(
    ("measures", "says"),
    [("sums,sums", "--measures: measure 'sums' is named twice"), ("", "--measures: an empty list")],
)
def test_measures_named_twice_or_not_at_all(measures: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = told(capsys, "measure", "apprentice", "--measures", measures)
    assert code == 2 and says in error


def test_unknown_measures_are_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = told(capsys, "measure", str(model), "--measures", "sum")
    assert code == 2 and "unknown measure 'sum'" in error


# ------------------------------------------------------------------------------------------- the machine's own limits


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "fairlead.cli.main", *argv]


ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def test_a_full_disk(model: Path, elsewhere: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))

    done = subprocess.run(
        command(*align(str(model), "--recipe", "managed", "--out", "run")),
        cwd=elsewhere, env={**ENV, "PYTHONDONTWRITEBYTECODE": "1"}, preexec_fn=small_files,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "disk is full" in done.stderr and "Traceback" not in done.stderr
    assert not Path("run").exists()


@pytest.mark.parametrize("steps", [2, 60], ids=["at the weights", "at a state in the middle"])
def test_a_disk_that_fills_up_during_training(steps: int, model: Path, elsewhere: Path) -> None:
    """It takes the data and the measurements of the base, and not a file as large as the weights (166 kB)."""
    argv = ["align", sft_stack(model, steps=steps, too_long="skip"), "--out", "run"]
    done = subprocess.run(
        command(*argv), cwd=elsewhere, env={**ENV, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "disk is full" in done.stderr and "Traceback" not in done.stderr
    assert not Path("run").exists()
    kept = {
        kind.name: [p for p in kind.iterdir() if p.is_dir()] for kind in Path("runs/.cache").iterdir() if kind.is_dir()
    }
    assert kept["measured"] and not kept.get("weights")
    assert not [p for p in Path("runs").rglob("*") if p.name.startswith(".tmp") or p.suffix == ".tmp"]


def test_ctrl_c(model: Path, elsewhere: Path) -> None:
    argv = align(str(model), "--out", "run")
    process = subprocess.Popen(
        command(*argv), cwd=elsewhere, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not list(elsewhere.glob("runs/.cache/measured/*")):  # the base is measured: training is under way
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 130, (out, error)
    assert "interrupted" in error and "Traceback" not in error
    assert not Path("run").exists()


def test_torch_is_not_needed_to_be_told_that_it_is_missing(model: Path, elsewhere: Path) -> None:
    argv = align(str(model), "--recipe", "constitutional")
    code = f"import sys; import support.no_torch\nfrom fairlead.cli.main import main; sys.exit(main({argv!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=elsewhere, env=ENV, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "pip install 'fairlead[train]'" in done.stderr and "--recipe managed" in done.stderr
