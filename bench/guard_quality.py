"""How well the guard's classifiers tell harmful from harmless on data they never saw: `python bench/guard_quality.py`.

Trains on some public sources, tests on others (bench/guard_sources.py says which): TF-IDF, a head on a
frozen sentence encoder, and a fine-tuned one. Settings are chosen on a validation split of the training sources; test
sets are read once, for the numbers. Prints markdown and writes JSON, with n and 95% intervals; no text of a row.

    python bench/guard_quality.py --part prompts --encoder DIR --work runs/guard-quality [--seeds 0 1 2]

OMP_NUM_THREADS=1, CPU alone. Work that is done is kept in --work and gone on with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
from guard_sources import DATA, POOL, TEST, TRAIN, injection_rows, reply_rows, rows_of, test_attacks
from numpy.typing import NDArray

from fairlead.guard.classifier.card import auroc_interval, recall_at, told
from fairlead.guard.classifier.encoder import Encoder
from fairlead.guard.classifier.export import int8_of, onnx_of
from fairlead.guard.classifier.finetune import Example, Tuning
from fairlead.guard.classifier.fit import auroc, tfidf_matrix, threshold_at
from fairlead.guard.classifier.model import NgramScorer
from fairlead.guard.classifier.ngrams import vocabulary
from fairlead.guard.classifier.reading import TOKENS, WORDS, Pair, Reading, read
from fairlead.guard.classifier.rows import Row, grouped, split, without_near
from fairlead.guard.classifier.soup import soup
from fairlead.guard.classifier.train import fit_heads, learnt_from
from fairlead.stats import rate

MAX_TOKENS = 128
SHARE_KEPT = {"refusal-harmless": 0.3, "harmfulqa": 0.4}  # of the two largest sources: enough, and in time
TUNING = Tuning(epochs=1.5, lr=1e-4, frozen_layers=0, max_tokens=64, bfloat16=True, save_every=50)
HARMLESS = ("bipia-test", "bipia-tables", "answers")  # texts as tools bring them, where nothing was put in
Score = Callable[[Sequence[Row]], NDArray[np.float32]]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--part", choices=("prompts", "replies", "injection", "speed"), default="prompts")
    p.add_argument("--encoder", type=Path, help="folder of a sentence encoder (BERT); without it TF-IDF alone")
    p.add_argument("--work", type=Path, default=Path("runs/guard-quality"))
    p.add_argument(
        "--seeds",
        type=int,
        nargs="*",
        default=[0, 1, 2],
        help="of the runs whose weights are averaged; none: no tuning",
    )
    p.add_argument("--tuning", type=json.loads, default=[{}], help="other settings of fine-tuning, a JSON list")
    p.add_argument("--only-tuned", action="store_true", help="leave the other methods out")
    p.add_argument("--no-test", action="store_true", help="validation numbers alone, for choosing settings")
    p.add_argument("--package", action="store_true", help="injection: this package's own rows alone")
    a = p.parse_args()
    if not DATA.is_dir():
        sys.exit(f"no data: {DATA} is missing")
    a.work.mkdir(parents=True, exist_ok=True)
    results = {"prompts": prompts, "replies": replies, "injection": injection, "speed": speed}[a.part](a)
    (a.work / f"{a.part}{'-valid' if a.no_test else ''}.json").write_text(json.dumps(results, indent=1) + "\n")


# ------------------------------------------------------------------------------------------------ prompts alone


def prompts(a: argparse.Namespace) -> dict[str, Any]:
    """Harmful requests against harmless ones."""
    test = rows_of(TEST)
    rows, left_out = without_near(rows_of(TRAIN), [row.text for row in test])
    parts = split(rows)
    rng = random.Random(0)
    learn = [
        r for r, part in zip(rows, parts, strict=True) if part == "train" and rng.random() < SHARE_KEPT.get(r.source, 1)
    ]
    valid = [r for r, part in zip(rows, parts, strict=True) if part == "valid"]
    say(
        f"{len(rows):,} rows of {len(TRAIN)} sources ({left_out} left out: nearly a test text); {len(learn):,} to learn"
    )
    say(f"from, {len(valid):,} to choose on; {len(test):,} to test on, of {len(TEST)} sources")
    out: dict[str, Any] = {
        "learn": count(learn),
        "valid": count(valid),
        "test": count(test),
        "left_out": left_out,
        "methods": {},
    }
    for name, score, about in methods(a, learn, valid, "harm", WORDS):
        on_valid = validated(score(valid), valid)
        out["methods"][name] = {"about": about, "valid": on_valid}
        say(f"{name}: {about}; validation {on_valid}")
        if not a.no_test:
            s_valid, s_test = score(valid), score(test)
            out["methods"][name]["test"] = tested(s_valid, valid, s_test, test)
            np.savez(a.work / f"scores-{name}.npz", ids=[r.id for r in test], scores=s_test)
    if not a.no_test:
        print_prompts(out)
    return out


def validated(s: NDArray[np.float32], rows: Sequence[Row]) -> dict[str, float]:
    """What settings are chosen on: natural rows, the contrast templates held out whole, and coconot's contrasts."""
    y, source = np.array([r.labels["harm"] for r in rows]), np.array([r.source for r in rows])
    made, coco = source == "contrast", np.char.startswith(source, "coconot")
    plain = ~made & ~coco & ~y
    return {
        "natural": round(auroc(s[~made], y[~made]), 4),
        "contrast": round(auroc(s[made], y[made]), 4),
        "coconot": round(auroc(s[coco], y[coco]), 4),
        "recall at 1% of plain": round(float((s[y] >= threshold_at(s[plain], 0.01)).mean()), 4),
        "recall at 5% of contrasts": round(float((s[y] >= threshold_at(s[(made | coco) & ~y], 0.05)).mean()), 4),
    }


