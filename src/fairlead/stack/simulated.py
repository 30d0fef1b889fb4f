"""Comparisons that nobody gave: in the apprentice's world a rater stands in for the people who would bring them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.exchange import Message
from fairlead.judges.lineage import leaf
from fairlead.models.protocol import Prompt, Sampling
from fairlead.stack.identity import code_hash, digest

if TYPE_CHECKING:
    from fairlead.stack.context import Context, Used

FILE = "simulated-preferences.jsonl"


def simulated_file(ctx: Context) -> str:
    """The file of them, made once for a base and a seed (apprentice/comparisons.py). It is said aloud."""
    n = ctx.plan.prompts.per_principle * len(ctx.constitution.principles)
    ctx.simulates("preferences: the best and the worst of replies of the base and a demonstrator, by a rater who errs")
    base = ctx.base()
    rooms = ("apprentice", "engine", "feedback", "models", "stack/simulated")
    what = {"n": n, "seed": ctx.seed, "model": base.identity, "code": code_hash(*rooms), **ctx.numerics}

    def build(folder: Path) -> None:
        from fairlead.apprentice.comparisons import comparisons
        from fairlead.feedback.write import write_preferences

        def draw(prompts: Sequence[Prompt]) -> list[list[tuple[Message, ...]]]:
            drawn = base.model.generate(prompts, Sampling(n=3, max_tokens=40, temperature=1.0, seed=ctx.seed))
            return [[one.messages for one in replies if one.finish == "stop"] for replies in drawn]

        ctx.settle_numerics()
        with ctx.voice.progress("preferences: sampling and comparing"):
            write_preferences(folder / FILE, comparisons(draw, n, ctx.seed))

    return str(ctx.cache.make("comparisons", what, build).path / FILE)


def whose(path: str, hashes: list[str], ctx: Context) -> tuple[Used, str]:
    """Who made the preferences in a file, for the ledger, and what their labels are called: human, or simulated.

    What a layer brings as a file of its own is somebody's; nothing is simulated to find that out.
    """
    if Path(path).name == FILE and ctx.preferences_are_simulated and path == ctx.preferences_path:
        rater = leaf("annotator", text="simulated rater", code=digest(hashes)[:16])
        return (("train", "simulated rater", rater),), "simulated"
    return (("train", "human preferences", leaf("human", code=digest(hashes)[:16])),), "human"
