"""Raise the base model: `python -m fairlead.apprentice.pretrain --out DIR`.

Trained once, on purpose, and shipped with the package. The run is fixed by its arguments: corpus seed, weight seed,
number of steps. Muon (Jordan et al. 2024) moves the matrices of the blocks, AdamW the rest; the rate falls to a
fiftieth over the last three fifths of the run, and the weights are rounded to float16, which is what is shipped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fairlead.apprentice import corpus
from fairlead.apprentice.bpe import PATTERN, SPECIALS
from fairlead.apprentice.rows import Row

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT = 512


def make_tokenizer(seed: int, *, vocabulary: int = 1792, sample: int = 40_000) -> PreTrainedTokenizerFast:
    """Byte-level BPE on a sample of the corpus: any text is text, digits stand alone."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (m.text for row in islice(corpus.rows(seed), sample) for m in row.messages)
    # held-out words are rare in the corpus; every word of the world is to be one token all the same
    words = (f"{word} {word}" for word in corpus.WORDS for _ in range(40))
    raw.train_from_iterator(chain(texts, words), trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>",
        model_max_length=CONTEXT, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(vocabulary: int, seed: int, *, width: int, layers: int, feed: int, heads: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=feed,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            initializer_range=0.02,
            use_cache=True,
            dtype="float32",
        )
    )


Encoded = tuple[list[int], list[float]]


def encode(rows: Sequence[Row], tokenizer: Tokenizer) -> list[Encoded]:
    """Token ids and loss weights. A row weighs about the same whether it teaches one word or twenty."""
    begin, end = (SPECIALS.index(name) for name in ("<|begin|>", "<|end|>"))
    texts = [m.text for row in rows for m in row.messages]
    pieces = iter(tokenizer.encode_batch_fast(texts, add_special_tokens=False))
    out: list[Encoded] = []
    for row in rows:
        ids, weights = [begin], [0.0]
        for index, message in enumerate(row.messages):
            piece = [*next(pieces).ids, end]
            learnt = index in row.learnt
            weight = min(3.0, max(0.7, 8.0 / len(piece))) if learnt else 0.0
            ids += [SPECIALS.index(f"<|{message.role}|>"), *piece]
            weights += [0.0] + [weight] * len(piece)
        if len(ids) > CONTEXT:
            raise ValueError(f"a corpus row has {len(ids)} tokens, more than the context of {CONTEXT}")
        out.append((ids, weights))
    return out


def batches(
    seed: int, tokenizer: Tokenizer, tokens: int, *, pool: int = 4096
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Padded micro-batches (ids_BT, weight_BT) of at most `tokens` positions, rows of like length together."""
    source = corpus.rows(seed)
    shuffle = torch.Generator().manual_seed(seed)
    while True:
        encoded = sorted(encode(list(islice(source, pool)), tokenizer), key=lambda row: len(row[0]))
        groups: list[list[Encoded]] = [[]]
        for row in encoded:
            if len(row[0]) * (len(groups[-1]) + 1) > tokens:
                groups.append([])
            groups[-1].append(row)
        for index in torch.randperm(len(groups), generator=shuffle).tolist():
            group = groups[index]
            longest = max(len(ids) for ids, _ in group)
            ids_BT = torch.zeros(len(group), longest, dtype=torch.long)
            weight_BT = torch.zeros(len(group), longest)
            for i, (ids, weights) in enumerate(group):
                ids_BT[i, : len(ids)] = torch.tensor(ids)
                weight_BT[i, : len(ids)] = torch.tensor(weights)
            yield ids_BT, weight_BT


def loss_sum(model: LlamaForCausalLM, ids_BT: torch.Tensor, weight_BT: torch.Tensor) -> torch.Tensor:
    """Weighted negative log-likelihood, summed. Rows are padded on the right, which causal attention never sees."""
    hidden_BTD = model.model(input_ids=ids_BT, use_cache=False).last_hidden_state
    wanted_BT = weight_BT[:, 1:] > 0
    logits_NV = model.lm_head(hidden_BTD[:, :-1][wanted_BT])
    nll_N = F.cross_entropy(logits_NV, ids_BT[:, 1:][wanted_BT], reduction="none")
    return (nll_N * weight_BT[:, 1:][wanted_BT]).sum()


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    before: list[dict[str, object]] = []  # the phases that made the weights it starts from
    if args.start:
        before = json.loads((Path(args.start) / "pretraining.json").read_text(encoding="utf-8"))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start)
        model = LlamaForCausalLM.from_pretrained(args.start)
    else:
        tokenizer = make_tokenizer(args.seed)
        model = make_model(
            len(tokenizer), args.seed, width=args.width, layers=args.layers, feed=args.feed, heads=args.width // 32
        )
    raw = tokenizer.backend_tokenizer
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "layers" in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and "layers" in n)]
    optimisers = [
        torch.optim.Muon(matrices, lr=args.lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr * 1.5, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer)}", flush=True)
    stream = batches(args.seed + 1, raw, args.tokens)
    started, seen, shown = time.time(), 0, 0.0
    for step in range(args.steps):
        done = step / args.steps
        scale = min(1.0, (step + 1) / 100) * (1.0 if done < 0.4 else max(0.02, (1 - done) / 0.6))
        for optimiser, base in zip(optimisers, rates, strict=True):
            for group, rate in zip(optimiser.param_groups, base, strict=True):
                group["lr"] = rate * scale
        micro = list(islice(stream, args.micro))
        total = sum(float(weight_BT[:, 1:].sum()) for _, weight_BT in micro)
        for ids_BT, weight_BT in micro:
            loss = loss_sum(model, ids_BT, weight_BT) / total
            loss.backward()  # type: ignore[no-untyped-call]
            shown += float(loss.detach())
            seen += ids_BT.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            spent = time.time() - started
            print(
                f"step {step + 1}/{args.steps} loss {shown / 50:.4f} {seen / spent:,.0f} tokens/s "
                f"{spent:,.0f} s, {spent / (step + 1) * (args.steps - step - 1):,.0f} s left",
                flush=True,
            )
            if not math.isfinite(shown):
                raise SystemExit("the loss is not finite; lower --lr")
            shown = 0.0
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            about = {"seed": args.seed, "steps": step + 1, "of": args.steps, "tokens": seen, "lr": args.lr}
            save(model, tokenizer, out, [*before, about | {"micro": args.micro, "tokens_per_micro": args.tokens}])


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path, phases: list[dict[str, object]]
) -> None:
    """Hugging Face format; weights rounded to float16 in the file, float32 in the config, which is how they load."""
    from safetensors.torch import save_file

    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    state = {k: v.detach().half().contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    (out / "pretraining.json").write_text(json.dumps(phases, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--start", type=lambda text: str(Path(text).resolve()), help="go on from this folder's weights")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--tokens", type=int, default=4096, help="padded positions per micro-batch")
    parser.add_argument("--micro", type=int, default=2, help="micro-batches per step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--feed", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=250)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
