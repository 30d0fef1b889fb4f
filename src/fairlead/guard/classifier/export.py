"""A model as an ONNX graph with one row of features a text, and its int8 form.

The graph of a BERT encoder is written node by node (onnx, without torch) from the folder's safetensors. int8 is
onnxruntime's dynamic quantisation of the matrix products, weights per channel.

Axes: B texts, T tokens, D width, N attention heads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fairlead.errors import InputError, MissingResource
from fairlead.guard.classifier import arrays
from fairlead.guard.classifier.pooling import Mode

OPSET = 17


def onnx_of(folder: Path, *, unit: bool, mode: Mode = "mean") -> bytes:
    """The model in `folder` as ONNX, float32: an encoder's last hidden states pooled to one row (`mode`, as in
    `pooling.py`), the logits of a sequence classifier. A `model.onnx` that lies there (output 'embedding') is taken as
    it is; BERT encoders are written here;
    anything else transformers can open is traced, which needs torch.

    unit   divide an encoder's row by its length, as sentence encoders are mostly used; a tuned head wants it as it is
    """
    own = folder / "model.onnx"
    if own.exists():
        return own.read_bytes()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InputError(f"{folder}: has no config.json that can be read ({problem}); name a model's folder") from None
    if is_classifier(config) or config.get("model_type") != "bert" or _relative(config):
        return _traced(folder, config, unit, mode)
    weights = arrays.load((folder / "model.safetensors").read_bytes())
    prefix = "bert." if any(name.startswith("bert.") for name in weights) else ""
    return _Graph({n.removeprefix(prefix): w for n, w in weights.items()}, config).build(unit, mode)


def is_classifier(config: Mapping[str, Any]) -> bool:
    return any(name.endswith("ForSequenceClassification") for name in config.get("architectures") or ())


def _relative(config: Mapping[str, Any]) -> bool:
    return bool(config.get("position_embedding_type", "absolute") != "absolute")


def _traced(folder: Path, config: Mapping[str, Any], unit: bool, mode: Mode) -> bytes:
    """Any other architecture, by way of torch's exporter; weights from safetensors, no code from the folder."""
    import io
    import warnings

    import torch
    import transformers

    kind = transformers.AutoModelForSequenceClassification if is_classifier(config) else transformers.AutoModel
    try:
        model = kind.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, attn_implementation="eager"
        ).eval()
    except (OSError, ValueError) as problem:
        raise InputError(f"{folder}: cannot be opened ({str(problem).splitlines()[0]})") from None
    names = ["input_ids", "attention_mask"]
    if getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            told = self.model(**dict(zip(names, inputs, strict=True)))
            if is_classifier(config):
                logits: torch.Tensor = told.logits
                return logits
            hidden = told.last_hidden_state
            seen = inputs[1][:, :, None].to(hidden.dtype)
            row: torch.Tensor
            if mode == "cls":
                row = hidden[:, 0]
            elif mode == "max":
                row = (hidden + (seen - 1.0) * 1e9).max(1).values
            else:
                row = (hidden * seen).sum(1) / seen.sum(1)
            return torch.nn.functional.normalize(row, dim=1) if unit else row

    shape = (2, 7)
    inputs = {name: torch.ones(shape, dtype=torch.long) for name in names}
    inputs["attention_mask"][0, 4:] = 0  # were all seen, the mask would be traced away
    if "token_type_ids" in inputs:
        inputs["token_type_ids"][:] = 0
    out: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on shapes, which the axes below settle
        torch.onnx.export(
            Whole(), tuple(inputs.values()), out, input_names=names, output_names=["embedding"], opset_version=OPSET,
            dynamic_axes={**{name: {0: "B", 1: "T"} for name in names}, "embedding": {0: "B"}}, dynamo=False,
        )  # fmt: skip
    return bytes(out.getvalue())


def int8_of(onnx: bytes) -> bytes:
    """The same graph with its matrix products in int8: weights per channel, activations as they come."""
    import tempfile

    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as missing:
        raise MissingResource(
            f"int8 needs onnx and onnxruntime ({missing.name}): pip install 'fairlead[guard]'"
        ) from None
    with tempfile.TemporaryDirectory() as where:
        plain, small = Path(where) / "plain.onnx", Path(where) / "int8.onnx"
        plain.write_bytes(onnx)
        quantize_dynamic(
            str(plain),
            str(small),
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul", "Gather"],
        )
        return small.read_bytes()


