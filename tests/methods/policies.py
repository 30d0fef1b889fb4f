"""What tests of reinforcement learning share: prompts, judges that know what they want, and settings that are quick."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fairlead.exchange import Exchange, Verdict, assistant, user
from fairlead.judges.lineage import leaf
from fairlead.judges.rules import Judged
from fairlead.methods.config_policy import ALGORITHMS, PolicyConfig
from fairlead.methods.rewards import Objective

QUICK: dict[str, Any] = {
    "steps": 3, "prompts_per_step": 3, "replies": 4, "max_tokens": 6, "lr": 3e-3, "reward_cliff": None, "kl_burst": 1e3,
}  # fmt: skip


def prompts(n: int = 6) -> list[Exchange]:
    return [
        Exchange((user(f"what colour is {'the ' * (i % 3)}boat {i} ?"),), (), {"reference": "blue"}) for i in range(n)
    ]


def settings(name: str, **more: Any) -> PolicyConfig:
    """An algorithm by name, small."""
    quick = dict(QUICK)
    if name in ("online-dpo", "xpo", "nash-md"):
        quick["replies"] = 2
    if name in ("ppo", "safe-ppo", "remax", "reinforce++"):
        quick |= {"replies": 1, "prompts_per_step": 6}
    return ALGORITHMS[name].settings({**quick, **more})


def judge(score: Callable[[Exchange], float | None], name: str = "judge") -> Judged:
    def verdicts(items: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(None, reason="silent", judge=name) if (s := score(e)) is None
                else Verdict(min(max(s, 0.0), 1.0), raw=s, judge=name) for e in items]  # fmt: skip

    return Judged(name, verdicts, leaf("rule", text=name, code=name))


def letters(item: Exchange) -> float:
    """Something that differs from reply to reply, and depends on nothing but its text."""
    return sum(map(ord, item.reply_text)) % 97 / 97


def objectives(name: str = "") -> list[Objective]:
    """One reward; and a cost where the algorithm has a budget."""
    found = [Objective(judge(letters, "letters"))]
    if name.startswith("safe"):
        found.append(Objective(judge(lambda e: float(len(e.reply_text) % 5) / 4, "length"), role="cost"))
    return found


def demonstrations(n: int = 5) -> list[Exchange]:
    return [Exchange((user(f"say yes {i}"),), (assistant("yes the boat is blue"),)) for i in range(n)]


def each_on_several(names: Sequence[str], folder: str) -> dict[str, dict[str, Any]]:
    """`on_several` for one algorithm after the other, in the same processes."""
    return {name: on_several(name, f"{folder}/{name}", False) for name in names}


def on_several(name: str, folder: str, shard: bool, stop_after: int = 0) -> dict[str, Any]:
    """What a process of several does; dies hard after a step where asked to."""
    import os
    import signal
    from pathlib import Path

    from tests.methods.trainable import tiny_model

    from fairlead.engine import parallel
    from fairlead.engine.checkpoint import weights_hash
    from fairlead.methods.loop import Run, StepRecord
    from fairlead.methods.policy import train_policy

    asked: list[str] = []

    def counting(item: Exchange) -> float:
        asked.append(item.messages[0].text)
        return letters(item)

    def progress(record: StepRecord) -> None:
        if record.step + 1 == stop_after:
            os.kill(os.getpid(), signal.SIGKILL)

    some = [Objective(judge(counting, "letters")), *objectives(name)[1:]]
    config = settings(name, passes=2, minibatches=2, shard=shard, tokens_per_batch=70)
    run = Run(checkpoint=Path(folder) / "unfinished", every=1, progress=progress)
    made = train_policy(tiny_model(), prompts(), some, config, run)
    module: Any = made.model.module  # type: ignore[attr-defined]
    told = [{k: v for k, v in r.told.items() if "seconds" not in k} for r in made.steps]
    return {
        "hash": weights_hash(module),
        "norms": [float(p.detach().norm()) for p in module.parameters()],
        "loss": [r.loss for r in made.records],
        "told": told,
        "asked": asked,
        "processes": parallel.world().size,
    }


def collapsing(folder: str, shard: bool, stop_after: int = 0) -> dict[str, Any]:
    """A run on several whose KL grows until it stops; dies hard after a step where asked to."""
    import os
    import signal
    from pathlib import Path

    from tests.methods.trainable import tiny_model

    from fairlead.engine.checkpoint import weights_hash
    from fairlead.methods.loop import Run, StepRecord
    from fairlead.methods.policy import train_policy

    def progress(record: StepRecord) -> None:
        if record.step + 1 == stop_after:
            os.kill(os.getpid(), signal.SIGKILL)

    config = settings("grpo", steps=8, lr=0.01, kl=0.0, kl_burst=1.3, shard=shard)
    run = Run(checkpoint=Path(folder) / "unfinished", every=1, progress=progress)
    made = train_policy(tiny_model(), prompts(), objectives(), config, run)
    module: Any = made.model.module  # type: ignore[attr-defined]
    return {
        "hash": weights_hash(module),
        "norms": [float(p.detach().norm()) for p in module.parameters()],
        "stopped": made.stopped,
        "closing": dict(made.closing),
    }
