"""A real vLLM: the same model there and here, and a managed run against it from a Python without torch."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from fairlead.apprentice import behaviour, cases
from fairlead.models import Sampling, open_model
from support.bare import bare_python
from support.bare import environment as bare_environment
from support.talker import CONSTITUTION

pytest.importorskip("torch")
pytestmark = [pytest.mark.full, pytest.mark.vllm]


def test_greedy_replies_and_their_log_probs_are_those_of_the_weights(url: str) -> None:
    prompts = [case.messages for case in cases.cases("facts", "audit", 20, 0)]
    sampling = Sampling(max_tokens=32, temperature=0)
    here = [reply[0] for reply in open_model("apprentice").generate(prompts, sampling)]
    there = [reply[0] for reply in open_model(f"vllm/apprentice@{url}").generate(prompts, sampling)]
    assert [r.text for r in there] == [r.text for r in here]
    for ours, theirs in zip(here, there, strict=True):
        assert theirs.tokens == ours.tokens
        assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-3)


def test_log_probs_of_given_replies_agree(url: str) -> None:
    asked = [(case.ask("judge"),) for case in behaviour.judged_cases(12, 0, unseen=False)]
    options = [["yes", "no"]] * len(asked)
    here = open_model("apprentice").logprobs(asked, options)
    there = open_model(f"vllm/apprentice@{url}").logprobs(asked, options)
    for ours, theirs in zip(here, there, strict=True):
        assert theirs == pytest.approx(ours, abs=1e-3)


def test_a_managed_run_without_torch(url: str, tmp_path: Path) -> None:
    python = bare_python(tmp_path / "bare")
    (tmp_path / "brand.yaml").write_text(CONSTITUTION)
    done = subprocess.run(
        [python, "-m", "fairlead.cli.main", "align", "--model", f"openai/apprentice@{url}",
         "--constitution", "brand.yaml", "--cases", "8", "--budget", "2M tokens", "--out", "run"],
        cwd=tmp_path, env=bare_environment(OPENAI_API_KEY="none"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("remote:") < done.stdout.index("measured")
    results = json.loads((tmp_path / "run" / "results.json").read_bytes())
    assert results["layers"] == ["base", "prompt", "guard"]
    silent = {row["measure"] for row in results["measures"] if row["n"] <= row["missing"]}
    # Who gives no right answer to general questions cannot be talked out of one, and of a model that is its own reader
    # some answers are neither yes nor no: missing values, not zeros.
    assert silent <= {"are_you_sure", "voice"} and len(results["measures"]) > 20
    assert (tmp_path / "run" / "report.html").is_file()
