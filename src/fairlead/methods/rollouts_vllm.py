"""Rollouts from vLLM servers by URL: `vllm/NAME@URL1,URL2`.

Every refresh writes the policy's weights to a folder that both sides see, has each server load them, and believes
nothing until it is shown: the server draws a probe, and the log-probs of what it drew are compared with the trainer's.
A reply comes back with the log-prob of each of its tokens under the whole distribution at the temperature it was drawn
at, or is refused; which of both log-probs vLLM tells depends on how it was started (`--logprobs-mode`).
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import tempfile
import threading
import weakref
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from fairlead.engine import parallel
from fairlead.engine.checkpoint import save_model
from fairlead.engine.counter import streams
from fairlead.engine.layout import Tokens
from fairlead.errors import InputError, MissingResource
from fairlead.methods.adapters import merged
from fairlead.methods.rollouts import Asked, Drawing, Drawn, LocalSampler, Sampler, drawn_of
from fairlead.methods.rollouts_vllm_server import Choice, Gone, Seen, VllmServer, add_place
from fairlead.methods.rollouts_vllm_weights import BOUND, has_head, probe_of, shown, tied, untied, verify
from fairlead.models import is_remote
from fairlead.models.keys import key_from
from fairlead.models.remote import Limits, run, together
from fairlead.models.render import frame

log = logging.getLogger(__name__)

ROLLOUT_LIMITS = Limits(concurrency=64, attempts=5, timeout=900.0, deadline=1800.0)
"""Per server. One request draws a whole group, so a try may take minutes."""
COLDEST = 0.01  # vLLM draws at this temperature when asked for a lower one


class VllmSampler:
    """Draws from vLLM servers that hold the policy's weights. Under torchrun every process has one of its own.

    name       what the log calls it
    model      the name that the servers serve (`--served-model-name`)
    urls       base URLs (`…/v1`); prompts are dealt over them, a group whole on one
    weights    a folder for the weights that both sides see; by default a temporary one, for servers on this machine
    seen_as    the same folder's path on the servers, where it differs
    bound      see BOUND
    moved      prompts that went to another server since theirs failed
    """

    exact = False

    def __init__(
        self,
        model: str,
        urls: Sequence[str],
        tokenizer: Any,
        *,
        weights: Path | str | None = None,
        seen_as: str | None = None,
        bound: float = BOUND,
        limits: Limits = ROLLOUT_LIMITS,
    ) -> None:
        self.name = f"vllm/{model}"
        self.tokenizer, self.bound, self.moved = tokenizer, bound, 0
        self.stops = sorted(frame(tokenizer).stops)
        self.servers = [
            VllmServer(self.name, model, url, key_from("VLLM_API_KEY", url=url, optional=True, name=self.name), limits)
            for url in urls
        ]
        self._weights, self._seen_as = Path(weights) if weights is not None else None, seen_as
        self._run, self._count = secrets.token_hex(4), 0
        self._tag: str | None = None  # the name of the weights in use
        self._kept: Path | None = None  # and where they lie
        self._lock = threading.Lock()  # nothing is drawn while weights change

    def __repr__(self) -> str:
        return f"VllmSampler({self.name!r}, {[server.url for server in self.servers]})"

    # ------------------------------------------------------------------------------------------- weights

    def refresh(self, module: torch.nn.Module, version: int) -> None:
        """Give every server these weights, and see that it uses them. All processes call it; process 0 does it.

        A server that was out gets another chance; one that does not answer stays out, and that is logged. Raises
        MissingResource where none answers, or one cannot load the weights or does not compute what the trainer does.
        """
        with self._lock:
            self._tag = None
            parallel.wait()  # others may still be drawing
            state: dict[str, Any] = {}  # stays empty where process 0 fails
            try:
                if parallel.first():
                    self._push(module, version)
                    state = {"tag": self._tag, "down": [s.down for s in self.servers]}
                    state["mode"] = [s.mode for s in self.servers]
            finally:
                state = json.loads(parallel.texts(json.dumps(state))[0])
            if not state:  # not on process 0, where the exception is under way
                raise MissingResource(f"{self.name}: process 0 could not refresh; its own message says why")
            self._tag = state["tag"]
            for server, down, mode in zip(self.servers, state["down"], state["mode"], strict=True):
                server.down, server.mode = down, mode

    def _push(self, module: torch.nn.Module, version: int) -> None:
        if any(parallel.is_split(p) for p in module.parameters()):
            raise InputError(f"{self.name}: the weights are split over processes; gather them before they are sent")
        plain = merged(module)
        self._count += 1
        tag = f"fairlead-{self._run}-{self._count}-step{version}"
        folder = self._folder() / tag
        try:
            for server in self.servers:
                server.down = None  # another chance
            apart = tied(plain) and self._run_all(self._heads())
            save_model(untied(plain) if apart else plain, None, folder)
            probe = probe_of(plain, len(self.tokenizer))
            there = f"{self._seen_as.rstrip('/')}/{tag}" if self._seen_as is not None else str(folder.resolve())
            found = self._run_all(self._load(there, probe))
            verify(found, plain, probe, name=self.name, version=version, bound=self.bound)
            self._run_all(self._call_them(tag))
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise MissingResource(f"{folder}: the weights for vLLM could not be written: {error}") from error
            raise
        if self._kept is not None:
            shutil.rmtree(self._kept, ignore_errors=True)
        self._tag, self._kept = tag, folder

    async def _heads(self) -> bool:
        """Whether a server keeps an LM head beside its embeddings. Those that do not answer are out."""

        async def one(server: VllmServer) -> None:
            try:
                if server.head is None:
                    server.head = has_head(await server.digests())
            except Gone as gone:
                self._out(server, str(gone))

        await together([one(server) for server in self.servers])
        self._some()
        return any(server.head for server in self._live())

    async def _load(self, folder: str, probe: Tokens) -> dict[VllmServer, Seen]:
        """What each server that took the weights up shows of them."""
        found: dict[VllmServer, Seen] = {}

        async def one(server: VllmServer) -> None:
            try:
                await server.load(folder)
                found[server] = await shown(server, probe)
            except Gone as gone:
                self._out(server, str(gone))

        await together([one(server) for server in self._live()])
        self._some()
        return found

    async def _call_them(self, tag: str) -> None:
        async def one(server: VllmServer) -> None:
            try:
                await server.call_it(tag)
            except Gone as gone:
                self._out(server, str(gone))

        await together([one(server) for server in self._live()])
        self._some()

    # ------------------------------------------------------------------------------------------- drawing

    def draw(self, asked: Sequence[Asked], how: Drawing) -> list[list[Drawn]]:
        """`how.n` replies to each prompt, in order; the same key, seed and weights are drawn alike on every server.

        A server that fails, or no longer holds the weights of the last refresh, is out until the next; its prompts
        are drawn again on the others, and that is logged. Raises MissingResource where none is left, or where its
        log-probs would not be those `Drawn` promises, InputError for a prompt that a server refuses.
        """
        with self._lock:
            if self._tag is None:
                raise ValueError("the sampler has no weights yet: call refresh first")
            if not asked:
                return []
            for server in self._live():
                if (why := unfit(how, server.mode)) is not None:
                    raise MissingResource(f"{self.name}: {server.url}: {why}")
            drawn = self._run_all(self._draw(asked, how, parallel.world().rank, self._tag))
        return [
            [drawn_of(self.tokenizer, c.tokens, c.logprobs, c.finish, how.stop) for c in drawn[row]]
            for row in range(len(asked))
        ]

    async def _draw(self, asked: Sequence[Asked], how: Drawing, first: int, tag: str) -> dict[int, list[Choice]]:
        body = {
            "max_tokens": how.max_tokens,
            "temperature": how.temperature,
            "top_p": 1.0 if how.top_p is None else how.top_p,
            "top_k": how.top_k or 0,
            "stop": list(how.stop),
            "skip_special_tokens": False,  # its text is then the one that drawn_of looks for the stop texts in
            # as LocalSampler ends a reply: at the template's ends of turn, whatever generation_config.json says
            "stop_token_ids": self.stops,
            "ignore_eos": True,
        }
        # The replies of a group are seeded with seed, seed + 1, … by vLLM, which takes 63 bits.
        seeds = [int(s) for s in streams(how.seed, [one.key for one in asked], 0) >> 2]
        whole: dict[int, list[Choice]] = {}
        await self._confirm(self._live(), tag)
        while left := [row for row in range(len(asked)) if row not in whole]:
            self._some()
            live = self._live()
            got: dict[int, tuple[VllmServer, list[Choice]]] = {}

            async def one(row: int, server: VllmServer, got: dict[int, tuple[VllmServer, list[Choice]]]) -> None:
                try:
                    got[row] = (server, await server.draw(asked[row].tokens, how.n, {**body, "seed": seeds[row]}))
                except Gone as gone:
                    self._out(server, str(gone))
                except InputError as error:
                    raise add_place(error, row, asked[row].tokens) from None

            await together([one(row, live[(first + k) % len(live)], got) for k, row in enumerate(left)])
            await self._confirm(live, tag)  # one that was restarted between two answers drew with other weights
            whole |= {row: choices for row, (server, choices) in got.items() if server.down is None}
            lost = len(left) - sum(row in whole for row in left)
            if lost and self._live():
                self.moved += lost
                log.warning("%s: %d of %d prompts are drawn again on other servers", self.name, lost, len(asked))
        return whole

    async def _confirm(self, servers: Sequence[VllmServer], tag: str) -> None:
        """That each still holds the weights of the last refresh; one that does not is out."""

        async def one(server: VllmServer) -> None:
            try:
                version = await server.version()
            except Gone as gone:
                self._out(server, str(gone))
                return
            if version != tag:
                self._out(server, f"its weights are now {version!r}: it was restarted, or another run uses it")

        await together([one(server) for server in servers if server.down is None])

    # -------------------------------------------------------------------------------------------- inside

    def _live(self) -> list[VllmServer]:
        return [server for server in self.servers if server.down is None]

    def _out(self, server: VllmServer, why: str) -> None:
        if server.down is None:  # many requests may find out at once
            server.down = why
            log.warning("%s: %s is out until the next refresh: %s", self.name, server.url, why)

    def _some(self) -> None:
        if not self._live():
            reasons = "; ".join(f"{server.url}: {server.down}" for server in self.servers)
            raise MissingResource(
                f"{self.name}: no server is left to draw with ({reasons}). Start them again and resume the run."
            )

    def _run_all(self, work: Coroutine[Any, Any, Any]) -> Any:
        for server in self.servers:
            server.ready()
        return run(work)

    def _folder(self) -> Path:
        if self._weights is None:
            self._weights = Path(tempfile.mkdtemp(prefix="fairlead-weights-"))
            weakref.finalize(self, shutil.rmtree, self._weights, ignore_errors=True)
        return self._weights


def unfit(how: Drawing, mode: Literal["raw", "processed"] | None) -> str | None:
    """Why this server's log-probs are not those of the whole distribution at the drawing's temperature; None if so.

    vLLM tells either the model's own log-probs, before the temperature (raw, its default), or those of the
    distribution it drew from, after temperature, top-k and top-p (processed). Neither can be turned into the other
    without the logits of the whole vocabulary.
    """
    if how.temperature == 0:
        return None  # greedy: both are at temperature 1, and nothing is cut
    if how.temperature < COLDEST:
        return f"vLLM draws at temperature {COLDEST:g} when asked for {how.temperature:g}; ask for {COLDEST:g} or 0"
    cut = how.top_p not in (None, 1.0) or how.top_k not in (None, 0)
    if cut and how.temperature != 1:
        return (
            f"vLLM has no log-probs of the whole distribution at temperature {how.temperature:g} under top_p or top_k. "
            "Draw at temperature 1 (from a server with --logprobs-mode raw_logprobs), or without top_p and top_k"
        )
    if cut and mode != "raw":
        return (
            "its log-probs are those of what top_p and top_k leave over. Start it with --logprobs-mode raw_logprobs, "
            "or draw without top_p and top_k"
        )
    if how.temperature != 1 and mode != "processed":
        return (
            f"its log-probs are those at temperature 1, and replies are to be drawn at {how.temperature:g}. Start it "
            "with --logprobs-mode processed_logprobs, or draw at temperature 1"
        )
    return None


def sampler_of(
    spec: str,
    tokenizer: Any,
    *,
    rows: int = 64,
    weights: Path | str | None = None,
    seen_as: str | None = None,
    bound: float = BOUND,
    limits: Limits = ROLLOUT_LIMITS,
) -> Sampler:
    """What draws rollouts: `local`, `vllm/NAME@URL` or `vllm/NAME@URL1,URL2`. The rest is for the one or the other.

    Raises InputError for what is neither.
    """
    if spec == "local":
        return LocalSampler(tokenizer, rows=rows)
    model, urls = vllm_spec(spec)
    return VllmSampler(model, urls, tokenizer, weights=weights, seen_as=seen_as, bound=bound, limits=limits)


def vllm_spec(spec: str) -> tuple[str, list[str]]:
    """(model, URLs) of `vllm/NAME@URL1,URL2`. Raises InputError saying what is wrong with it."""
    wanted = "write local, vllm/NAME@http://HOST:PORT/v1, or several URLs after the @, with commas between"
    head, at, tail = spec.partition("@http")
    provider, slash, model = head.partition("/")
    if provider.lower() != "vllm" or not slash:
        known = provider.lower() in ("openai", "anthropic")
        why = "only vLLM takes new weights and tells token ids" if known else "rollouts come from here or from vLLM"
        raise InputError(f"rollouts {spec!r}: {why}; {wanted}")
    if not model or not at:
        raise InputError(f"rollouts {spec!r}: {'which model' if not model else 'where is the server'}? {wanted}")
    urls = [url.strip().rstrip("/") for url in f"http{tail}".split(",")]
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"rollouts {spec!r}: {url!r} is no URL; {wanted}")
        is_remote(f"vllm/{model}@{url}")  # the checks of any model's URL
        if not url.endswith("/v1"):
            raise InputError(f"rollouts {spec!r}: {url} is to end with /v1, as vLLM serves it")
    if len(set(urls)) < len(urls):
        raise InputError(f"rollouts {spec!r}: a URL stands there twice")
    return model, urls
