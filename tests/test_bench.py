"""The benches run and write what they promise; how fast anything is they say themselves."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.bare import bare_python, environment

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[1]


def _run(python: Path, script: str, *arguments: str) -> None:
    command = [str(python), str(ROOT / "bench" / script), *arguments]
    clean = environment(PYTHONPATH=str(ROOT / "src"), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean)
    assert done.returncode == 0, done.stderr


def test_the_gpu_bench_needs_torch_transformers_and_numpy_alone(tmp_path: Path) -> None:
    python = bare_python(tmp_path / "image", ["torch", "transformers", "numpy"])
    lacking = ("scipy", "peft", "ruamel", "orjson", "pyarrow", "openai")
    looked = f"import importlib.util as u; print([n for n in {lacking} if u.find_spec(n)])"
    found = subprocess.run([python, "-c", looked], capture_output=True, text=True, check=True, env=environment())
    assert found.stdout.strip() == "[]"
    _run(python, "gpu.py", "--smoke", "--out", str(tmp_path / "gpu.json"))
    told = json.loads((tmp_path / "gpu.json").read_text())
    rows = told["rows"]
    assert {"device", "torch", "transformers", "peak_tflops", "bandwidth_gbs"} <= told.keys()
    assert {(r["train"], r["way"]) for r in rows if "train" in r} == {
        (method, way) for method in ("dpo", "sft", "reward") for way in ("packed", "padded")
    }
    assert all(r["rows_per_second"] > 0 and r["tflops"] > 0 for r in rows if "train" in r)
    assert [(r["decode"], r["way"]) for r in rows if "decode" in r] == [
        (count, way) for count in (1, 4) for way in ("ours", "transformers, continuous")
    ]
    assert all(r["tokens_per_second"] > 0 for r in rows if r.get("way") == "ours")
    (step,) = [r for r in rows if "grpo" in r]
    assert step["grpo"] == "ours" and all(step[f"{part}_seconds"] > 0 for part in ("step", "draw", "update"))
    assert rows[0]["engine_gradient"] <= 2 * rows[0]["rows_gradient"]
    assert (tmp_path / "gpu.md").read_text().count("|") > 50


def test_what_the_gpu_bench_has_no_time_for_is_told(tmp_path: Path) -> None:
    _run(Path(sys.executable), "gpu.py", "--smoke", "--trl", "--minutes", "0", "--out", str(tmp_path / "late.json"))
    late = json.loads((tmp_path / "late.json").read_text())["rows"]
    assert [r["skipped"].rpartition(": ")[2] for r in late if "skipped" in r] == ["out of time"] * 15


def test_linear_cost_is_measured_at_every_size_and_number_of_replies(tmp_path: Path) -> None:
    _run(Path(sys.executable), "linear.py", "--quick", "--threads", "1", "--out", str(tmp_path / "linear"))
    rows = json.loads((tmp_path / "linear.json").read_text())
    points = [(r["plot"], r["x"], r["counted"]) for r in rows]
    assert [p for p in points if p[0] == "tokens per micro-batch"] == [
        ("tokens per micro-batch", tokens, "packed") for tokens in (512, 1024)
    ]
    assert {p[1:] for p in points if p[0] == "replies per prompt"} == {
        (replies, counted) for replies in (1, 2, 4, 8) for counted in ("packed", "as rows")
    }
    assert all(r["low"] <= r["tokens_per_second"] <= r["high"] for r in rows)


# ------------------------------------------------------------------------------------------------ scaling


def _module(name: str) -> Any:
    """A script of bench/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "bench" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scaling() -> Any:
    return _module("scaling")


def test_the_page_on_scaling_holds_what_the_script_reckons(scaling: Any) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert scaling.filled(page) == page, "python bench/scaling.py --write"
    assert set(re.findall(r"<!-- table: ([\w-]+) -->", page)) == set(scaling.TABLES), "every table is shown"