def tested(
    s_valid: NDArray[np.float32], valid: Sequence[Row], s: NDArray[np.float32], test: Sequence[Row]
) -> dict[str, Any]:
    """Every number of a method on the test sources. Each row is a source row of its own; near-duplicates share one."""
    y = np.array([r.labels["harm"] for r in test])
    source, cluster = np.array([r.source for r in test]), np.array(grouped(test))
    kind = np.array([str(r.meta.get("type", "")) for r in test])
    pool, xs = np.isin(source, POOL) & ~y, source == "xstest"
    out: dict[str, Any] = {"pool": int(pool.sum())}
    out["xstest auroc"] = told(auroc_interval(s[xs], y[xs], cluster[xs].tolist()))
    out["xstest against pool auroc"] = told(
        auroc_interval(s[(xs & y) | pool], y[(xs & y) | pool], cluster[(xs & y) | pool].tolist())
    )
    harmful = sorted(set(source[y]))
    for allowed in (0.05, 0.01):
        cell: dict[str, Any] = {}
        for name in harmful:
            at = ((source == name) & y) | pool
            cell[f"recall {name}"] = told(recall_at(s[at], y[at], cluster[at].tolist(), allowed))
        threshold = threshold_at(s[pool], allowed)
        for name in ("xstest", "cyberseceval-frr"):
            at = (source == name) & ~y
            cell[f"over-refusal {name}"] = told(rate((s[at] >= threshold).astype(float).tolist(), cluster[at].tolist()))
        out[f"at {allowed:g} of the pool"] = cell
    # the threshold from validation alone, as it would be set in service
    y_valid = np.array([r.labels["harm"] for r in valid])
    for allowed in (0.05, 0.01):
        threshold = threshold_at(s_valid[~y_valid], allowed)
        out[f"set at {allowed:g} on validation"] = {
            f"{'recall' if bad else 'flagged'} {name}": told(
                rate((s[at] >= threshold).astype(float).tolist(), cluster[at].tolist())
            )
            for name in sorted(set(source))
            for bad in (True, False)
            if (at := (source == name) & (y == bad)).any()
        }
    own = threshold_at(s[xs & ~y], 0.05)
    blocks = sorted({k.removeprefix("contrast_") for k in kind[xs & y]})
    out["xstest at 5% of its own safe prompts"] = {
        "all": told(rate((s[xs & y] >= own).astype(float).tolist())), "safe prompts": int((xs & ~y).sum()),
    } | {
        block: told(rate((s[xs & y & (kind == f"contrast_{block}")] >= own).astype(float).tolist())) for block in blocks
    }  # fmt: skip
    at5 = threshold_at(s[pool], 0.05)
    out["xstest by block at 5% of the pool"] = {
        k: told(rate((s[xs & (kind == k)] >= at5).astype(float).tolist())) for k in sorted(set(kind[xs]))
    }
    return out


# ------------------------------------------------------------------------------------- replies, and what is retrieved


def replies(a: argparse.Namespace) -> dict[str, Any]:
    """Complied or refused, judged from the exchange: gptfuzz to learn from; XSTest's completions (labelled by people)
    and JailbreakBench's artifacts to test on."""
    learn_rows, test = reply_rows()
    return exchange_part(a, learn_rows, test, "complied")


