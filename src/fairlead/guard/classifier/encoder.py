"""A sentence encoder at serving time: tokenizers and onnxruntime, without torch.

B texts of a batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import InputError, MissingResource
from fairlead.guard.classifier.reading import Pair

Floats = NDArray[np.float32]
BATCH = 16  # texts of one call of the session; more gains nothing on a CPU and holds others up


@dataclass(frozen=True)
class Encoder:
    """`embed` gives a row of features for every pair (B, D): an encoder's last hidden states, pooled as its folder
    says, or the logits of a sequence classifier."""

    session: Any
    tokenizer: Any

    @cached_property
    def _inputs(self) -> tuple[str, ...]:
        """What the graph asks for: not every model knows types of tokens."""
        return tuple(i.name for i in self.session.get_inputs())

    @staticmethod
    def of_bytes(onnx: bytes, tokenizer: bytes, longest: int, threads: int = 1) -> Encoder:
        return Encoder(_session(onnx, threads), _cutting(_tokenizers().Tokenizer.from_str(tokenizer.decode()), longest))

    def embed(self, pairs: Sequence[Pair]) -> Floats:
        """Rows are sorted by length, so a batch holds little padding; the result has the order of `pairs`."""
        if not pairs:
            return np.zeros((0, 0), np.float32)
        found = self.tokenizer.encode_batch([(a, b) if b else a for a, b in pairs])
        order = sorted(range(len(found)), key=lambda i: len(found[i].ids))
        bits: list[Floats] = []
        for k in range(0, len(order), BATCH):
            batch = [found[i] for i in order[k : k + BATCH]]
            inputs = padded([(e.ids, e.type_ids) for e in batch])
            (row_BD,) = self.session.run(["embedding"], {name: inputs[name] for name in self._inputs})
            bits.append(row_BD)
        sorted_BD = np.concatenate(bits)
        out = np.empty_like(sorted_BD)
        out[order] = sorted_BD
        return out


@dataclass(frozen=True)
class EncoderScorer:
    """A linear head per principle on the encoder's embedding."""

    encoder: Encoder
    weight_HD: Floats
    bias_H: Floats

    def logits(self, pairs: Sequence[Pair]) -> Floats:
        return np.asarray(self.encoder.embed(pairs) @ self.weight_HD.T + self.bias_H, np.float32)


def padded(ids: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, NDArray[np.int64]]:
    """The three inputs of a BERT graph (B, T) for token ids and types."""
    longest = max(len(tokens) for tokens, _ in ids)
    inputs = {
        name: np.zeros((len(ids), longest), np.int64) for name in ("input_ids", "token_type_ids", "attention_mask")
    }
    for b, (tokens, types) in enumerate(ids):
        inputs["input_ids"][b, : len(tokens)] = tokens
        inputs["token_type_ids"][b, : len(types)] = types
        inputs["attention_mask"][b, : len(tokens)] = 1
    return inputs


def open_tokenizer(folder: Path, longest: int) -> Any:
    """The tokenizer of a folder (tokenizer.json), cutting at `longest` tokens and padding nothing."""
    file = folder / "tokenizer.json"
    if not file.exists():
        raise InputError(f"{folder}: has no tokenizer.json; name the folder of an encoder as transformers saves it")
    return _cutting(_tokenizers().Tokenizer.from_file(str(file)), longest)


def _cutting(tokenizer: Any, longest: int) -> Any:
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest, strategy="longest_first")
    return tokenizer


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise MissingResource("an encoder needs tokenizers: pip install 'fairlead[guard]'") from None
    return tokenizers


def _session(onnx: bytes, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingResource("an encoder needs onnxruntime: pip install 'fairlead[guard]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
