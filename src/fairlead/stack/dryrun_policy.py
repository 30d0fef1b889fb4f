"""What reinforcement learning would take, before it is begun: prompts, replies, and time from a step or two."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

from fairlead.stack.dryrun import adapted
from fairlead.stack.memory import footprint, keys_values, peak_resident
from fairlead.stack.reinforce import PolicyJob, PolicyOrder, open_policy_job, train_policy_job
from fairlead.stack.reinforce_told import means_of
from fairlead.stack.voice import Voice

SIDE_BY_SIDE = 64  # replies that the decoder draws at once (rollouts.LocalSampler)
TRIED_STEPS = 2  # the faster one counts, since the first one pays for warming up


def estimate_policy(order: PolicyOrder, voice: Voice) -> dict[str, Any]:
    """Counts, the model's own rewards before it learns, and the time of all steps; nothing is written.

    Replies grow or shrink as the model learns, and the time with them: it is reckoned from replies as they are now.
    """
    from fairlead.methods.gather import prompts_as_read

    job = open_policy_job(order, voice)
    config = job.config
    asked = prompts_as_read(job.model, job.prompts, config, job.places)
    steps = config.steps or math.ceil((config.epochs or 1.0) * len(asked.trees) / config.prompts_per_step - 1e-9)
    few = {"steps": min(TRIED_STEPS, steps), "epochs": None}
    began = time.perf_counter()
    made = train_policy_job(dataclasses.replace(job, config=config.model_copy(update=few)), voice)
    total = time.perf_counter() - began
    took: list[float] = []
    for record in made.records:
        if record.told:  # the first update of a step; its seconds hold drawing and judging too
            took.append(0.0)
        took[-1] += record.seconds
    replies = config.prompts_per_step * (config.replies + (config.advantage == "remax"))
    start = dict(made.steps[0].told) if made.steps else {}
    return {
        "method": order.name,
        "prompts": len(asked.trees),
        "skipped_too_long": asked.skipped_too_long,
        "longest_prompt": max(len(tree.prompt) for tree in asked.trees),
        "steps": steps,
        "updates": steps * config.updates,
        "replies_per_step": replies,
        "tokens_per_step": means_of([r.told for r in made.steps]).get("length", math.nan) * replies,
        "tokens_per_step_at_most": replies * config.max_tokens,
        "seconds_per_step": min(took, default=math.nan),
        "about_seconds": min(took, default=math.nan) * steps + max(0.0, total - sum(took)),
        "start": start,
        "tried": len(made.steps),
        "spent": order.within.spent,
        "missing": made.missing,
        "stopped": made.stopped,
        "memory": _memory(job, max(len(tree.prompt) for tree in asked.trees), replies),
        "peak_bytes": peak_resident(),
        "config": config.model_dump(mode="json"),
    }


def _memory(job: PolicyJob, longest: int, replies: int) -> dict[str, int | None]:
    """Bytes beside the program itself by part, an estimate; None for what is not known of this model.

    The parts of `memory.Footprint` of policy and reference at replies of full length, those of a critic together as
    `critic`, and `keys_values` of the replies decoded side by side here. A reward model's weights are not in it.
    """
    config, module = job.config, job.model.module
    step = config.prompts_per_step * longest + replies * config.max_tokens
    at_once = min(config.tokens_per_batch, step)
    trained = adapted(module, config)
    parts = dataclasses.asdict(own := footprint(module, at_once, trained=trained))
    more: dict[str, int | None] = {}
    if config.advantage == "gae":
        body = job.critic.model.module if job.critic is not None else module
        second = footprint(body, at_once, trained=trained if body is module else adapted(body, config))
        alike = second.weights // 2 if own.trained == own.parameters else second.weights
        more["critic"] = alike + second.gradients + second.moments + (second.activations or 0)
    if job.sampler is None:
        more["keys_values"] = keys_values(module, min(SIDE_BY_SIDE, replies), longest + config.max_tokens)
    return parts | more | {"total": own.total + sum(value or 0 for value in more.values())}
