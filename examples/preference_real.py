"""Learn published preferences from nothing: pretrain a small Llama on the training split's own text, then run DPO.

    python examples/preference_real.py --preferences ../shared/data/alpaca-eval --out runs/alpaca --minutes 30

Splits the pairs by prompt, trains a BPE tokenizer and a Llama of about 2.6M parameters on the text of the training side
alone, runs DPO on its pairs, and reports held-out accuracy beside two baselines that read no content: longer-wins and
writer-only, on all pairs and on pairs of matched length. Accuracy on matched pairs must be clear of 0.5 to be called
learning. With --minutes it stops after that time, its state saved; the same command goes on.

Leaves OUT/base and OUT/dpo (Hugging Face folders that load with AutoModelForCausalLM) and OUT/accuracy.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fairlead.engine.layout import Tree
from fairlead.engine.logprobs import reply_logprobs
from fairlead.errors import FairleadError, InputError
from fairlead.exchange import Exchange
from fairlead.feedback.formats import PreferenceSet, read_preferences
from fairlead.feedback.split import split_by_group, take
from fairlead.methods.config import DPOConfig, Training
from fairlead.methods.evaluate import accuracy_table, longer_wins, model_margins, writer_only
from fairlead.methods.loop import Run, StepRecord, Updates, batches
from fairlead.methods.losses import sft_nll
from fairlead.methods.preference import train_dpo
from fairlead.methods.resume import resumable
from fairlead.methods.rows import Rows, exchange_rows, folder_key
from fairlead.models.local import LocalModel, open_local

SPECIALS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


FREE = ("out", "minutes")  # settings that may differ when the work is taken up again


class TimeUp(Exception):
    """The minutes given are over; what was done is saved."""


def main() -> int:
    args = arguments()
    watch = stopwatch(args.minutes)
    try:
        if args.minutes is not None and args.minutes <= 0:
            raise InputError(f"--minutes is {args.minutes:g}; give a time above 0")
        same_settings(args)
        train, held = split(args)
        base = pretrained(args, train, watch)
        tuned = preferred(args, base, train, watch)
        report(args, base, tuned, train, held)
    except TimeUp as over:
        print(f"{args.minutes:g} minutes are over, {over}; the same command goes on from there")
        return 5
    except FairleadError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def same_settings(args: argparse.Namespace) -> None:
    """Refuse to go on with other settings in a folder where some of the work is done."""
    now = {k: [str(p) for p in v] if k == "preferences" else v for k, v in vars(args).items() if k not in FREE}
    file = args.out / "settings.json"
    if file.exists():
        before = json.loads(file.read_text())
        changed = [name for name in now if now[name] != before.get(name)]
        if changed:
            raise InputError(f"{args.out} was begun with another --{changed[0].replace('_', '-')}: name another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(now, indent=2) + "\n")


def split(args: argparse.Namespace) -> tuple[PreferenceSet, PreferenceSet]:
    """Training and held-out pairs; every pair of one prompt on one side."""
    data = read_preferences(args.preferences, skip_bad_rows=True)
    print(*data.report.lines(), sep="\n")
    sides = split_by_group(data.groups, share=args.held_out, seed=args.seed)
    train, held = (part(data, rows[: args.limit]) for rows in sides)
    print(f"split by prompt: {len(train):,} pairs to train on, {len(held):,} held out")
    return train, held


def part(data: PreferenceSet, rows: list[int]) -> PreferenceSet:
    columns = (take(column, rows) for column in (data.rows, data.places, data.groups, data.generators))
    return PreferenceSet(*columns, report=data.report)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- pretraining


def pretrained(args: argparse.Namespace, train: PreferenceSet, watch: Callable[..., Any]) -> LocalModel:
    """The base model: from OUT/base where it is finished, else trained on all replies of the training side."""
    folder = args.out / "base"
    if (folder / "config.json").exists():
        print(f"base: {folder}, as trained before")
        return open_local(str(folder.resolve()))
    said = dict.fromkeys((p.messages, side) for p in train.rows for side in (p.chosen, p.rejected))
    exchanges = [Exchange(messages, reply) for messages, reply in said]
    tokenizer = new_tokenizer(args, exchanges)
    torch.manual_seed(args.seed)
    model = LocalModel("base", new_llama(len(tokenizer), args), tokenizer)
    fitting = exchange_rows(model, exchanges, too_long="skip")
    # Pretraining reads everything, prompts too: each text hangs on its first token.
    texts = tuple(Tree(ids[:1], (ids[1:],)) for ids in ((*t.prompt, *t.replies[0]) for t in fitting.trees))
    rows = Rows(texts, fitting.source, fitting.places, fitting.skipped_too_long)
    total = sum(p.numel() for p in model.module.parameters())
    print(
        f"base: {total / 1e6:.1f}M parameters, {len(tokenizer):,} tokens; {len(texts):,} texts, "
        f"{sum(t.tokens for t in texts):,} tokens, {rows.skipped_too_long} longer than the context left out"
    )
    config = Training(
        epochs=args.pretrain_epochs,
        tokens_per_step=8_192,
        tokens_per_batch=8_192,
        lr=1e-3,
        warmup=0.05,
        schedule="cosine",
        betas=(0.9, 0.95),
        weight_decay=0.1,
        seed=args.seed,
    )
    updates = Updates(model.module, rows, config, Run(checkpoint=args.out / "state", every=10, progress=watch("base")))
    with resumable(updates, folder_key("pretrain", rows.digest, config.model_dump_json(), args.seed)) as start:
        for batch in batches(rows, config, start=start):
            logp = reply_logprobs(model.module, batch.trees)
            updates.step(sft_nll(logp.logp_N, tokens=batch.step_tokens), batch)
    model.save(folder)
    return model


def new_tokenizer(args: argparse.Namespace, exchanges: list[Exchange]) -> Any:
    """A byte-level BPE with a chat template, trained on the training side's text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def texts() -> Iterator[str]:
        for item in exchanges:
            yield from (m.text for m in (*item.messages, *item.reply))

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=args.vocabulary, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>")
    fast.chat_template = TEMPLATE
    return fast