class _Graph:
    """Nodes and weights of one graph, named as in the folder."""

    def __init__(self, weights: dict[str, NDArray[Any]], config: dict[str, Any]) -> None:
        try:
            from onnx import TensorProto, helper, numpy_helper
        except ImportError:
            raise MissingResource("to export an encoder needs onnx: pip install 'fairlead[guard]'") from None
        self.helper, self.of, self.types = helper, numpy_helper.from_array, TensorProto
        self.weights, self.config = weights, config
        self.nodes: list[Any] = []
        self.held: dict[str, Any] = {}
        self.count = 0

    def build(self, unit: bool, mode: Mode) -> bytes:
        """input_ids, token_type_ids, attention_mask (B, T) to embedding (B, D)."""
        h, types = self.helper, self.types
        layers, eps = int(self.config["num_hidden_layers"]), float(self.config.get("layer_norm_eps", 1e-12))
        x = self._embeddings(eps)
        seen = self.node("Cast", ["attention_mask"], to=types.FLOAT)
        hidden = self.node("Sub", [self.put("one", np.array(1, np.float32)), seen])
        scores = self.node("Mul", [hidden, self.put("low", np.array(-1e9, np.float32))])
        mask = self.node("Unsqueeze", [scores, self.put("axes12", np.array([1, 2], np.int64))])  # (B, 1, 1, T)
        for layer in range(layers):
            x = self._layer(x, mask, f"encoder.layer.{layer}", eps)
        row = self._pooled(x, seen, scores, mode)
        if unit:
            length = self.node("ReduceL2", [row], axes=[1], keepdims=1)
            row = self.node("Div", [row, self.node("Max", [length, self.put("tiny", np.array(1e-12, np.float32))])])
        self.nodes.append(h.make_node("Identity", [row], ["embedding"]))
        inputs = [
            h.make_tensor_value_info(name, types.INT64, ["B", "T"])
            for name in ("input_ids", "token_type_ids", "attention_mask")
        ]
        width = int(self.config["hidden_size"])
        output = h.make_tensor_value_info("embedding", types.FLOAT, ["B", width])
        graph = h.make_graph(self.nodes, "encoder", inputs, [output], list(self.held.values()))
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", OPSET)], producer_name="fairlead", ir_version=8)
        return bytes(model.SerializeToString())

    def _pooled(self, x: str, seen: str, scores: str, mode: Mode) -> str:
        """One row (B, D) of hidden states (B, T, D). `seen` is 1 where a token is, `scores` far below 0 elsewhere."""
        if mode == "cls":
            return self.node("Gather", [x, self.put("first", np.array(0, np.int64))], axis=1)
        axis2 = self.put("axis2", np.array([2], np.int64))
        if mode == "max":
            return self.node(
                "ReduceMax", [self.node("Add", [x, self.node("Unsqueeze", [scores, axis2])])], axes=[1], keepdims=0
            )
        seen3 = self.node("Unsqueeze", [seen, axis2])
        axis1 = self.put("axis1", np.array([1], np.int64))
        total = self.node("ReduceSum", [self.node("Mul", [x, seen3]), axis1], keepdims=0)
        return self.node("Div", [total, self.node("ReduceSum", [seen3, axis1], keepdims=0)])

    def _embeddings(self, eps: float) -> str:
        words = self.node("Gather", [self.weight("embeddings.word_embeddings.weight"), "input_ids"])
        kinds = self.node("Gather", [self.weight("embeddings.token_type_embeddings.weight"), "token_type_ids"])
        shape = self.node("Shape", ["input_ids"], start=1, end=2)
        places = self.node(
            "Slice",
            [
                self.weight("embeddings.position_embeddings.weight"), self.put("zero", np.array([0], np.int64)), shape,
                self.put("axis0", np.array([0], np.int64)),
            ],
        )  # fmt: skip
        return self._norm(self.node("Add", [self.node("Add", [words, kinds]), places]), "embeddings.LayerNorm", eps)

    def _layer(self, x: str, mask: str, name: str, eps: float) -> str:
        heads = int(self.config["num_attention_heads"])
        width = int(self.config["hidden_size"])
        each = width // heads
        apart = self.put("apart", np.array([0, 0, heads, each], np.int64))
        query, key, value = (
            self.node("Reshape", [self._linear(x, f"{name}.attention.self.{part}"), apart])
            for part in ("query", "key", "value")
        )
        query = self.node("Transpose", [query], perm=[0, 2, 1, 3])
        key = self.node("Transpose", [key], perm=[0, 2, 3, 1])
        value = self.node("Transpose", [value], perm=[0, 2, 1, 3])
        scale = self.put("scale", np.array(each**-0.5, np.float32))
        scores = self.node("Add", [self.node("Mul", [self.node("MatMul", [query, key]), scale]), mask])
        mixed = self.node("MatMul", [self.node("Softmax", [scores], axis=-1), value])
        joined = self.node(
            "Reshape",
            [self.node("Transpose", [mixed], perm=[0, 2, 1, 3]), self.put("joined", np.array([0, 0, width], np.int64))],
        )
        attended = self._linear(joined, f"{name}.attention.output.dense")
        x = self._norm(self.node("Add", [attended, x]), f"{name}.attention.output.LayerNorm", eps)
        inner = self._gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(
            self.node("Add", [self._linear(inner, f"{name}.output.dense"), x]), f"{name}.output.LayerNorm", eps
        )

    def _linear(self, x: str, name: str) -> str:
        weight = np.ascontiguousarray(self.weights[f"{name}.weight"].astype(np.float32).T)
        product = self.node("MatMul", [x, self.put(f"{name}.weight_T", weight)])
        return self.node("Add", [product, self.weight(f"{name}.bias")])

    def _norm(self, x: str, name: str, eps: float) -> str:
        return self.node(
            "LayerNormalization", [x, self.weight(f"{name}.weight"), self.weight(f"{name}.bias")], epsilon=eps
        )

    def _gelu(self, x: str) -> str:
        if self.config.get("hidden_act", "gelu") != "gelu":
            raise InputError(f"the encoder's activation is {self.config['hidden_act']!r}; known here: gelu")
        root = self.put("root2", np.array(2**0.5, np.float32))
        inner = self.node(
            "Add", [self.node("Erf", [self.node("Div", [x, root])]), self.put("one", np.array(1, np.float32))]
        )
        return self.node("Mul", [self.node("Mul", [x, inner]), self.put("half", np.array(0.5, np.float32))])

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        self.count += 1
        name = f"{kind.lower()}_{self.count}"
        self.nodes.append(self.helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str) -> str:
        if name not in self.weights:
            raise InputError(f"the encoder has no {name}: it is not of BERT's architecture")
        return self.put(name, self.weights[name].astype(np.float32))

    def put(self, name: str, array: NDArray[Any]) -> str:
        if name not in self.held:
            self.held[name] = self.of(np.ascontiguousarray(array), name)
        return name
