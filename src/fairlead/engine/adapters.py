"""Low-rank adapters on a module: put on, fold in, take out, keep.

A LoRA layer computes W x + s B A x with W frozen (Hu et al. 2021, arXiv 2106.09685, eq. 3). The adapted module shares
W with the module it was made from, so a policy under training costs its adapter and nothing more. `merged` gives a
plain model again, W + s B A summed in float32 and rounded once; it is what is measured, saved and trained on further.

peft is imported where it is needed: the engine works without it.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from fairlead.engine.checkpoint import atomic_folder, atomic_write
from fairlead.engine.forward import causal_lm

NAME = "default"  # peft's own name for the only adapter
NF4_STEP = 0.17  # half of NF4's widest step (0.152), and what quantising the blocks' scales and bfloat16 add
CONFIG, WEIGHTS, ABOUT = "adapter_config.json", "adapter_model.safetensors", "fairlead.json"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter apart from its model, in peft's format.

    config     what peft's LoraConfig is made from
    tensors    A and B of every layer, by peft's names
    base       what it belongs on: the caller's name for the weights (a lineage), "" where nobody said
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]
    base: str = ""


def is_adapted(module: nn.Module) -> bool:
    """Does the module carry adapters (is it a peft model)?"""
    return hasattr(module, "peft_config") and hasattr(module, "get_base_model")


def shared_copy(module: nn.Module) -> Any:
    """A copy of the module's structure over the same weights, all frozen. Nobody may change those in place."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        plain = type(parameter) is nn.Parameter  # a quantised weight carries its own state and never trains
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False) if plain else parameter
    return copy.deepcopy(module, memo)


def linear_layers(module: nn.Module) -> list[str]:
    """Names of the layers an adapter can sit on: all linear ones but the LM head."""
    from transformers.pytorch_utils import Conv1D

    head = causal_lm(module).get_output_embeddings()  # type: ignore[operator]
    return [n for n, m in module.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]


def with_adapter(module: nn.Module, settings: Mapping[str, Any], *, seed: int = 0) -> Any:
    """The module under a fresh LoRA adapter, sharing its weights; only A and B are trainable.

    settings    peft's: r, lora_alpha, lora_dropout, target_modules (names or their endings)
    B is 0, so at first the module computes what it did before; A is uniform in +-1/sqrt(inputs), drawn from `seed`
    alone. Dropout acts while gradients are recorded (see `Dropout`).

    Raises ValueError for targets that name no linear layer, or more than linear layers below the LM head.
    """
    if is_adapted(module):
        raise ValueError("it carries an adapter already: fold that in first (merged)")
    chosen = _targets(module, settings["target_modules"])
    turned = not any(isinstance(module.get_submodule(name), nn.Linear) for name in chosen)  # GPT-2 keeps W transposed
    plain = {**settings, "target_modules": chosen, "lora_dropout": 0.0, "fan_in_fan_out": turned}
    adapted = _wrap(shared_copy(module), plain)
    generator = np.random.default_rng(seed)
    with torch.no_grad():
        for number, layer in enumerate(layers_of(adapted).values()):
            weight = layer.lora_A[NAME].weight
            weight.copy_(torch.from_numpy(generator.uniform(-1, 1, tuple(weight.shape)) / weight.shape[1] ** 0.5))
            if settings.get("lora_dropout"):
                layer.lora_dropout[NAME] = Dropout(
                    float(settings["lora_dropout"]), seed, number, layer.lora_B[NAME].weight
                )
    return adapted


def _targets(module: nn.Module, targets: Any) -> list[str]:
    """Full names of the layers meant: every one, or those whose name ends with one of the given."""
    able = linear_layers(module)
    if targets == "all-linear":
        return able
    chosen = [name for name, _ in module.named_modules() if any(f".{name}".endswith(f".{t}") for t in targets)]
    unused = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in chosen)]
    kinds = ", ".join(sorted({name.rpartition(".")[2] for name in able})) or "none"
    if unused:
        raise ValueError(f"no layer is called {unused[0]!r}; those an adapter can sit on: {kinds}")
    wrong = sorted(set(chosen) - set(able))
    if wrong:
        raise ValueError(f"{wrong[0]} is no linear layer below the LM head; those an adapter can sit on: {kinds}")
    return chosen


def _wrap(module: nn.Module, settings: Mapping[str, Any]) -> Any:
    from peft import LoraConfig, PeftModel

    # No task type: peft's generation wrappers are not needed, and the engine unwraps the model anyway.
    with warnings.catch_warnings():  # peft reads a name that transformers means to drop; nothing a user could mend
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted = PeftModel(module, LoraConfig(**settings), adapter_name=NAME)
    return adapted.eval()


