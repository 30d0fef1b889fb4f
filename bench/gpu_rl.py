"""The parts of `gpu.py` about reinforcement learning: a whole GRPO step, and transformers' continuous batching.

The step is built of the functions that `fairlead train grpo` calls (engine/decode.py, engine/logprobs.py,
methods/advantages.py, methods/losses_policy.py, methods/kl_estimators.py), without the loop around them, which needs
more than a bare GPU image has: replies of the weights as they are, a reward that costs nothing, the reference's
log-probs, one update. `gpu_trl.py` times TRL's GRPOTrainer on the same prompts, group, lengths and settings.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_clock import clear, clock, peak, reset_peak
from transformers import GenerationConfig, LlamaForCausalLM

from fairlead.engine.decode import generate
from fairlead.engine.layout import Tree, pack
from fairlead.engine.logprobs import reply_logprobs
from fairlead.methods import advantages, kl_estimators, losses_policy

GROUP, BETA = 8, 0.04


def reward(tokens: tuple[int, ...] | list[int]) -> float:
    """Anything that differs from reply to reply and costs nothing; gpu_trl.py has the same."""
    return sum(token % 7 == 0 for token in tokens) / max(len(tokens), 1)


def grpo(
    model: LlamaForCausalLM,
    size: str,
    vocabulary: int,
    prompts: list[tuple[int, ...]],
    tokens: int,
    budget: int,
    steps: int,
) -> dict[str, Any]:
    """Median seconds of a step and its parts. `GROUP` replies of `tokens` tokens to each prompt; none ends earlier."""
    device = model.device
    policy, reference = copy.deepcopy(model), model
    parts: dict[str, list[float]] = {"draw": [], "reference": [], "update": []}
    group_R = torch.repeat_interleave(torch.arange(len(prompts)), GROUP)
    try:
        optimiser = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)

        def draw(number: int) -> tuple[list[Tree], torch.Tensor]:
            groups = generate(policy, prompts, n=GROUP, max_tokens=tokens, rows=GROUP * len(prompts), seed=number)
            trees = [Tree(p, tuple(r.tokens for r in group)) for p, group in zip(prompts, groups, strict=True)]
            reward_R = torch.tensor([reward(reply) for tree in trees for reply in tree.replies], dtype=torch.float64)
            return trees, advantages.group_centred(reward_R, group_R)

        @torch.no_grad()
        def look(trees: list[Tree], parted: list[list[int]]) -> list[torch.Tensor]:
            return [reply_logprobs(reference, [trees[row] for row in rows]).logp_N for rows in parted]

        def update(trees: list[Tree], parted: list[list[int]], adv_R: torch.Tensor, reference_N: list[Any]) -> None:
            for number, rows in enumerate(parted):
                mine = [trees[row] for row in rows]
                got = reply_logprobs(policy, mine)
                at_R = torch.tensor([row * GROUP + k for row in rows for k in range(GROUP)])
                adv_N = adv_R[at_R].to(device)[got.reply_N]
                surrogate_N = losses_policy.clipped(got.logp_N - got.logp_N.detach(), adv_N)
                kl_N = kl_estimators.k3(got.logp_N, reference_N[number])
                share_N = losses_policy.reply_shares(got.reply_N, got.count_R, replies=len(group_R))
                losses_policy.weighted_sum(surrogate_N + BETA * kl_N, share_N).backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        for number in range(steps + 1):  # the first warms up
            if number == 1:
                reset_peak(device)
            drew, (trees, adv_R) = clock(device, partial(draw, number))
            parted = pack(trees, max(budget, max(tree.tokens for tree in trees)))
            looked, reference_N = clock(device, partial(look, trees, parted))
            learnt, _ = clock(device, partial(update, trees, parted, adv_R, reference_N))
            for name, seconds in zip(parts, (drew, looked, learnt), strict=True):
                parts[name].append(seconds)
    except torch.OutOfMemoryError:
        return {"grpo": "ours", "model": size, "vocabulary": vocabulary, "failed": "out of memory"}
    finally:
        optimiser = None
        clear(device)
    middle = {f"{name}_seconds": float(np.median(values[1:])) for name, values in parts.items()}
    total = sum(middle.values())
    return {"grpo": "ours", "model": size, "vocabulary": vocabulary, "step_seconds": total, **middle,
            "replies_per_second": len(group_R) / total, "peak_gb": peak(device)}  # fmt: skip


def continuous(
    model: LlamaForCausalLM, size: str, vocabulary: int, prompts: list[tuple[int, ...]], tokens: int
) -> dict[str, Any]:
    """Tokens/s of transformers' continuous batching at the same prompts and lengths, counted as ours are.

    Its manager is kept and warm (graphs captured where it captures some), and the prefill, timed apart, is taken off.
    """
    count, device = len(prompts), model.device
    told: dict[str, Any] = {"decode": count, "model": size, "vocabulary": vocabulary, "way": "transformers, continuous"}
    try:
        from transformers import ContinuousBatchingConfig
    except ImportError:
        return {**told, "failed": "this transformers has none"}
    settings: dict[str, Any] = {} if device.type == "cuda" else {"num_blocks": 64, "max_batch_tokens": 512}
    inputs = [list(prompt) for prompt in prompts]

    def run(limit: int) -> int:
        how = GenerationConfig(
            max_new_tokens=limit, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0
        )
        done = model.generate_batch(
            inputs,
            generation_config=how,
            continuous_batching_config=ContinuousBatchingConfig(**settings),
            persistent_manager=True,
        )
        bad = [one.error for one in done.values() if one.error]
        if bad:
            raise RuntimeError(bad[0])
        return sum(len(one.generated_tokens) for one in done.values())

    attention = model.config._attn_implementation
    found: dict[int, tuple[float, int]] = {}
    try:
        model.set_attn_implementation("sdpa")  # the engine's own is none that it knows
        for limit in (1, tokens):
            run(limit)
            found[limit] = clock(device, lambda limit=limit: run(limit))
            model.destroy_cached_continuous_batching_manager()  # it keeps the limit it was made with
    except (RuntimeError, ValueError, ImportError, torch.OutOfMemoryError) as error:
        return {**told, "failed": str(error).splitlines()[0][:120]}
    finally:
        model.set_attn_implementation(attention)  # it switches to a paged one
        clear(device)
    (prefill, _), (seconds, drawn) = found[1], found[tokens]
    return {**told, "tokens_per_second": (drawn - count) / max(seconds - prefill, 1e-9), "prefill_seconds": prefill}