def test_the_parameters_are_those_the_models_publish(scaling: Any) -> None:
    published = (494_032_768, 1_235_814_400, 8_030_261_248, 32_763_876_352, 70_553_706_496)  # of their safetensors
    assert tuple(shape.parameters for shape in scaling.SHAPES.values()) == published
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = scaling.Shape("tiny", 3, 48, 80, 6, 2, 8, 101, tied=False)
    config = LlamaConfig(
        vocab_size=101, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("meta"):
        made = LlamaForCausalLM(config)
    assert shape.parameters == sum(p.numel() for p in made.parameters())
    linear = [m for name, m in made.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    assert shape.adapter(4) == sum(4 * (m.in_features + m.out_features) for m in linear)


def test_memory_is_the_bytes_per_parameter_that_the_docs_say(scaling: Any) -> None:
    """8B in bfloat16: 8 bytes for each parameter that trains, over the processes; 2 for each at rest, on each."""
    shape, count = scaling.SHAPES["8B"], 8_030_261_248
    need = scaling.need(shape, width=2, gpus=6, ppo=True)
    at_work = need.parts.pop("at work")
    assert sum(need.parts.values()) == pytest.approx(2 * 8 * count / 6 + 2 * 2 * count, abs=1)
    assert at_work == scaling.reckoned(shape, 2, 2304).activations + scaling.reckoned(shape, 2, 2304).logits
    assert scaling.need(shape, width=2, gpus=1000).total >= 4 * count, "two whole models for a moment"
    lora = scaling.need(shape, width=2, gpus=1, lora=True).parts
    assert lora["policy, gradients, moments"] == 8 * shape.adapter(16) and lora["reference"] == 2 * count
    decodes = scaling.need(scaling.SHAPES["0.5B"], width=2, gpus=1, decodes=4096).parts["at work"]
    assert decodes == 4096 * 2304 * 2 * 24 * 2 * 64 * 2, "keys and values, where they are more than the activations"


def test_the_simulation_gives_what_can_be_told_by_hand(scaling: Any) -> None:
    shape = scaling.SHAPES["8B"]
    given = scaling.Assumed(sigma=1e-9, median=100.0, slots=4, launch_s=1.0, steps=200)
    fast = dataclasses.replace(given, bandwidth=1e30, flops=1e30)
    # a second a token and nothing else: 10 replies of 100 tokens through 4 slots are 3 rounds
    assert scaling.replica_s(shape, 1, [100] * 10, fast) == pytest.approx(300)
    assert scaling.replica_s(shape, 1, [5, 1, 1, 1, 1, 1], fast) == pytest.approx(5), "slots are refilled"
    # one reply alone: its weights are read once a token, its keys and values grow from the prompt's
    kv, read = shape.kv_bytes(2), 3.35e12 * 0.6
    by_hand = sum((2 * shape.parameters + (256 + t + 0.5) * kv) / read + 1.0 for t in range(100))
    prefill = 2 * shape.parameters * 256 / 8 / (989e12 * 0.5)
    assert scaling.replica_s(shape, 1, [100], given) == pytest.approx(by_hand + prefill)
    # equal replies: every step takes the same, and what is asynchronous takes the longer of its sides
    split = scaling.simulate(shape, 8, 4, given)
    count = 8 * 8 * 8
    refresh = 2 * shape.parameters / 10e9 + 2.0
    draw = scaling.replica_s(shape, 1, [100] * (count // 4), given)
    train = 10 * shape.parameters * (count * 100 + count / 8 * 256) / (4 * 989e12 * 0.35)
    assert split.sync == pytest.approx(count / (draw + train + refresh))
    assert split.ahead == pytest.approx(count / max(draw + refresh, train), rel=0.02)
    assert split.ahead <= 2 * split.sync


def test_the_plot_is_drawn_offline(scaling: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    monkeypatch.setattr(scaling, "RUNS", (("8B", 8),))
    monkeypatch.setattr(scaling, "lengths", lambda rng, count, given: [20] * count)
    scaling.plot(tmp_path / "scaling")
    assert "synchronous" in (tmp_path / "scaling.svg").read_text()


def test_the_table_of_recipes_tells_every_number_with_its_spread(tmp_path: Path) -> None:
    recipes = _module("recipes")

    def one(recipe: str, seed: int, sums: float) -> dict[str, Any]:
        more = {"totals": sums / 2, "large sums": 0.4, "utility": 0.8, "believed": 0.9, "hacking": 0.1}
        return {
            "recipe": recipe, "seed": seed, "layers": ["base", "ppo"], "better": {"sums": "higher"},
            "values": {"base": {"sums": 0.5}, "ppo": {"sums": sums}}, "seconds": 100.0 + seed,
            "stages": [{"labels": {"simulated demonstrations": 5}}, {"labels": {"simulated demonstrations": 2}}],
            "warnings": ["ppo stopped early: KL burst"] * seed, "worse": ["sums"] * seed,
            "more": {"base": {"totals": 0.3, "large sums": 0.4, "utility": 0.6}, "product": more},
        }  # fmt: skip

    for seed in range(2):
        (tmp_path / f"safe-{seed}.json").write_text(json.dumps(one("safe", seed, 0.6 + 0.2 * seed)))
    args = recipes.argparse.Namespace(cases=3, smoke=False, threads=1)
    runs = {
        "safe": [recipes.made("safe", seed, tmp_path, args) for seed in range(2)],
        "online": [one("online", 0, 0.9)],
    }
    lines = recipes.table(runs).splitlines()
    told = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    interval = recipes.mean_interval([0.6, 0.8])
    assert told["sums ↑"] == ["0.50", f"0.70 [{interval.low:.2f}, {interval.high:.2f}]", "0.90"]
    assert told["totals ↑"][0] == "0.30" and told["hacking ↓"] == ["–", "0.10 [0.10, 0.10]", "0.10"]
    assert told["labels used"][1] == "7 simulated demonstrations" and told["seconds"][1] == "100"
    assert told["got worse (seeds)"][1:] == ["sums (1)", "none"] and told["stopped early"][1:] == ["1", "0"]
    assert told["seeds"][1:] == ["2", "1"]
