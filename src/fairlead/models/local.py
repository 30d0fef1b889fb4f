"""Local weights: any causal language model of Hugging Face's format, from a folder or the hub.

Loads safetensors only, never pickles and never code that comes with a model. Everything that can be wrong with a
folder is found before torch reads it, and said with the file's name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fairlead.engine import parallel
from fairlead.engine.checkpoint import atomic_folder, save_model, weights_hash
from fairlead.engine.decode import generate
from fairlead.engine.layout import Tree
from fairlead.engine.logprobs import score, score_next
from fairlead.errors import FairleadError, InputError, MissingResource
from fairlead.models import wanted
from fairlead.models.render import Ids, prepare
from fairlead.models.sharing import by_prefix
from fairlead.models.tokens import Draw, Drawn, TokenModel

WORDINGS = "prompts"
"""Folder inside a model folder that holds the model's own wordings of a critic's questions, one `.md` each."""


class LocalModel(TokenModel):
    """A causal language model in this process.

    module     the transformers model, for trainers
    tokenizer  its tokenizer, chat template set
    rows       replies decoded at once
    """

    def __init__(
        self,
        name: str,
        module: Any,
        tokenizer: Any,
        *,
        rows: int = 64,
        cut: Literal["left"] | None = None,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(name, tokenizer, _context(module), cut=cut, prompts=prompts)
        self.module, self.rows = module, rows
        length = getattr(getattr(module, "generation_config", None), "max_new_tokens", None)
        if isinstance(length, int) and length > 0:
            self.default_max_tokens = length
        self._hashed: tuple[tuple[tuple[int, int], ...], str] | None = None

    @property
    def lineage(self) -> str:
        """`wt:` and the hash of the weights as they are now."""
        state = tuple((t.data_ptr(), t._version) for t in self.module.state_dict(keep_vars=True).values())
        if self._hashed is None or self._hashed[0] != state:
            self._hashed = (state, f"wt:{weights_hash(self.module)[:16]}")
        return self._hashed[1]

    def with_weights(self, module: Any, *, name: str | None = None) -> LocalModel:
        """The same tokenizer, wordings and settings over other weights."""
        return LocalModel(name or self.name, module, self.tokenizer, rows=self.rows, cut=self.cut, prompts=self.prompts)

    def save(self, folder: Path | str) -> Path:
        """Write a model folder whole or not at all: weights, config, tokenizer, wordings.

        `open_model` and AutoModelForCausalLM load it. Raises OSError (a full disk) with the old content in place.
        Under torchrun all processes call it; where they name the same folder, process 0 writes and the others wait.
        """
        where = Path(folder)
        with parallel.writing(where.absolute()) as mine:
            if mine:
                with atomic_folder(where) as fresh:
                    save_model(self.module, self.tokenizer, fresh)
                    for key, text in (self.prompts or {}).items():
                        (fresh / WORDINGS).mkdir(exist_ok=True)
                        (fresh / WORDINGS / f"{key}.md").write_text(text, encoding="utf-8")
        return where

    def _draw(self, prompts: Sequence[Ids], draw: Draw) -> list[list[Drawn]]:
        completions = generate(
            self.module,
            prompts,
            n=draw.n,
            max_tokens=draw.max_tokens,
            temperature=draw.temperature,
            top_p=draw.top_p,
            top_k=draw.top_k,
            eos_ids=sorted(draw.stops),
            seed=draw.seed,
            rows=self.rows,
            each_step=wanted.check,
        )
        return [[Drawn(tuple(c.tokens), tuple(c.logprobs), c.finish) for c in group] for group in completions]

    def _score(self, prompts: Sequence[Ids], options: Sequence[Sequence[Ids]]) -> list[list[list[float]]]:
        if len({len(row) for row in options}) == 1 and all(len(option) == 1 for row in options for option in row):
            return self._score_next(prompts, options)
        trees = [Tree(tuple(p), tuple(tuple(o) for o in row)) for p, row in zip(prompts, options, strict=True)]
        flat = score(self.module, trees)
        values, sizes = iter(flat.logp_N.tolist()), iter(flat.count_R.tolist())
        return [[list(islice(values, next(sizes))) for _ in row] for row in options]

    def _score_next(self, prompts: Sequence[Ids], options: Sequence[Sequence[Ids]]) -> list[list[list[float]]]:
        """One-token options: neighbours that begin alike (one exchange, many principles) read the beginning once."""
        whole = [tuple(prompt) for prompt in prompts]
        trees = []
        for length, rows in by_prefix(whole):
            cut = length or len(whole[rows[0]]) - 1
            trees.append(Tree(whole[rows[0]][:cut], tuple(whole[row][cut:] for row in rows)))
        logp_RK = score_next(self.module, trees, [[option[0] for option in row] for row in options])
        return [[[value] for value in row] for row in logp_RK.tolist()]


def open_local(
    spec: str,
    *,
    name: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    rows: int = 64,
    cut: Literal["left"] | None = None,
    prompts: Mapping[str, str] | None = None,
    plain: Literal["say", "refuse"] = "say",
) -> LocalModel:
    """Open a model folder (`./dir`, `/dir`) or a hub name.

    device   "cpu", "cuda", …; a GPU where there is one by default (under torchrun, this process's own)
    dtype    "float32", "bfloat16", …; float32 on a CPU and the checkpoint's own on a GPU by default
    plain    what a tokenizer without a chat template gets: the plain one, said aloud, or a refusal

    Raises MissingResource (exit 4) for what is not there, InputError (exit 2) for what is there and cannot be used.
    """
    folder = spec.startswith(("./", "../", "/", "~"))
    where = str(Path(spec).expanduser()) if folder else spec
    if folder and not Path(where).is_absolute():
        where = f"./{where}"  # transformers takes anything else for a hub name
    if folder:
        _check_folder(Path(where), spec)
    place = device or str(parallel.world().device)
    tokenizer = _load_tokenizer(where, spec)
    prepare(tokenizer, spec, plain=plain)
    module: Any = _load_weights(where, spec, dtype or ("float32" if place == "cpu" else "auto"))
    if len(tokenizer) > module.get_input_embeddings().weight.shape[0]:
        raise InputError(
            f"{spec}: the tokenizer knows {len(tokenizer)} tokens and the model only "
            f"{module.get_input_embeddings().weight.shape[0]}; they do not belong together"
        )
    try:
        module = module.to(place).eval()
    except RuntimeError as error:
        raise MissingResource(f"{spec}: cannot be put on {place!r}: {str(error).splitlines()[0]}") from None
    wordings = prompts if prompts is not None else _wordings(Path(where)) if folder else None
    return LocalModel(name or spec, module, tokenizer, rows=rows, cut=cut, prompts=wordings)


# --------------------------------------------------------------------------------------------- loading


def _check_folder(folder: Path, spec: str) -> None:
    if not folder.exists():
        raise MissingResource(f"{spec}: no such folder. Name a model folder, a hub name, or PROVIDER/NAME.")
    if not folder.is_dir():
        raise InputError(f"{spec}: a file; name the model's folder (with config.json and model.safetensors)")
    config = _json(folder / "config.json", "a model folder has one; is this the right folder?")
    if "auto_map" in config:
        raise InputError(f"{folder / 'config.json'}: the model needs its own code (auto_map), which is never run here")
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    architectures = config.get("architectures") or []
    if architectures and not known & set(architectures):
        raise InputError(f"{spec}: a {architectures[0]}, not a causal language model; it cannot answer")
    if not architectures and config.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(f"{spec}: model_type {config.get('model_type')!r} is not a causal language model")
    for shard in _shards(folder, spec):
        _check_safetensors(shard)


def _json(file: Path, hint: str) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: missing; {hint}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not JSON ({error}); it may have been cut off while copying") from None
    if not isinstance(data, dict):
        raise InputError(f"{file}: expected a JSON object")
    return data


def _shards(folder: Path, spec: str) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(_json(index, "").get("weight_map", {}).values()))
        missing = [n for n in names if not (folder / n).exists()]
        if missing:
            raise InputError(f"{folder / missing[0]}: missing, though {index.name} names it; copy the whole folder")
        return [folder / n for n in names]
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"{folder / pickles[0]}: pickled weights can run code and are not loaded. "
            "Convert them to safetensors (save_pretrained of a current transformers does)."
        )
    raise InputError(f"{spec}: no model.safetensors in the folder")


def _check_safetensors(file: Path) -> None:
    """The header fits the file: a half-copied file is found here and not as noise in the replies."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= size - 8:
            raise InputError(f"{file}: not a whole safetensors file ({size:,} bytes); copy it again")
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{file}: its header cannot be read; copy it again") from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise InputError(f"{file}: {size:,} bytes where its header says {expected:,}; it was cut off, copy it again")


def _load_tokenizer(where: str, spec: str) -> Any:
    try:
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except OSError as error:
        raise _absent(spec, error) from None
    except (ValueError, KeyError, TypeError, ImportError) as error:
        raise InputError(f"{spec}: its tokenizer cannot be read: {_first_line(error)}") from None
    # It warns of texts beyond the context as if they were run. They are counted here, and told with what is done.
    tokenizer.deprecation_warnings = {"sequence-length-is-longer-than-the-specified-maximum": True}
    return tokenizer


def _load_weights(where: str, spec: str, dtype: str) -> Any:
    loader: Any = transformers.AutoModelForCausalLM
    logs: Any = transformers.utils.logging
    bars = logs.is_progress_bar_enabled()
    logs.disable_progress_bar()
    try:
        module, info = loader.from_pretrained(
            where, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except OSError as error:
        raise _absent(spec, error) from None
    except (ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        raise InputError(f"{spec}: the model cannot be loaded: {_first_line(error)}") from None
    finally:
        if bars:
            logs.enable_progress_bar()
    for kind, problem in (("missing_keys", "has no weights for"), ("mismatched_keys", "has other shapes for")):
        if info.get(kind):
            first = sorted(map(str, info[kind]))[0]
            raise InputError(
                f"{spec}: the checkpoint {problem} {first} ({len(info[kind])} in all); it is not this model"
            )
    _align(module)
    return module


def _align(module: Any) -> None:
    """Move weights that are mapped from a file to where torch puts its own.

    Products are rounded by kernels that are chosen by a matrix's alignment too, and a file gives any: without this a
    model that was saved and loaded again would differ from the one in memory in the last bit.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def _absent(spec: str, error: OSError) -> FairleadError:
    if spec.startswith(("./", "../", "/", "~")):
        return InputError(f"{spec}: {_first_line(error)}")
    offline = " (HF_HUB_OFFLINE is set: only what is cached is found)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return MissingResource(
        f"{spec}: no such model on the hub, or the hub is out of reach{offline}. "
        f"For a local folder write ./{spec}. ({_first_line(error)})"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _context(module: Any) -> int | None:
    for field in ("max_position_embeddings", "n_positions"):
        value = getattr(module.config, field, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _wordings(folder: Path) -> Mapping[str, str] | None:
    files = sorted((folder / WORDINGS).glob("*.md")) if (folder / WORDINGS).is_dir() else []
    return {file.stem: file.read_text(encoding="utf-8") for file in files} or None
