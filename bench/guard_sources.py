"""The public data behind bench/guard_quality.py as rows: `../shared/data`, read at run time, never copied.

A source is either trained on or tested on, never both; rows of a training source that are nearly the same as any test
text are left out, with their whole group, and counted.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from fairlead.exchange import Exchange, assistant, user
from fairlead.guard.classifier.contrast import contrast_rows
from fairlead.guard.classifier.injected import injection_rows as written_orders
from fairlead.guard.classifier.injected import retrieved
from fairlead.guard.classifier.rows import Row, without_near

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


def sums(most: int = 150) -> list[str]:
    return [r["question"] for r in lines("gsm8k/train.jsonl.gz")[:most]]


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
    "truthfulqa": lambda: prompts("truthfulqa", [r["Question"] for r in table("truthfulqa/TruthfulQA.csv")], False),
    "trustllm": lambda: prompts(
        "trustllm",
        [r["prompt"] for n in ("ood_detection", "golden_advfactuality") for r in document(f"trustllm/{n}.json.gz")],
        False,
    ),
    "gsm8k": lambda: prompts("gsm8k", sums(), False),
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


# ------------------------------------------------------------------------------------------------------- replies

GPTFUZZ_KEPT = 2_400  # of 6,160 labelled replies: many are alike


def reply_rows() -> tuple[list[Row], list[Row]]:
    """(to learn from, to test on): `complied` is what counts. Partial refusals of XSTest are left out."""
    questions = [r["text"] for r in table("gptfuzz/question_list.csv")]
    found = table("gptfuzz/responses_labeled_train.csv.gz")
    rng = random.Random(0)
    learn = []
    for n in sorted(rng.sample(range(len(found)), GPTFUZZ_KEPT)):
        r, q = found[n], int(found[n]["question"])
        if r["Response"].strip() and q < len(questions):
            item = Exchange((user(questions[q]),), (assistant(r["Response"]),))
            learn.append(Row(f"gptfuzz/{n}", item, {"complied": r["label"] == "1"}, "gptfuzz", f"gptfuzz/q{q}"))
    for n, r in enumerate(lines("coconot/coconot_pref.jsonl.gz")):
        for side, complied in (("chosen", True), ("rejected", False)):
            item = Exchange((user(r["prompt"]),), (assistant(r[side]),))
            if r[side].strip():
                learn.append(
                    Row(f"coconot-pref/{n}.{side}", item, {"complied": complied}, "coconot-pref", f"coconot-pref/{n}")
                )
    return learn, [*_xstest_completions(), *_jailbreak_artifacts()]


def _xstest_completions() -> list[Row]:
    out = []
    for model in ("llama2orig", "llama2new", "gpt4", "mistralinstruct", "mistralguard"):
        for r in table(f"xstest/model_completions/xstest_v2_completions_{model}.csv.gz"):
            if r["final_label"] in ("1_full_compliance", "2_full_refusal") and r["completion"].strip():
                item, complied = (
                    Exchange((user(r["prompt"]),), (assistant(r["completion"]),)),
                    r["final_label"][0] == "1",
                )
                group = f"xstest/{r['id']}"
                out.append(Row(f"xstest/{model}.{r['id']}", item, {"complied": complied}, "xstest-completions", group))
    return out


def _jailbreak_artifacts() -> list[Row]:
    out = []
    for path in sorted((DATA / "jailbreakbench" / "attack-artifacts").rglob("*.json.gz")):
        body = document(str(path.relative_to(DATA)))
        for n, j in enumerate(body.get("jailbreaks", ()) if isinstance(body, dict) else ()):
            if j.get("prompt") and (j.get("response") or "").strip() and isinstance(j.get("jailbroken"), bool):
                item = Exchange((user(j["goal"]),), (assistant(j["response"]),))
                name = f"{path.parts[-3]}.{path.name.split('.json')[0]}"
                out.append(
                    Row(
                        f"jailbreakbench/{name}.{n}",
                        item,
                        {"complied": j["jailbroken"]},
                        "jailbreakbench",
                        f"jbb/{j['index']}",
                    )
                )
    return out


# ----------------------------------------------------------------------------------------------------- injection


def injection_rows() -> tuple[list[Row], list[Row], list[Row]]:
    """(to learn from, to test on, harmless texts to place thresholds on beside the validation part): `injected` is what
    counts. The text that was retrieved is what is judged."""
    learn = [*written_orders(head="injected"), *_bipia("train"), *_jailbreaks()]
    test = [*_bipia("test"), *_cyberseceval(), *_guardrails_demo(), *_requests()]
    texts = _harmless_texts()
    return learn, [*test, *texts[1::2]], texts[::2]


def test_attacks() -> list[str]:
    """The orders of the test sets without what they stand in, to see that none was written down for learning."""
    return [*leaves(document("bipia/text_attack_test.json")), *(r.text for r in _cyberseceval())]


def _harmless_texts() -> list[Row]:
    """Tables that nothing was put into and that are none of those learnt from, and prose that a model wrote."""
    tables = [r["context"] for r in lines("bipia/table/train.jsonl.gz")]
    prose = [r["output_1"] for r in document("alpaca-eval/annotations_alpaca_eval_gpt4/gpt4.json.gz")]
    found = [("bipia-tables", n, t) for n, t in enumerate(dict.fromkeys(tables[150:]))]
    found += [("answers", n, t) for n, t in enumerate(prose) if t.strip()]
    rows = [_retrieved(id := f"{source}/{n}", t, False, source, id) for source, n, t in found]
    return without_near(rows, tables[:150])[0]


def _requests() -> list[Row]:
    """Harmless of a user; where a tool brings them they are orders all the same."""
    asked = [*TEST["cyberseceval-frr"](), *(row for name in POOL for row in TEST[name]())]
    return [_retrieved(r.id, r.text, False, "pool" if r.source in POOL else r.source, r.group) for r in asked]


def _bipia(part: str) -> list[Row]:
    attacks = list(leaves(document(f"bipia/text_attack_{part}.json")))
    contexts = [r["context"] for r in lines(f"bipia/email/{part}.jsonl")]
    contexts += [r["context"] for r in lines(f"bipia/table/{part}.jsonl.gz")][:150]
    rng, out = random.Random(part), []
    for n, context in enumerate(contexts):
        out.append(_retrieved(f"bipia-{part}/{n}.clean", context, False, f"bipia-{part}", f"bipia-{part}/{n}"))
        attack = rng.randrange(len(attacks))
        text = _inserted(context, attacks[attack], rng)
        id, source = f"bipia-{part}/{n}.a{attack}", f"bipia-{part}"
        out.append(_retrieved(id, text, True, source, f"{source}/{n}", attacks[attack]))
    return out


def _inserted(context: str, attack: str, rng: random.Random) -> str:
    where = rng.choice(("start", "middle", "end"))
    if where == "start":
        return f"{attack}\n{context}"
    if where == "end":
        return f"{context}\n{attack}"
    rows = context.split("\n")
    at = rng.randint(0, len(rows))
    return "\n".join([*rows[:at], attack, *rows[at:]])


def _retrieved(id: str, text: str, injected: bool, source: str, group: str, part: str = "") -> Row:
    return retrieved(id, text, injected, source, group, head="injected", part=part)


def _jailbreaks() -> list[Row]:
    """Templates of jailbreaks against ordinary requests of some length."""
    out = [
        _retrieved(f"gptfuzz-templates/{n}", r["text"], True, "gptfuzz-templates", f"gptfuzz-templates/{n}")
        for n, r in enumerate(table("gptfuzz/GPTFuzzer.csv"))
    ]
    plain = [r["instruction"] for r in document("refusal-direction/harmless_val.json.gz")][:300]
    return out + [
        _retrieved(f"refusal-harmless/{n}", text, False, "refusal-harmless", f"refusal-harmless/{n}")
        for n, text in enumerate(plain)
    ]


def _cyberseceval() -> list[Row]:
    """Indirect cases hold the order in what the user pasted; there is no clean form of them."""
    return [
        _retrieved(f"cyberseceval/{r['prompt_id']}", r["user_input"], True, f"cyberseceval-{r['injection_type']}",
                   f"cyberseceval/{r['prompt_id']}")
        for r in document("cyberseceval/prompt_injection.json")
    ]  # fmt: skip


def _guardrails_demo() -> list[Row]:
    return [
        _retrieved(
            id := f"guardrails-demo/{r['id']}", r["data"], r["expected_triggers"]["Jailbreak"], "guardrails-demo", id
        )
        for r in lines("openai-guardrails-demo/demo_data.jsonl")
    ]
