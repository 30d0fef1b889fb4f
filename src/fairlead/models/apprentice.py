"""The apprentice: local weights where torch is installed, a NumPy forward pass where it is not.

Both draw the same random numbers, so with one seed they give the same replies wherever float32 rounding leaves the
draw alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray

from fairlead import apprentice
from fairlead.apprentice import bpe, forward
from fairlead.engine import counter
from fairlead.errors import InputError, MissingResource
from fairlead.models import torch_is_here, wanted
from fairlead.models.protocol import Model
from fairlead.models.render import Ids, prepare
from fairlead.models.tokens import Draw, Drawn, TokenModel


def open_apprentice(
    *, torch: bool | None = None, folder: Path | None = None, cut: Literal["left"] | None = None, **local: Any
) -> Model:
    """The shipped base model. `torch`: True insists on torch, False on NumPy, None takes torch where it is installed.

    Raises MissingResource where torch is asked for and absent, or the shipped weights are not there.
    """
    where = folder or apprentice.path()
    present = torch_is_here()
    if torch is True and not present:
        raise MissingResource("the apprentice on torch needs torch and transformers: pip install 'fairlead[train]'")
    if not (where / "model.safetensors").exists():
        raise MissingResource(f"{where}: the apprentice's weights are not here; reinstall, or raise them with pretrain")
    if present if torch is None else torch:
        from fairlead.models.local import open_local

        return open_local(str(where.resolve()), name="apprentice", cut=cut, prompts=wordings(), **local)
    if local:
        raise InputError(f"the apprentice on NumPy takes no {sorted(local)[0]!r}; that is for torch")
    return NumpyApprentice(where, cut=cut)


def wordings() -> Mapping[str, str] | None:
    """The apprentice's own wordings of a critic's questions."""
    files = sorted((Path(apprentice.__file__).parent / "prompts").glob("*.md"))
    return {file.stem: file.read_text(encoding="utf-8") for file in files} or None


class NumpyApprentice(TokenModel):
    """The apprentice without torch: slower by a few times, the same answers. It cannot be trained."""

    capabilities: ClassVar[frozenset[str]] = TokenModel.capabilities - {"weights"}

    def __init__(self, folder: Path, *, cut: Literal["left"] | None = None, name: str = "apprentice") -> None:
        self.folder = folder
        self._weights = forward.load(folder)
        tokenizer = PlainTokenizer(folder)
        prepare(tokenizer, str(folder))
        context = self._weights.config["max_position_embeddings"]
        super().__init__(name, tokenizer, int(context), cut=cut, prompts=wordings())

    @property
    def lineage(self) -> str:
        """`wt:` and the hash of the weights."""
        return f"wt:{self._hash}"

    @cached_property
    def _hash(self) -> str:
        return _weights_hash(self._weights)

    def _draw(self, prompts: Sequence[Ids], draw: Draw) -> list[list[Drawn]]:
        streams = counter.streams(
            draw.seed, np.repeat(np.arange(len(prompts)), draw.n), np.tile(np.arange(draw.n), len(prompts))
        ).reshape(len(prompts), draw.n)
        out: list[list[Drawn]] = [[]] * len(prompts)
        for rows, ids_PT in _by_length(prompts):
            limit = min(draw.max_tokens, (self.context or 10**9) - ids_PT.shape[1])
            drawn = self._sample(ids_PT, streams[rows], draw, limit)
            for i, row in enumerate(rows):
                out[row] = drawn[i * draw.n : (i + 1) * draw.n]
        return out

    def _sample(self, ids_PT: NDArray[Any], stream_PN: NDArray[np.uint64], draw: Draw, limit: int) -> list[Drawn]:
        """n replies for prompts of equal length: one prefill, then all rows a step at a time, finished ones dropped."""
        hidden, cache = forward.hidden(self._weights, ids_PT)
        rows_B = np.repeat(np.arange(len(ids_PT)), draw.n)
        cache, last_BD, stream_B = cache.take(rows_B), hidden[rows_B, -1], stream_PN.reshape(-1)
        live_B = np.arange(len(rows_B))
        tokens: list[list[int]] = [[] for _ in live_B]
        logps: list[list[float]] = [[] for _ in live_B]
        for step in range(limit):
            uniform_B = counter.uniforms(stream_B[live_B], step)
            token_B, logp_B = choose(forward.logits(self._weights, last_BD), draw, uniform_B)
            for row, token, logp in zip(live_B, token_B, logp_B, strict=True):
                tokens[row].append(int(token))
                logps[row].append(float(logp))
            going_B = ~np.isin(token_B, list(draw.stops))
            live_B, token_B = live_B[going_B], token_B[going_B]
            if not len(live_B) or step + 1 == limit:
                break
            wanted.check()
            hidden, cache = forward.hidden(self._weights, token_B[:, None], cache.take(np.flatnonzero(going_B)))
            last_BD = hidden[:, -1]
        return [
            Drawn(tuple(ids), tuple(values), "stop" if ids[-1] in draw.stops else "length")
            for ids, values in zip(tokens, logps, strict=True)
        ]

    def _score(self, prompts: Sequence[Ids], options: Sequence[Sequence[Ids]]) -> list[list[list[float]]]:
        out: list[list[list[float]]] = [[[] for _ in row] for row in options]
        for rows, ids_PT in _by_length(prompts):
            hidden, cache = forward.hidden(self._weights, ids_PT)
            places = [(i, k) for i, row in enumerate(rows) for k in range(len(options[row]))]
            for group, ids_BT in _by_length([options[rows[i]][k] for i, k in places]):
                at = np.array([places[g][0] for g in group])
                states = hidden[at, -1:]
                if ids_BT.shape[1] > 1:
                    more, _ = forward.hidden(self._weights, ids_BT[:, :-1], cache.take(at))
                    states = np.concatenate([states, more], axis=1)
                logp_BTV = forward.log_softmax(forward.logits(self._weights, states))
                logp_BT = np.take_along_axis(logp_BTV, ids_BT[:, :, None], axis=2)[:, :, 0]
                for g, values in zip(group, logp_BT, strict=True):
                    i, k = places[g]
                    out[rows[i]][k] = [float(v) for v in values]
        return out


def choose(
    logits_BV: NDArray[Any], draw: Draw, uniform_B: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Next tokens and their log-probs: greedy, or inverse CDF with one uniform per row, as in engine/sampling.py."""
    rows = np.arange(len(logits_BV))
    if draw.temperature == 0:
        token_B = logits_BV.argmax(-1)
        return token_B, forward.log_softmax(logits_BV)[rows, token_B]
    z_BV = logits_BV / logits_BV.dtype.type(draw.temperature)
    z_BV = z_BV - z_BV.max(-1, keepdims=True)
    p_BV = np.exp(z_BV)
    mass_B = p_BV.sum(-1)
    if draw.top_k is not None and draw.top_k < p_BV.shape[-1]:
        floor_B1 = np.partition(p_BV, -draw.top_k, axis=-1)[:, -draw.top_k, None]
        p_BV = np.where(p_BV < floor_B1, 0, p_BV)
    if draw.top_p is not None and draw.top_p < 1:
        sorted_BV = -np.sort(-p_BV, axis=-1)
        before_BV = sorted_BV.cumsum(-1) - sorted_BV
        inside_BV = before_BV < draw.top_p * sorted_BV.sum(-1, keepdims=True)
        floor_B1 = np.where(inside_BV, sorted_BV, np.inf).min(-1, keepdims=True)
        p_BV = np.where(p_BV < floor_B1, 0, p_BV)
    cdf_BV = p_BV.cumsum(-1, dtype=np.float64)
    target_B1 = cdf_BV[:, -1:] * uniform_B[:, None]
    token_B = (cdf_BV <= target_B1).sum(-1)  # the first token whose cumulated mass exceeds the target
    return token_B, z_BV[rows, token_B] - np.log(mass_B)