class Dropout(nn.Module):
    """LoRA's dropout on its own input, in force while gradients are recorded.

    Training here runs in evaluation mode, and scoring and decoding record no gradients, so that is what tells them
    apart. The mask is a function of the seed, the layer, its B and the numbers it falls on: a run that was killed draws
    the same masks again, and so does gradient checkpointing.
    """

    b: torch.Tensor
    falls_by_place = True  # read by forward.path_of: gradients of rows and of a forest cannot be compared

    def __init__(self, p: float, seed: int, number: int, b: torch.Tensor) -> None:
        super().__init__()
        self.p, self.seed, self.number = p, seed, number
        self.__dict__["b"] = b  # seen and not owned: it is the layer's parameter, and copied with the layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return x
        sums = torch.stack([x.detach().double().sum(), self.b.detach().double().square().sum()])
        words = sums.cpu().view(torch.int64).numpy().view(np.uint32).tolist()
        state = int(np.random.SeedSequence([self.seed % 2**32, self.number, *words]).generate_state(1, np.uint64)[0])
        generator = torch.Generator(x.device).manual_seed(state % 2**63)
        keep = torch.rand(x.shape, generator=generator, device=x.device) >= self.p
        return x * keep / (1 - self.p)


# ------------------------------------------------------------------------------------------------ folding in


def merged(module: nn.Module) -> Any:
    """The plain model that computes what the adapted one does; the module itself where it carries no adapter.

    Adapted weights are W + s B A, summed in float32 (float64 for a float64 model) and rounded once to the model's type;
    a quantised weight is dequantised. All others are shared with the module. Raises ValueError for adapters that are
    switched off, or of a kind that does more than add s B A.
    """
    if not is_adapted(module):
        return module
    _check_plain(module)
    weights = {name: _folded(layer) for name, layer in layers_of(module).items()}
    plain = shared_copy(module).unload()
    for name, weight in weights.items():
        layer = plain.get_submodule(name)
        if type(layer).__name__ == "Linear4bit":
            parent, _, own = name.rpartition(".")
            layer = _linear(weight, layer.bias)
            setattr(plain.get_submodule(parent), own, layer)
        layer.weight = nn.Parameter(weight)
    plain = dequantised(plain)
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    return plain.eval()


def _folded(layer: Any) -> torch.Tensor:
    base = layer.get_base_layer()
    weight = plain_weight(base)
    if layer.merged:  # peft has folded it into W already
        return weight.clone()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    whole = weight.to(dtype, copy=True)
    for name in layer.active_adapters:
        if name in layer.lora_A:
            delta = layer.lora_B[name].weight.to(dtype) @ layer.lora_A[name].weight.to(dtype) * layer.scaling[name]
            whole += delta.t() if layer.fan_in_fan_out else delta
    return whole.to(weight.dtype)


def layers_of(module: nn.Module) -> dict[str, Any]:
    """The LoRA layers by their name in the plain model."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in causal_lm(module).named_modules() if isinstance(layer, LoraLayer)}


def _check_plain(module: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = layers_of(module)
    tuned = {n for n, layer in causal_lm(module).named_modules() if isinstance(layer, BaseTunerLayer)}
    if not layers or tuned - set(layers):
        raise ValueError("its adapter is of another kind than LoRA: merge it with peft's merge_and_unload first")
    for name, layer in layers.items():
        if layer.disable_adapters:
            raise ValueError(f"the adapter on {name} is switched off; a model is folded as it computes: switch it on")
        if not layer.lora_A or layer.lora_variant or any(layer.lora_bias.values()):
            raise ValueError(f"the adapter on {name} does more than add s B A: use peft's merge_and_unload first")


# ------------------------------------------------------------------------------------------------ quantised bases


def quantised(module: nn.Module) -> Any:
    """A copy whose linear layers below the LM head hold NF4, 4 bits a weight (Dettmers et al. 2023, arXiv 2305.14314).

    It computes in the model's own type from dequantised weights, in training and in scoring alike. Needs bitsandbytes
    (ImportError), which may not support the platform (RuntimeError and others of its own). What it gives is checked:
    its CPU kernel (0.50) returns other weights, silently, for layers whose width is no multiple of 64.
    """
    import bitsandbytes as bnb

    plain = shared_copy(module)
    for name in linear_layers(plain):
        old = plain.get_submodule(name)
        if not isinstance(old, nn.Linear):
            raise ValueError(f"{name} is {type(old).__name__}; only plain linear layers can be quantised")
        new = bnb.nn.Linear4bit(
            old.in_features, old.out_features, old.bias is not None, compute_dtype=old.weight.dtype, quant_type="nf4"
        )
        new.weight = bnb.nn.Params4bit(
            old.weight.detach().clone(), requires_grad=False, quant_type="nf4", compress_statistics=True, module=new
        )
        new.bias = old.bias
        new.support_avx512bf16_for_cpu = False  # scoring would run in bfloat16 there and training would not
        parent, _, own = name.rpartition(".")
        setattr(plain.get_submodule(parent), own, new.to(old.weight.device))
        far = _furthest(old.weight.detach(), plain_weight(new))
        if not far <= NF4_STEP:
            raise RuntimeError(f"{name}: off by {far:.2f} of a block's largest weight, where NF4 allows {NF4_STEP}")
    plain.is_loaded_in_4bit = True  # what peft goes by
    return plain


def _furthest(weight: torch.Tensor, quantised: torch.Tensor) -> float:
    """The largest error as a share of the largest weight of its block of 64."""
    blocks = [nn.functional.pad(x.float().flatten(), (0, -x.numel() % 64)).view(-1, 64) for x in (weight, quantised)]
    return float(((blocks[0] - blocks[1]).abs() / blocks[0].abs().amax(1, keepdim=True).clamp_min(1e-30)).max())


def dequantised(module: Any) -> Any:
    """The module with its 4-bit layers, if any, as plain linear ones again (in place)."""
    for name, layer in list(module.named_modules()):
        if type(layer).__name__ == "Linear4bit":
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, _linear(plain_weight(layer), layer.bias))
    if getattr(module, "is_loaded_in_4bit", False):
        module.is_loaded_in_4bit = False
    return module


def plain_weight(layer: Any) -> torch.Tensor:
    """A layer's weight as numbers of the type it computes in."""
    if type(layer).__name__ != "Linear4bit":
        weight: torch.Tensor = layer.weight.detach()
        return weight
    import bitsandbytes as bnb

    whole: torch.Tensor = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    return whole.to(layer.compute_dtype or whole.dtype)


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    out, into = weight.shape
    layer = nn.Linear(into, out, bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach())
    return layer


