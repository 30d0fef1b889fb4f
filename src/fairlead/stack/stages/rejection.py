"""Rejection sampling: of what another layer says, the best that its judges pass, to learn from anew.

DeepSeek R1 (2025, arXiv 2501.12948, section 2.3.3): when reinforcement learning has converged, its model's checked
replies, mixed with general data, teach the base again.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from fairlead.errors import InputError
from fairlead.exchange import Exchange, from_json
from fairlead.feedback.write import write_exchanges
from fairlead.stack.context import Built, Context, Used
from fairlead.stack.folder import read_lines, write_json
from fairlead.stack.identity import code_hash
from fairlead.stack.plan_data import Demonstrations, Rejection
from fairlead.stack.stages.asked import asked
from fairlead.stack.stages.data import Data
from fairlead.stack.stages.judged import judging
from fairlead.stack.stages.shown import demonstrated
from fairlead.stack.stages.train import DATA_ROOMS


def rejected(config: Rejection, general: Demonstrations | None, name: str, below: Built, ctx: Context) -> Data:
    """The replies of `config.model` that passed, and `general` behind them. `below` is the model that will learn."""
    source = ctx.built[config.model]
    prompts = asked(config.prompts, name, source, ctx)
    judges = [judging(one, "reward", source, ctx) for one in config.judges]
    what = {
        "stage": "rejection",
        "config": config.model_dump(mode="json", exclude={"model"}),
        "judges": [one.identity for one in judges],
        "model": source.identity,
        "prompts": prompts.hash,
        "seed": ctx.seed,
        "code": code_hash(*DATA_ROOMS),
        **ctx.numerics,
    }

    def build(folder: Path) -> None:
        from fairlead.methods.sampling import draw

        with ctx.voice.progress(f"{name}: sampling {config.model}"):
            drawn = draw(
                source.model,
                [row.messages for row in prompts.rows],
                n=config.replies,
                max_tokens=config.max_tokens,
                temperature=config.temperature,
                seed=ctx.seed,
                metas=[row.meta for row in prompts.rows],
            )
        counts: Counter[str] = Counter(prompts=len(drawn))
        kept: list[Exchange] = []
        opened = [one.open() for one in judges]
        for one in drawn:
            whole = [e for e, cut in zip(one.exchanges, one.truncated, strict=True) if not cut]
            distinct = list({e.reply_text: e for e in whole}.values())
            counts["replies"] += len(whole)
            verdicts = [judge.judge(distinct) for judge in opened]
            passed = []
            for row, reply in enumerate(distinct):
                scores = [column[row].score for column in verdicts]
                counts["unjudged"] += None in scores
                known = [score for score in scores if score is not None]
                if len(known) == len(scores) and min(known) >= config.least:
                    worth = sum(t.weight * score for t, score in zip(config.judges, known, strict=True))
                    passed.append((worth, -row, reply))
            counts["passed"] += len(passed)
            counts["answered"] += bool(passed)
            best = sorted(passed, key=lambda item: (-item[0], -item[1]))[: config.keep]
            kept += [Exchange(reply.messages, reply.reply) for _, _, reply in best]
        write_exchanges(folder / "data.jsonl", kept)
        write_json(folder / "about.json", {"counts": dict(counts)})

    entry = ctx.cache.make("rejection", what, build)
    counts: dict[str, int] = json.loads((entry.path / "about.json").read_bytes())["counts"]
    own = tuple(from_json(Exchange, row) for row in read_lines(entry.path / "data.jsonl"))
    if not own:
        raise InputError(
            f"layer {name!r}: not one of {counts['replies']:,} replies of {config.model!r} passed "
            f"{', '.join(one.term.column for one in judges)}: there is nothing to learn from"
        )
    used: Used = tuple(("select", one.term.column, one.lineage) for one in judges)
    said = f"{len(own):,} replies of {config.model} that passed, of {counts['replies']:,}"
    labels = {"verified replies": len(own)}
    places = tuple(f"reply {i} of {config.model}" for i in range(len(own)))
    facts = {"counts": counts}
    if general is None:
        return Data(entry, own, places, used, said, facts, labels)
    more = demonstrated(general, name, below, ctx)
    both = ctx.cache.make(
        "mixed",
        {"stage": "mixed", "parts": [entry.key, more.entry.key], "code": code_hash("stack/stages/rejection")},
        lambda folder: write_exchanges(folder / "data.jsonl", (*own, *more.rows)),
    )
    return Data(
        both,
        (*own, *more.rows),
        (*places, *more.places),
        (*used, *more.used),
        f"{said}; {more.said}",
        {**facts, "general": more.facts},
        {**labels, **more.labels},
    )
