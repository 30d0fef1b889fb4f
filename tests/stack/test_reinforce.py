"""Reinforcement learning alone: what is said of it, and one folder out of several processes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402
from tests.stack import single_policy_jobs as jobs  # noqa: E402

from fairlead.errors import InputError  # noqa: E402
from fairlead.exchange import Exchange, user  # noqa: E402
from fairlead.methods.config_policy import ALGORITHMS  # noqa: E402
from fairlead.methods.loop import StepRecord  # noqa: E402
from fairlead.stack import reinforce, reinforce_told  # noqa: E402
from fairlead.stack.reinforce_told import line_of, means_of, nats  # noqa: E402
from fairlead.stack.voice import Quiet  # noqa: E402
from support import ranks, tiny  # noqa: E402

TOLD = {"reward": 0.25, "kl": 1.5, "length": 12.4, "ended": 0.5, "missing": 0.0, "replies": 1024.0}


def test_means_leave_out_what_is_no_number_and_errors_shrink_with_the_steps() -> None:
    told = [{"a": 1.0, "b": math.nan, "reward_error": 0.3}, {"a": 3.0, "b": 2.0, "c": 5.0, "reward_error": 0.4}]
    assert means_of(told) == {"a": 2.0, "b": 2.0, "c": 5.0, "reward_error": pytest.approx(0.25)}
    assert math.isnan(means_of([{"b": math.nan}])["b"]) and means_of([]) == {}


def test_a_step_in_words() -> None:
    assert line_of(TOLD, 3, 40) == "step 3 of 40: reward 0.25, KL 1.50 nats per reply, 12 tokens, 50% ended"
    assert [nats(v) for v in (-3e-7, 0.0, -1.234)] == ["0.00", "0.00", "-1.23"]
    more = TOLD | {"cost": 2.0, "multiplier": 0.5, "missing": 1000.0}
    del more["kl"]
    assert line_of(more, 3, 40) == (
        "step 3 of 40: reward 0.25, cost 2 (multiplier 0.5), 12 tokens, 50% ended, "
        "1,000 of 1,024 replies without a reward"
    )


def test_steps_are_said_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(reinforce_told.time, "monotonic", lambda: clock[0])
    voice = Quiet()
    config = ALGORITHMS["grpo"].settings({"steps": 10, "passes": 2})
    tell = reinforce_told.telling(voice, config)
    for step in range(20):  # two updates a step; every second record has nothing to tell
        clock[0] += 4.0
        tell(StepRecord(step, 20, 0.0, 0.0, 0.0, 1, 1, 1.0, {}, TOLD if step % 2 == 0 else {}))
    assert [line.split(":")[0] for line in voice.lines] == [f"step {i} of 10" for i in (1, 3, 5, 7, 9)]


def test_two_processes_leave_one_whole_folder(tmp_path: Path) -> None:
    tiny.folder(tmp_path / "base")
    rows = [{"prompt": f"what colour is the boat {i} ?"} for i in range(6)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {"steps": 2, "prompts_per_step": 4, "replies": 4, "max_tokens": 6, "lr": 1e-3, "kl_burst": 1e3}
    (one,) = ranks.run(jobs.stage, 1, tmp_path / "one", str(tmp_path), "grpo", settings)
    found = ranks.run(jobs.stage, 2, tmp_path / "two", str(tmp_path), "grpo", settings)
    assert found[0]["there"] == found[1]["there"] == one["there"] and "train.json" in one["there"]
    for told in found:
        assert told["replies"] == one["replies"] == 32 and told["missing"] == {"regex:[aeiou]": 0}
        assert told["reward"] == one["reward"]
    assert len(found[0]["said"]) == 1 and found[1]["said"] == [], "process 0 alone tells"
    ours, theirs = (load_file(tmp_path / f"grpo-{n}" / "model.safetensors") for n in (2, 1))
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in theirs) < 1e-4  # float32 under Adam
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"base", "tasks.jsonl", "one", "two", "grpo-1", "grpo-2"}, "and nothing else"


def test_prompts_without_tests_are_refused_or_said_before_any_model_is_opened() -> None:
    good, bad = ({"tests": "assert f(1) == 2"}, {"tests": "f(1)"})
    rows = [Exchange((user(f"write f {i}"),), (), meta) for i, meta in enumerate((good, bad, {}))]
    voice = Quiet()
    for judge in ("code", "code:share"):
        with pytest.raises(InputError, match=r"code.*: .* not one of 2 prompts brings any .* test 0 asserts nothing"):
            reinforce.judgeable([judge], rows[1:], voice)
    assert voice.lines == []
    reinforce.judgeable(["code:share"], rows[:1], voice)
    assert voice.lines == []
    reinforce.judgeable(["code:share"], rows, voice)
    (line,) = voice.lines
    assert line.startswith("2 of 3 prompts bring no tests that can judge code: there code:share will be missing")