# ------------------------------------------------------------------------------------------------ keeping one


def adapter_of(module: nn.Module, *, base: str = "") -> Adapter | None:
    """The adapter of an adapted module, copied; None where there is none. Only the one `with_adapter` put on."""
    if not is_adapted(module):
        return None
    from peft import get_peft_model_state_dict

    config: Any = module.peft_config[NAME]  # type: ignore[index]
    state = get_peft_model_state_dict(module, adapter_name=NAME, save_embedding_layers=False)
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in config.to_dict().items()}
    plain["inference_mode"] = True
    return Adapter(
        json.loads(json.dumps(plain, default=str)),
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()},
        base,
    )


def with_saved(module: nn.Module, adapter: Adapter) -> Any:
    """The module under an adapter that was kept, sharing its weights, frozen.

    Raises ValueError where the adapter's layers are not the module's.
    """
    from peft import LoraConfig, set_peft_model_state_dict

    known = set(LoraConfig.__dataclass_fields__)
    settings = {k: v for k, v in adapter.config.items() if k in known and k not in ("peft_type", "task_type")}
    missing = sorted(set(settings["target_modules"]) - {name for name, _ in module.named_modules()})
    if missing and all("." in name for name in settings["target_modules"]):
        raise ValueError(f"the adapter sits on {missing[0]}, which this model does not have")
    adapted = _wrap(shared_copy(module), {**settings, "lora_dropout": 0.0})
    try:
        told: Any = set_peft_model_state_dict(adapted, dict(adapter.tensors), adapter_name=NAME)
    except RuntimeError as error:  # other shapes
        raise ValueError(f"the adapter does not fit this model: {str(error).splitlines()[-1].strip()}") from error
    left = [name for name in told.missing_keys if "lora_" in name] + list(told.unexpected_keys)
    if left:
        raise ValueError(f"the adapter does not fit this model: {left[0]} ({len(left)} in all)")
    for parameter in adapted.parameters():
        parameter.requires_grad_(False)
    return adapted


def save_adapter(adapter: Adapter, folder: Path | str) -> None:
    """Write a folder that peft's `PeftModel.from_pretrained` loads, whole or not at all."""
    with atomic_folder(folder) as fresh:
        atomic_write(fresh / CONFIG, json.dumps(dict(adapter.config), indent=1, sort_keys=True))
        atomic_write(fresh / WEIGHTS, save(dict(adapter.tensors), metadata={"format": "pt"}))
        atomic_write(fresh / ABOUT, json.dumps({"base": adapter.base}))


def load_adapter(folder: Path | str) -> Adapter:
    """The adapter in a folder. Raises FileNotFoundError, and ValueError for what is damaged or no LoRA adapter."""
    where = Path(folder)
    try:
        config = json.loads((where / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(where / WEIGHTS)
        about = json.loads((where / ABOUT).read_text(encoding="utf-8")) if (where / ABOUT).exists() else {}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error.filename or where}: missing; is this an adapter's folder?") from error
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: damaged ({error}); copy it again") from error
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{where / CONFIG}: a {config.get('peft_type')} adapter; only LoRA is read here")
    return Adapter(config, tensors, str(about.get("base", "")))