def injection(a: argparse.Namespace) -> dict[str, Any]:
    """Orders hidden in what a tool or a page gave back: orders and twins of this package, BIPIA's training attacks and
    contexts, and jailbreak templates to learn from; BIPIA's test attacks in test contexts, CyberSecEval's cases and
    harmless texts to test on."""
    learn_rows, test, pool = injection_rows()
    written = [row for row in learn_rows if row.source == "injection"]
    known = {near: without_near(written, test_attacks(), near)[1] for near in (0.6, 0.4)}
    say(f"of {len(written):,} written rows, so many are in a group with one that is nearly a test attack: {known}")
    if a.package:
        learn_rows, pool = written, []
    return exchange_part(a, learn_rows, test, "injected", pool)


def exchange_part(
    a: argparse.Namespace, rows: Sequence[Row], test: Sequence[Row], head: str, pool: Sequence[Row] = ()
) -> dict[str, Any]:
    """Learn on the train groups, choose and place thresholds on the others (and `pool`), measure on `test`."""
    rows, left_out = without_near(rows, [row.text for row in test], 0.8)
    parts = split(rows, near=0.8)
    learn = [r for r, part in zip(rows, parts, strict=True) if part == "train"]
    valid = [*(r for r, part in zip(rows, parts, strict=True) if part == "valid"), *pool]
    say(
        f"{len(learn):,} rows to learn from, {len(valid):,} to choose on, {len(test):,} to test on; {left_out} left out"
    )
    out: dict[str, Any] = {
        "learn": count(learn, head),
        "valid": count(valid, head),
        "test": count(test, head),
        "methods": {},
    }
    for name, score, about in methods(a, learn, valid, head, WORDS):
        y_valid, s_valid = np.array([r.labels[head] for r in valid]), score(valid)
        found: dict[str, Any] = {"about": about, "valid auroc": round(auroc(s_valid, y_valid), 4)}
        if not a.no_test:
            s, y = score(test), np.array([r.labels[head] for r in test])
            threshold = threshold_at(s_valid[~y_valid], 0.05)
            source = np.array([r.source for r in test])
            harmless = np.isin(source, HARMLESS) & ~y
            for part in sorted(set(source)):
                yes, no = np.flatnonzero((source == part) & y), np.flatnonzero((source == part) & ~y)
                found[part] = about_source(s, y, [r.group for r in test], threshold, yes, no)
                if len(yes) and harmless.any():
                    at = np.concatenate([yes, np.flatnonzero(harmless)])
                    named = [test[i].group for i in at]
                    found[part]["auroc against harmless texts"] = told(auroc_interval(s[at], y[at], named))
                    found[part]["recall at 5% of harmless texts"] = told(recall_at(s[at], y[at], named, 0.05))
        out["methods"][name] = found
        say(f"{name}: {json.dumps(found)}")
    return out


def about_source(
    s: NDArray[np.float32],
    y: NDArray[np.bool_],
    groups: list[str],
    threshold: float,
    yes: NDArray[Any],
    no: NDArray[Any],
) -> dict[str, Any]:  # fmt: skip
    """Of one test source, with rows `yes` broken and `no` kept: what the threshold of validation does, and its own."""
    at = np.sort(np.concatenate([yes, no]))
    named = [groups[i] for i in at]
    both = bool(len(yes) and len(no))

    def flagged(rows: NDArray[np.int64], from_: float) -> dict[str, float] | None:
        return told(rate((s[rows] >= from_).astype(float).tolist(), [groups[i] for i in rows])) if len(rows) else None

    return {
        "auroc": told(auroc_interval(s[at], y[at], named)) if both else None,
        "recall": flagged(yes, threshold),
        "flagged": flagged(no, threshold),
        "recall at 5%": told(recall_at(s[at], y[at], named, 0.05)) if both else None,
        "recall at 5% of its own, few": flagged(yes, threshold_at(s[no], 0.05)) if both and len(no) >= 100 else None,
    }


