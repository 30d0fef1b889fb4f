"""Comparisons by a simulated rater of the apprentice's world: replies of a model, put in order (InstructGPT's K)."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead.errors import InputError
from fairlead.exchange import Preference, Ranking, from_json, to_json
from fairlead.judges.lineage import Lineage, leaf
from fairlead.stack.cache import Entry
from fairlead.stack.context import Built, Context
from fairlead.stack.folder import read_lines, write_json, write_lines
from fairlead.stack.identity import code_hash
from fairlead.stack.plan import Preferences
from fairlead.stack.stages.data import fitted
from fairlead.stack.stages.train import DATA_ROOMS


@dataclass(frozen=True, slots=True)
class Ranked:
    """Rankings, one a prompt at most, what was counted on the way, and whose they are."""

    entry: Entry
    rows: tuple[Ranking, ...]
    counts: dict[str, int]
    rater: Lineage
    said: str

    @property
    def pairs(self) -> list[Preference]:
        """Every two replies of a ranking, the better one chosen."""
        return [
            Preference(row.messages, row.replies[better], row.replies[worse])
            for row in self.rows
            for better, worse in itertools.combinations(row.order, 2)
        ]


def ranked(config: Preferences, name: str, below: Built, ctx: Context) -> Ranked:
    """Draw `replies` of the model below to every training prompt and let the rater put those that differ in order.

    Counted: `missing` and `truncated` replies, and prompts with `too_few` different ones. Raises InputError where no
    prompt is left.
    """
    from fairlead.apprentice.annotators import Biases, annotator

    settings = config.rater.model_dump()
    naive = settings.pop("naive")
    rater = annotator("rater", Biases(**settings), seed=ctx.seed, naive=naive)
    ctx.simulates(f"{name}: comparisons by a rater of the apprentice's world ({config.rater.said})")
    drawing = config.model_dump(mode="json", include={"replies", "greedy", "temperature", "top_p", "max_tokens"})
    what = {
        "stage": "rater",
        "rater": rater.identity,
        "drawing": drawing,
        "seed": ctx.seed,
        "prompts": ctx.prompts.hash,
        "model": below.identity,
        "code": code_hash(*DATA_ROOMS),
        **ctx.numerics,
    }

    def build(folder: Path) -> None:
        from fairlead.methods.sampling import draw

        cases = fitted(ctx, below).cases
        counts: Counter[str] = Counter(prompts=len(cases))
        with ctx.voice.progress(f"{name}: sampling and ranking"):
            how: dict[str, Any] = {"max_tokens": config.max_tokens, "seed": ctx.seed, "metas": [c.meta for c in cases]}
            asked = [case.messages for case in cases]
            found = draw(
                below.model, asked, n=config.replies, temperature=config.temperature, top_p=config.top_p, **how
            )
            first = draw(below.model, asked, n=1, temperature=0.0, **how) if config.greedy else [None] * len(cases)
        rows = []
        for case, one, greedy in zip(cases, found, first, strict=True):
            several = [one, greedy] if greedy is not None else [one]
            whole = {
                e.reply_text: e for d in several for e, cut in zip(d.exchanges, d.truncated, strict=True) if not cut
            }
            counts["missing"] += sum(d.missing for d in several)
            counts["truncated"] += sum(sum(d.truncated) for d in several)
            if len(whole) < 2:
                counts["too_few"] += 1
                continue
            replies = list(whole.values())
            liked = [rater.utility(reply) for reply in replies]
            order = sorted(range(len(replies)), key=lambda i: -liked[i])
            counts["replies"] += len(replies)
            rows.append(Ranking(case.messages, tuple(reply.reply for reply in replies), tuple(order)))
        write_lines(folder / "data.jsonl", map(to_json, rows))
        write_json(folder / "about.json", {"counts": dict(counts)})

    entry = ctx.cache.make("rankings", what, build)
    counts: dict[str, int] = json.loads((entry.path / "about.json").read_bytes())["counts"]
    rows = tuple(from_json(Ranking, row) for row in read_lines(entry.path / "data.jsonl"))
    if not rows:
        raise InputError(
            f"layer {name!r}: to none of {counts['prompts']:,} prompts were there two different whole replies to rank; "
            "draw more `replies`, or raise `max_tokens`"
        )
    lineage = leaf("annotator", text="simulated rater", code=rater.identity)
    notes = [
        f"{counts[k]:,} {words}"
        for k, words in (("truncated", "replies cut, left out"), ("too_few", "prompts with nothing to rank"))
        if counts.get(k)
    ]
    said = "; ".join([f"{counts['replies']:,} replies in {len(rows):,} rankings by a simulated rater", *notes])
    return Ranked(entry, rows, counts, lineage, said)