def _by_length(sequences: Sequence[Ids]) -> list[tuple[list[int], NDArray[np.int64]]]:
    """Rows of equal length together: (their indices, their ids)."""
    groups: dict[int, list[int]] = {}
    for row, ids in enumerate(sequences):
        groups.setdefault(len(ids), []).append(row)
    return [(rows, np.array([sequences[row] for row in rows], dtype=np.int64)) for rows in groups.values()]


def _weights_hash(weights: forward.Weights) -> str:
    """What engine/checkpoint.py gives for the same weights in torch: a model is itself either way."""
    digest = hashlib.sha256()
    for name in sorted(weights.arrays):
        array = np.ascontiguousarray(weights.arrays[name])
        digest.update(f"{name}|torch.{array.dtype}|{array.shape}|".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]


class PlainTokenizer:
    """The tokenizer of a model folder without transformers: what `render` needs of one, and the chat template."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __init__(self, folder: Path) -> None:
        self._bpe = bpe.load(folder)
        self.name_or_path = str(folder)
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        file = folder / "chat_template.jinja"
        template = file.read_text(encoding="utf-8") if file.exists() else config.get("chat_template")
        self.chat_template: str | None = template
        self._names = {name: self._name(config.get(f"{name}_token")) for name in ("bos", "eos", "pad", "unk")}
        added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")).get("added_tokens", ())
        self.added_tokens_decoder: dict[int, str] = {int(t["id"]): str(t["content"]) for t in added}
        ids = {text: token for token, text in self.added_tokens_decoder.items()}
        self.bos_token_id, self.eos_token_id = (ids.get(self._names[n] or "") for n in ("bos", "eos"))
        self._ids = ids
        self._controls = re.compile("(" + "|".join(map(re.escape, sorted(ids, key=len, reverse=True))) + ")")
        self._compile = lru_cache(ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string)
        self._encode = lru_cache(maxsize=4096)(self._bpe.encode)

    @staticmethod
    def _name(entry: Any) -> str | None:
        return entry.get("content") if isinstance(entry, dict) else entry

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids: list[int] = []
        for i, piece in enumerate(self._controls.split(text)):
            ids += [self._ids[piece]] if i % 2 else self._encode(piece)
        return {"input_ids": ids}

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        text: list[str] = []
        run: list[int] = []
        for token in [*ids, None]:
            name = self.added_tokens_decoder.get(token) if token is not None else ""
            if name is None and token is not None:
                run.append(token)
                continue
            text.append(self._bpe.decode(run))
            run = []
            text.append("" if skip_special_tokens or name is None else name)
        return "".join(text)

    def apply_chat_template(self, conversation: Any, *, tokenize: bool = False, **variables: Any) -> str:
        names = {f"{name}_token": text or "" for name, text in self._names.items()}
        return self._compile(self.chat_template or "").render(messages=conversation, **names, **variables)
