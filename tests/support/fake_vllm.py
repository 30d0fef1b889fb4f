"""A server in this process that speaks what rollouts need of vLLM, over a real tiny model, and misbehaves on demand.

It draws with the engine's decoder from the weights it has loaded, and keeps a prefix cache in the one way that can go
wrong: a prompt it has seen is answered with the weights of that time until the cache is reset.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fairlead.engine.decode import generate
from fairlead.engine.layout import Tree
from fairlead.engine.logprobs import score

Plan = Callable[[str, int], str | None]
"""What befalls the i-th request to a path (counted by path): None, an HTTP status as text, or a fault (see Handler)."""


class FakeVllm(ThreadingHTTPServer):
    """One server, started with `with`. `mode`: raw or processed log-probs. `dev` False: without vLLM's own paths."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, module: Any, tokenizer: Any, *, mode: str = "raw", dev: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.first = copy.deepcopy(module)
        self.tokenizer, self.mode, self.dev = tokenizer, mode, dev
        self.plan: Plan = lambda path, i: None
        self.deaf = False  # says that it has loaded weights, and has not
        self.stuck_head = False  # keeps its LM head when it loads, as vLLM's CPU build does where it is tied
        self.held = False  # does not let go of its prefix cache
        self.counts: dict[str, int] = {}
        self.drawn: list[dict[str, Any]] = []  # bodies of the requests that were answered with replies
        self.gate = threading.Lock()
        self.restart()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def restart(self) -> None:
        """As after a crash: the weights it was first given, and no name for them."""
        self.module, self.version = copy.deepcopy(self.first), "default"
        self.cache: dict[tuple[int, ...], Any] = {}

    def asked(self) -> list[tuple[int, ...]]:
        """The prompts it drew for, the probes left out."""
        return [tuple(body["prompt"]) for body in self.drawn if "stop" in body]

    def __enter__(self) -> FakeVllm:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        if self.socket.fileno() != -1:
            self.shutdown()
            self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A planned fault closed the connection."""

    # ----------------------------------------------------------------------------------------- what it does

    def load(self, folder: str) -> None:
        state = load_file(Path(folder) / "model.safetensors")
        if not self.deaf:
            fresh = copy.deepcopy(self.module)
            missing = fresh.load_state_dict(state, strict=False).missing_keys
            assert set(missing) <= {"lm_head.weight"}, missing
            fresh.tie_weights()
            if self.stuck_head:
                fresh.lm_head.weight = torch.nn.Parameter(self.module.lm_head.weight.detach().clone())
            self.module = fresh

    def digests(self) -> dict[str, str]:
        return {
            f"dp0:pp0:pcp0:tp0:{name}": hashlib.sha256(p.detach().numpy().tobytes()).hexdigest()
            for name, p in self.module.named_parameters()
        }

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        prompt, n, heat = tuple(body["prompt"]), body["n"], body["temperature"]
        stops = body.get("stop_token_ids", [])
        assert body["ignore_eos"] and body["logprobs"] == 0 and body["return_token_ids"]
        with self.gate:
            module = self.cache.setdefault(prompt, self.module)
            [group] = generate(
                module, [prompt], n=n, max_tokens=body["max_tokens"], temperature=heat, seed=body["seed"],
                top_p=body["top_p"] if body["top_p"] < 1 else None, top_k=body["top_k"] or None, eos_ids=stops,
            )  # fmt: skip
            replies = [self._cut(tuple(c.tokens), c.finish, body.get("stop", [])) for c in group]
            at = heat if heat and self.mode == "processed" else 1.0
            flat = score(module, [Tree(prompt, tuple(tokens for tokens, _ in replies))], temperature=at).logp_N
            self.drawn.append(body)
        parts = torch.split(flat, [len(tokens) for tokens, _ in replies])
        return {
            "choices": [
                {
                    "index": k, "text": "", "finish_reason": finish, "token_ids": list(tokens),
                    "prompt_token_ids": list(prompt), "logprobs": {"token_logprobs": logp.tolist()},
                }
                for k, ((tokens, finish), logp) in enumerate(zip(replies, parts, strict=True))
            ][::-1]
        }  # fmt: skip

    def _cut(self, tokens: tuple[int, ...], finish: str, stop: list[str]) -> tuple[tuple[int, ...], str]:
        """As vLLM does it: the reply ends with the token that completes a stop text."""
        for k in range(1, len(tokens) + 1):
            if any(text in self.tokenizer.decode(tokens[:k]) for text in stop):
                return tokens[:k], "stop"
        return tokens, finish


class Handler(BaseHTTPRequestHandler):
    """Faults: hang (no answer), reset (connection closed), short (a reply is missing), torn (a log-prob is missing),
    other (it read another prompt), text (not JSON), restart (it comes back with its first weights, and then answers),
    die (it is gone for good)."""

    server: FakeVllm

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_GET(self) -> None:
        self._serve({})

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers.get("Content-Length", "0"))) or b"{}"))

    def _serve(self, body: dict[str, Any]) -> None:
        server = self.server
        with server.gate:
            i = server.counts.get(self.path, 0)
            server.counts[self.path] = i + 1
        fault = server.plan(self.path, i)
        if fault == "hang":
            time.sleep(2)
            return
        if fault == "die":
            threading.Thread(target=server.kill).start()
        if fault in ("reset", "die"):
            self.connection.close()
            return
        if fault == "restart":
            server.restart()
        if fault is not None and fault.isdigit():
            self._send({"error": {"message": "planned"}}, int(fault))
            return
        self._answer(body, fault)

    def _answer(self, body: dict[str, Any], fault: str | None) -> None:
        server = self.server
        if self.path == "/v1/completions":
            room = 128 - len(body["prompt"])
            if body["max_tokens"] > room:
                self._send({"error": {"message": "This model's maximum context length is 128 tokens"}}, 400)
                return
            data = server.complete(body)
            if fault == "short":
                data["choices"].pop()
            if fault == "torn":
                data["choices"][0]["logprobs"]["token_logprobs"].pop()
            if fault == "other":
                for row in data["choices"]:
                    row["prompt_token_ids"] = row["prompt_token_ids"][1:]
            self._send(data, text=fault == "text")
        elif not server.dev:
            self._send({"detail": "Not Found"}, 404)
        elif self.path == "/collective_rpc":
            try:
                server.load(body["kwargs"]["weights_path"])
            except FileNotFoundError as error:
                self._send({"error": {"message": str(error), "type": "InternalServerError"}}, 500)
                return
            self._send({"results": [None]})
        elif self.path == "/reset_prefix_cache":
            if not server.held:
                server.cache.clear()
            self._send({"success": not server.held})
        elif self.path == "/update_weight_version":
            server.version = body["new_version"]
            self._send({"success": True})
        elif self.path == "/weight_info":
            self._send({"weight_version": server.version})
        elif self.path == "/weight_checker":
            self._send({"checksums": server.digests()})
        else:
            self._send({"detail": "Not Found"}, 404)

    def _send(self, data: dict[str, Any], status: int = 200, *, text: bool = False) -> None:
        raw = b"<html>busy</html>" if text else json.dumps(data).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
