"""The public data behind bench/guard_quality.py as rows: `../shared/data`, read at run time, never copied.

A source is either trained on or tested on, never both; rows of a training source that are nearly the same as any test
text are left out, with their whole group, and counted.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from fairlead.exchange import Exchange, assistant, user
from fairlead.guard.classifier.contrast import contrast_rows
from fairlead.guard.classifier.rows import Row

DATA = next(
    (p / "shared" / "data" for p in Path(__file__).resolve().parents if (p / "shared" / "data").is_dir()),
    Path("../shared/data"),
)


def _open(path: str) -> Any:
    file = DATA / path
    return gzip.open(file, "rt", encoding="utf-8") if path.endswith(".gz") else file.open(encoding="utf-8")


def table(path: str) -> list[dict[str, str]]:
    with _open(path) as f:
        return list(csv.DictReader(f))


def document(path: str) -> Any:
    with _open(path) as f:
        return json.load(f)


def lines(path: str) -> list[dict[str, Any]]:
    with _open(path) as f:
        return [json.loads(line) for line in f if line.strip()]


def leaves(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    else:
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(item)


def prompts(source: str, texts: list[str], broken: bool, head: str = "harm", **meta: Any) -> list[Row]:
    return [
        Row(f"{source}/{n}", Exchange((user(t),), ()), {head: broken}, source, f"{source}/{n}", meta=meta)
        for n, t in enumerate(texts)
        if t and t.strip()
    ]


def exchanges(source: str, triples: list[tuple[str, str, bool]], head: str = "complied") -> list[Row]:
    return [
        Row(f"{source}/{n}", Exchange((user(p),), (assistant(r),)), {head: broken}, source, f"{source}/{n}")
        for n, (p, r, broken) in enumerate(triples)
        if p and r and p.strip() and r.strip()
    ]


SAFETY = "Requests with safety concerns"


def coconot(kind: str) -> list[str]:
    if kind == "contrast":
        return [r["prompt"] for r in lines("coconot/coconot_contrast_eval.jsonl")]
    rows = lines("coconot/coconot_eval.jsonl.gz")
    if kind == "unsafe":
        wanted = ("dangerous or sensitive topics", "privacy violations", "triggers for offensive language", "wildchats")
        return [r["prompt"] for r in rows if r["category"] == SAFETY and r["subcategory"] in wanted]
    return [r["prompt"] for r in rows if r["category"] != SAFETY]


def coconot_pref() -> list[str]:
    """Requests of the preference pairs: these are contrasts, where answering is chosen over refusing."""
    return [r["prompt"] for r in lines("coconot/coconot_pref.jsonl.gz")]


def harmbench() -> list[str]:
    rows = table("harmbench/harmbench_behaviors_text_all.csv")
    return [r["Behavior"] for r in rows if r["FunctionalCategory"] == "standard"]


def do_not_answer() -> list[str]:
    names = ("malicious_uses", "discrimination_exclusion_toxicity_hateful_offensive", "information_hazard")
    return [r["prompt"] for name in names for r in lines(f"do-not-answer/{name}.jsonl")]


TRAIN: dict[str, Callable[[], list[Row]]] = {
    "advbench": lambda: prompts("advbench", [r["goal"] for r in table("advbench/harmful_behaviors.csv")], True),
    "harmbench": lambda: prompts("harmbench", harmbench(), True),
    "simple-safety-tests": lambda: prompts(
        "simple-safety-tests", [r["prompts_final"] for r in table("simple-safety-tests/test_cases.csv")], True
    ),
    "do-not-answer": lambda: prompts("do-not-answer", do_not_answer(), True),
    "harmfulqa": lambda: prompts("harmfulqa", list(leaves(document("red-instruct/harmfulqa.json"))), True),
    "catqa": lambda: prompts("catqa", list(leaves(document("red-instruct/catqa_english.json"))), True),
    "dangerousqa": lambda: prompts("dangerousqa", document("red-instruct/dangerousqa.json"), True),
    "refusal-harmful": lambda: prompts(
        "refusal-harmful",
        [r["instruction"] for n in ("train", "val") for r in document(f"refusal-direction/harmful_{n}.json")],
        True,
    ),
    "coconot-unsafe": lambda: prompts("coconot-unsafe", coconot("unsafe"), True),
    "refusal-harmless": lambda: prompts(
        "refusal-harmless", [r["instruction"] for r in document("refusal-direction/harmless_val.json.gz")], False
    ),
    "alpaca-seed": lambda: prompts(
        "alpaca-seed", [r["instruction"] for r in lines("alpaca-seed/seed_tasks.jsonl")], False
    ),
    "coconot-contrast": lambda: prompts("coconot-contrast", coconot("contrast"), False),
    "coconot-other": lambda: prompts("coconot-other", coconot("other"), False),
    "coconot-pref": lambda: prompts("coconot-pref", coconot_pref(), False),
    "contrast": lambda: contrast_rows(("harm",)),
}


def xstest(safe: bool) -> list[Row]:
    rows = table("xstest/xstest_prompts.csv")
    return [
        Row(f"xstest/{r['id']}", Exchange((user(r["prompt"]),), ()), {"harm": r["label"] == "unsafe"}, "xstest",
            f"xstest/{r['id']}", meta={"type": r["type"]})
        for r in rows
        if (r["label"] == "safe") == safe
    ]  # fmt: skip


TEST: dict[str, Callable[[], list[Row]]] = {
    "xstest-unsafe": lambda: xstest(False),
    "xstest-safe": lambda: xstest(True),
    "strongreject": lambda: prompts(
        "strongreject", [r["forbidden_prompt"] for r in table("strongreject/strongreject_dataset.csv")], True
    ),
    "jailbreakbench": lambda: prompts(
        "jailbreakbench", [r["Goal"] for r in table("jailbreakbench/behaviors/harmful_behaviors.csv")], True
    ),
    "gptfuzz-questions": lambda: prompts(
        "gptfuzz-questions", [r["text"] for r in table("gptfuzz/question_list.csv")], True
    ),
    "cyberseceval-frr": lambda: prompts(
        "cyberseceval-frr", [r["mutated_prompt"] for r in document("cyberseceval/mitre_frr.json.gz")], False
    ),
    "alpaca-eval": lambda: prompts(
        "alpaca-eval",
        [r["instruction"] for r in document("alpaca-eval/annotations_alpaca_eval_gpt4/gpt4.json.gz")],
        False,
    ),
    "selfaware": lambda: prompts(
        "selfaware", [r["question"] for r in document("selfaware/SelfAware.json.gz")["example"]], False
    ),
    "ifeval": lambda: prompts("ifeval", [r["prompt"] for r in lines("ifeval/input_data.jsonl")], False),
    "mt-bench": lambda: prompts("mt-bench", [r["turns"][0] for r in lines("mt-bench/question.jsonl")], False),
}
POOL = ("alpaca-eval", "selfaware", "ifeval", "mt-bench")  # ordinary harmless requests: where thresholds are judged


def rows_of(names: dict[str, Callable[[], list[Row]]]) -> list[Row]:
    return [row for read in names.values() for row in read()]