def new_llama(vocabulary: int, args: argparse.Namespace) -> Any:
    """Random weights, tied embeddings: 2.6M parameters at 4 layers, width 192 and a vocabulary of 4,096."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=args.width,
        intermediate_size=args.width * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 32,
        num_key_value_heads=args.width // 64,
        max_position_embeddings=args.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIALS.index("<|end|>"),
        pad_token_id=SPECIALS.index("<|pad|>"),
    )
    return LlamaForCausalLM(config)


# ---------------------------------------------------------------------------------------------- preferences


def preferred(
    args: argparse.Namespace, base: LocalModel, train: PreferenceSet, watch: Callable[..., Any]
) -> LocalModel:
    """The base after DPO on the training pairs: from OUT/dpo where it is finished."""
    folder = args.out / "dpo"
    if (folder / "config.json").exists():
        print(f"dpo: {folder}, as trained before")
        return open_local(str(folder.resolve()))
    config = DPOConfig(
        epochs=args.epochs,
        rows_per_step=args.rows_per_step,
        tokens_per_batch=8_192,
        lr=args.lr,
        beta=args.beta,
        nll=args.nll,
        warmup=0.1,
        seed=args.seed,
        too_long="skip",
    )
    run = Run(cache=args.out / "cache", checkpoint=args.out / "state", every=10, progress=watch("dpo"))
    got = train_dpo(base, train.rows, config, run, places=train.places)
    print(
        f"dpo: {got.pairs:,} pairs ({got.ties:,} ties kept, {got.identical:,} identical and {got.skipped_too_long:,} "
        "too long left out)"
    )
    if got.kl is not None:
        print(f"dpo: KL to the base {got.kl.value:.1f} ± {got.kl.error:.1f} nats (n = {got.kl.n})")
    print("dpo:", ", ".join(f"{name} {value:.3f}" for name, value in got.metrics().items()))
    for alarm in got.alarms:
        print(f"alarm: {alarm.name}: {alarm.message}")
    assert isinstance(got.model, LocalModel)
    got.model.save(folder)
    return got.model


def report(
    args: argparse.Namespace, base: LocalModel, tuned: LocalModel, train: PreferenceSet, held: PreferenceSet
) -> None:
    """Accuracy on the held-out side, printed and written to OUT/accuracy.json."""
    print("scoring the held-out pairs")
    scorers = {
        "longer-wins": longer_wins(held.rows),
        "writer-only": writer_only(train, held),
        "base, sum": model_margins(base, held.rows, by="sum", too_long="skip"),
        "base, mean": model_margins(base, held.rows, by="mean", too_long="skip"),
        "dpo, implicit": model_margins(tuned, held.rows, reference=base, too_long="skip"),
    }
    if not any(held.generators):
        del scorers["writer-only"]
    table = accuracy_table(scorers, held)
    print(*(row.line() for row in table), sep="\n")
    matched = [row for row in table if row.scorer == "dpo, implicit" and row.pairs == "length-matched"]
    learnt = "cannot tell (no held-out pair has two replies of about the same length)"
    if matched:
        learnt = "yes" if matched[0].clear_of_chance else "cannot tell (the interval holds 0.5)"
    print("learnt more than length:", learnt)
    (args.out / "accuracy.json").write_text(json.dumps([asdict(row) for row in table], indent=2) + "\n")


# -------------------------------------------------------------------------------------------------- settings


def stopwatch(minutes: float | None) -> Callable[[str], Callable[[StepRecord], None]]:
    """Progress lines with the time left; raises TimeUp when the minutes are over."""
    began = time.monotonic()

    def watch(name: str) -> Callable[[StepRecord], None]:
        seconds: list[float] = []

        def tell(record: StepRecord) -> None:
            seconds.append(record.seconds)
            at = f"step {record.step + 1} of {record.steps}"
            if len(seconds) % 20 == 1 or record.step + 1 == record.steps:
                left = (record.steps - record.step - 1) * sum(seconds[-50:]) / len(seconds[-50:]) / 60
                print(f"{name}: {at}, loss {record.loss:.3f}, about {left:.1f} min left", flush=True)
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                raise TimeUp(f"{name} at {at}")

        return tell

    return watch


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("--preferences", type=Path, nargs="+", required=True, help="files or folders, in any published format")
    add("--out", type=Path, default=Path("runs/preference-real"))
    add("--minutes", type=float, help="stop after this time; the same command goes on")
    add("--held-out", type=float, default=0.2, help="share of the prompts held out")
    add("--pretrain-epochs", type=float, default=2.0)
    add("--epochs", type=float, default=1.0, help="of DPO")
    add("--rows-per-step", type=int, default=16)
    add("--lr", type=float, default=1e-4)
    add("--beta", type=float, default=0.1)
    add("--nll", type=float, default=0.0)
    add("--vocabulary", type=int, default=4_096)
    add("--layers", type=int, default=4)
    add("--width", type=int, default=192, help="a multiple of 64")
    add("--context", type=int, default=2_048)
    add("--seed", type=int, default=0)
    add("--limit", type=int, help="use only so many pairs of each side (for a quick try)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