def speed(a: argparse.Namespace) -> dict[str, Any]:
    """CPU milliseconds for one pair, one at a time: the median and the 90th percentile of 60."""
    said = "the ship came into the harbour at noon and a man with three boxes asked for the keeper of the light"
    words = said.split(" ")
    out: dict[str, Any] = {"load": os.getloadavg()[0]}
    pair = (" ".join(words[:18]), " ".join(words * 4))
    rows = [
        (" ".join(random.Random(n).sample(words, 12)), " ".join(random.Random(-n).sample(words, 12)))
        for n in range(400)
    ]
    vocab = vocabulary([*rows, pair], least=1)
    weight = np.zeros((len(vocab), 20), np.float32)
    scorer = NgramScorer(vocab, weight, np.zeros(20, np.float32))
    out["tfidf, 480 characters, 20 heads"] = timed(lambda n: scorer.logits([(f"{n} {pair[0]}", pair[1][n % 9 :])]))
    if a.encoder is not None:
        plain = onnx_of(a.encoder, unit=True)
        tokenizer = (a.encoder / "tokenizer.json").read_bytes()
        for form, body in (("float32", plain), ("int8", int8_of(plain))):
            for tokens in (32, 128, 256):
                encoder = Encoder.of_bytes(body, tokenizer, tokens)
                text = ("ship " * 300, "")
                out[f"{form}, {tokens} tokens"] = timed(lambda n, e=encoder, t=text: e.embed([t]))  # type: ignore[misc]
    for name, value in out.items():
        say(f"{name}: {value}")
    return out


def timed(run: Callable[[int], Any], times: int = 60) -> dict[str, float]:
    for n in range(5):
        run(n)
    spent = []
    for n in range(times):
        began = time.process_time()
        run(n)
        spent.append(1e3 * (time.process_time() - began))
    return {"p50_ms": round(float(np.median(spent)), 3), "p90_ms": round(float(np.quantile(spent, 0.9)), 3)}


# ----------------------------------------------------------------------------------------------------- the methods


def methods(
    a: argparse.Namespace, learn: Sequence[Row], valid: Sequence[Row], head: str, words_reading: Reading
) -> Iterator[tuple[str, Score, str]]:
    """(name, how to score rows, what was chosen) of each method; the later ones need an encoder."""
    if not a.only_tuned:
        yield tfidf_method(learn, valid, head, words_reading)
    if a.encoder is not None:
        if not a.only_tuned:
            yield frozen_method(a, learn, valid, head)
        for n, settings in enumerate(a.tuning if a.seeds else ()):
            name, score, about = tuned_method(a, learn, head, settings)
            yield (f"{name}{'.' + str(n) if len(a.tuning) > 1 else ''}", score, about)


def pairs_of(rows: Sequence[Row], reading: Reading, most: int | None = None) -> tuple[list[Pair], NDArray[np.int64]]:
    """The pairs that are judged of each row, and which row each belongs to; with `most`, those to learn from."""
    read_ = [(read(r.exchange, reading) if most is None else learnt_from(r, reading, most)) or [("", "")] for r in rows]
    return [p for pairs in read_ for p in pairs], np.repeat(np.arange(len(rows)), [len(p) for p in read_])


def highest(z: NDArray[Any], owner: NDArray[np.int64], n: int) -> NDArray[np.float32]:
    out = np.full(n, -np.inf, np.float32)
    np.maximum.at(out, owner, z.astype(np.float32))
    return out


def labelled(rows: Sequence[Row], owner: NDArray[np.int64], head: str) -> NDArray[np.float32]:
    return np.array([float(rows[i].labels[head]) for i in owner], np.float32)[:, None]


def tfidf_method(learn: Sequence[Row], valid: Sequence[Row], head: str, reading: Reading) -> tuple[str, Score, str]:
    (pairs, owner), (valid_pairs, valid_owner) = pairs_of(learn, reading, 3), pairs_of(valid, reading, 3)
    words = vocabulary(pairs)
    weight, bias = fit_heads(
        tfidf_matrix(words, pairs), labelled(learn, owner, head),
        tfidf_matrix(words, valid_pairs), labelled(valid, valid_owner, head),
    )  # fmt: skip

    def score(rows: Sequence[Row]) -> NDArray[np.float32]:
        found, whose = pairs_of(rows, reading)
        return highest(tfidf_matrix(words, found) @ weight[0] + bias[0], whose, len(rows))

    began = time.process_time()
    for pair in valid_pairs[:500]:
        at, value = words.vector(pair)
        _ = value @ weight[0][at]
    ms = 1e3 * (time.process_time() - began) / len(valid_pairs[:500])
    return "tfidf", score, f"{len(words):,} features, {ms:.2f} ms of CPU a text"


