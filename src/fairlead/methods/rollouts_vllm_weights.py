"""Weights on their way to a vLLM server, and the proof that they arrived: a probe drawn there and scored here."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fairlead.engine.checkpoint import save_model
from fairlead.engine.forward import context_of, vocabulary_of
from fairlead.engine.layout import Tokens, Tree
from fairlead.engine.logprobs import score
from fairlead.errors import MissingResource
from fairlead.methods.rollouts_vllm_server import Choice, Seen, VllmServer

BOUND = 0.05
"""Mean |server - trainer| of the probe's log-probs, in nats, above which the weights do not count as in use. Float32
agrees to about 1e-7, bfloat16 to about 0.01; weights of other training runs are off by tenths and more."""
CALM = 20.0
"""Nor may it exceed this many times the least ever seen on that server: where both sides are float32, weights that are
stale by a step or two, or stale in part, are noticed long before they reach BOUND."""
NOISE = 1e-4  # nats that are never held against a server

PROMPT, REPLY, REPLIES = 40, 16, 2
HOT = 2.0  # away from 1 the two kinds of log-probs differ, and above 1 they do for peaked models too
PROBE = {"max_tokens": REPLY, "temperature": HOT, "top_p": 1.0, "top_k": 0, "seed": 0, "ignore_eos": True}
TIED = (
    " On a machine without a GPU: this model ties its LM head to the embeddings, and vLLM's CPU build keeps the old "
    "head when it loads new ones. Start it from a folder in which they are apart, as "
    "fairlead.methods.rollouts_vllm_weights.start_folder writes it."
)


def probe_of(module: Any, words: int) -> Tokens:
    """A fixed prompt of ids from all over the vocabulary; shorter where the model's positions end early."""
    size = min(words, vocabulary_of(module))
    room = (context_of(module) or 10**9) - REPLY
    return tuple((7919 * (k + 1)) % size for k in range(max(1, min(PROMPT, room))))


async def shown(server: VllmServer, probe: Tokens) -> Seen:
    """What a server shows of the weights it holds."""
    return Seen(await server.digests(), tuple(await server.draw(probe, REPLIES, PROBE)))


def verify(
    servers: Mapping[VllmServer, Seen], plain: Any, probe: Tokens, *, name: str, version: int, bound: float
) -> None:
    """That each server computes what the trainer does; which kind of log-probs it tells is seen on the way.

    Raises MissingResource for the first that does not, saying how far off it is.
    """
    mark = rounded(plain)
    for server, seen in servers.items():
        where = f"{name}: {server.url}"
        processed, raw = far_off(plain, probe, seen.probe)
        near = min(processed, raw)
        most = min(bound, max(NOISE, CALM * min(near, server.calm)))
        if not near <= most:
            raise MissingResource(
                f"{where} does not compute what the trainer does after step {version}: the log-probs of a probe differ "
                f"by {near:.3g} nats on average; at most {most:.3g} is allowed. Does it serve this model, unquantised, "
                f"without --logprobs-mode raw_logits or processed_logits?{TIED if tied(plain) else ''}"
            )
        if max(processed, raw) <= 3 * near:
            raise MissingResource(
                f"{where}: it cannot be told from a probe whether its log-probs are raw or processed ({raw:.3g} and "
                f"{processed:.3g} nats from the trainer's): the model is all but uniform"
            )
        if server.taken is not None and server.taken[0] != mark and server.taken[1] == seen:
            raise MissingResource(
                f"{where} was told to load the weights of step {version}, and all that can be seen of its own is as "
                "before. Restart it; if it stays so, this vLLM cannot reload this model"
            )
        server.calm = min(server.calm, near)
        server.mode, server.taken = "processed" if processed < raw else "raw", (mark, seen)


def far_off(plain: Any, probe: Tokens, choices: tuple[Choice, ...]) -> tuple[float, float]:
    """Mean |server - trainer| in nats, against log-probs at the probe's temperature and at temperature 1."""
    tree = Tree(probe, tuple(choice.tokens for choice in choices))
    said = torch.tensor([x for choice in choices for x in choice.logprobs], dtype=torch.float64)
    hot, plainly = (score(plain, [tree], temperature=t).logp_N.double() for t in (HOT, 1.0))
    return float((said - hot).abs().mean()), float((said - plainly).abs().mean())


def rounded(module: torch.nn.Module) -> str:
    """A hash of the weights as bfloat16: where it changed, a server's weights change in any usual dtype."""
    total = hashlib.sha256()
    for parameter in module.parameters():
        small = parameter.detach().to(torch.bfloat16).contiguous().cpu()
        total.update(small.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


# -------------------------------------------------------------------------------------------- tied heads


def tied(module: Any) -> bool:
    """Whether the LM head's weights are those of the embeddings."""
    head = module.get_output_embeddings()
    return head is not None and head.weight is module.get_input_embeddings().weight


def untied(module: Any) -> Any:
    """The same model with LM head and embeddings apart; a copy where they were tied."""
    if not tied(module):
        return module
    other = copy.deepcopy(module)
    head = other.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    other.config.get_text_config().tie_word_embeddings = other.config.tie_word_embeddings = False
    return other


def start_folder(module: Any, tokenizer: Any, folder: Path | str) -> Path:
    """A folder to start a server from on a machine without a GPU: as `save_model`, with LM head and embeddings apart.

    vLLM 0.32's CPU build packs the LM head for its kernels when it starts, and does not do so again at a reload where
    the head is tied.
    """
    save_model(untied(module), tokenizer, folder)
    return Path(folder)


def has_head(digests: Mapping[str, str]) -> bool:
    """Whether a server lists an LM head of its own: it then wants one in the folder it loads."""
    return any(name.endswith("lm_head.weight") for name in digests)