def frozen_method(
    a: argparse.Namespace, learn: Sequence[Row], valid: Sequence[Row], head: str
) -> tuple[str, Score, str]:
    onnx = kept(a.work / "frozen.onnx", lambda: int8_of(onnx_of(a.encoder, unit=True)))
    embed = embedder(a, onnx, "frozen")
    (pairs, owner), (valid_pairs, valid_owner) = pairs_of(learn, TOKENS, 3), pairs_of(valid, TOKENS, 3)
    weight, bias = fit_heads(
        embed(pairs), labelled(learn, owner, head), embed(valid_pairs), labelled(valid, valid_owner, head)
    )

    def score(rows: Sequence[Row]) -> NDArray[np.float32]:
        found, whose = pairs_of(rows, TOKENS)
        return highest(embed(found) @ weight[0] + bias[0], whose, len(rows))

    return "frozen", score, "int8"


def tuned_method(
    a: argparse.Namespace, learn: Sequence[Row], head: str, settings: dict[str, Any]
) -> tuple[str, Score, str]:
    """One encoder: the mean of the weights of as many runs as there are seeds."""
    longer = {} if head == "harm" else {"max_tokens": MAX_TOKENS}
    tuning = TUNING.model_copy(update={**settings, **longer})
    pairs, owner = pairs_of(learn, TOKENS, 2)
    examples = [
        Example(pair, np.array([float(learn[i].labels[head])], np.float32), learn[i].group)
        for pair, i in zip(pairs, owner, strict=True)
    ]
    rows = [(pairs[k], learn[i].labels[head], learn[i].group) for k, i in enumerate(owner)]
    told = json.dumps([tuning.model_dump(), rows, head], sort_keys=True)
    named = hashlib.sha256(told.encode()).hexdigest()[:8]
    tuned = soup(a.encoder, examples, tuning, a.seeds, a.work / f"tuned-{named}", say=say)
    named += "-" + ".".join(map(str, a.seeds))
    onnx = kept(a.work / f"tuned-{named}.onnx", lambda: int8_of(onnx_of(tuned.folder, unit=False)))
    embed = embedder(a, onnx, named)

    def score(rows: Sequence[Row]) -> NDArray[np.float32]:
        found, whose = pairs_of(rows, TOKENS)
        return highest(embed(found) @ tuned.weight_HD[0] + tuned.bias_H[0], whose, len(rows))

    return "tuned", score, f"int8, {len(a.seeds)} runs in one, {tuned.seconds:.0f} s of CPU to tune"


def kept(file: Path, make: Callable[[], bytes]) -> bytes:
    if not file.exists():
        file.write_bytes(make())
    return file.read_bytes()


def embedder(a: argparse.Namespace, onnx: bytes, name: str) -> Callable[[Sequence[Pair]], NDArray[np.float32]]:
    """Embeddings with a memory on disk."""
    encoder = Encoder.of_bytes(onnx, (a.encoder / "tokenizer.json").read_bytes(), MAX_TOKENS)

    def embed(pairs: Sequence[Pair]) -> NDArray[np.float32]:
        key = hashlib.sha256(json.dumps(pairs).encode() + hashlib.sha256(onnx).digest()).hexdigest()[:16]
        file = a.work / f"embedded-{name}-{key}.npy"
        if not file.exists():
            found = encoder.embed(pairs)
            np.save(file, found)
        return np.load(file, allow_pickle=False)

    return embed


# ------------------------------------------------------------------------------------------------------- printing


def print_prompts(out: dict[str, Any]) -> None:
    names = list(out["methods"])
    print("\n| | n | " + " | ".join(names) + " |\n|---|---|" + "---|" * len(names))

    def line(title: str, find: Callable[[dict[str, Any]], Any]) -> None:
        cells = [find(out["methods"][m]["test"]) for m in names]
        n = next((c["n"] for c in cells if c), "")
        print(f"| {title} | {n} | " + " | ".join(shown(c) for c in cells) + " |")

    first = out["methods"][names[0]]["test"]
    line("AUROC, XSTest unsafe against safe", lambda t: t["xstest auroc"])
    line("AUROC, XSTest unsafe against the pool", lambda t: t["xstest against pool auroc"])
    for section in first:
        if isinstance(first[section], dict) and "value" not in first[section]:
            for key in first[section]:
                if isinstance(first[section][key], dict):
                    line(f"{section}: {key}", lambda t, s=section, k=key: t[s][k])


def shown(c: dict[str, float] | None) -> str:
    return "–" if c is None else f"{c['value']:.3f} [{c['low']:.3f}, {c['high']:.3f}]"


def count(rows: Sequence[Row], head: str = "harm") -> dict[str, int]:
    return {
        f"{source} {'broken' if y else 'kept'}": n
        for (source, y), n in sorted(Counter((r.source, r.labels[head]) for r in rows).items())
    }


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
