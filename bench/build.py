"""A model of any catalogue shape with random weights, as transformers and peft would have loaded it (imports torch).

The modules are made on the CPU without values, which takes neither time nor memory there; each weight is then filled
on the device, and a Linear that is to be 4 bit is packed at once. So a 70B model in nf4 never lies on the card whole.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from typing import Any

from bench.shapes import Config, for_transformers

SPREAD = 0.02  # standard deviation of the weights: that of most families' own initialisation
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
SEED = 20


def build(config: Config, setup: Mapping[str, Any], device: str) -> Any:
    """The model on ``device``: base weights in ``param_dtype`` (None: as stored), 4-bit where asked, with adapters."""
    import torch

    torch.manual_seed(SEED)
    model = skeleton(config, setup)
    if setup["method"] == "qlora":
        mark_quantized(model, setup)
    materialise(model, torch.device(device), setup)
    if setup["method"] in ("lora", "dora", "qlora"):
        return with_adapters(model, setup)
    return model


def skeleton(config: Config, setup: Mapping[str, Any]) -> Any:
    """The modules on the CPU, with storage that nothing has touched."""
    import torch
    import transformers

    made = transformers.AutoConfig.for_model(**for_transformers(config))
    word = DTYPES.get(setup["param_dtype"] or "") or str(config.get("torch_dtype", "float32"))
    with _no_init():
        model = transformers.AutoModelForCausalLM.from_config(
            made, dtype=getattr(torch, word), attn_implementation=setup["attention"]
        )
    model.tie_weights()  # a part of the initialisation that was left out
    return model


def _no_init() -> Any:
    """transformers' own switch for models whose weights are set elsewhere, under the name of its version."""
    for name in ("transformers.initialization", "transformers.modeling_utils"):
        with contextlib.suppress(ImportError, AttributeError):
            return importlib.import_module(name).no_init_weights()
    return contextlib.nullcontext()


def materialise(model: Any, device: Any, setup: Mapping[str, Any]) -> None:
    """Fill every parameter on the device and bring the buffers there; tied weights stay tied."""
    import torch

    packed = packed_linears(model) if setup["method"] == "qlora" else {}
    done: dict[int, Any] = {}
    for name, module in list(model.named_modules()):
        if name in packed:
            model.set_submodule(name, _packed(module, setup, device))
            continue
        for key, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in done:
                    filled = _filled(key, parameter, device)
                    # the old parameter is kept beside the new one, so that its id is not given to another
                    done[id(parameter)] = (parameter, torch.nn.Parameter(filled, parameter.requires_grad))
                module._parameters[key] = done[id(parameter)][1]
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(device)


def _filled(key: str, parameter: Any, device: Any) -> Any:
    """Values for one parameter: biases zero, vectors one, matrices normal."""
    import torch

    made = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
    if key.endswith("bias"):
        return made.zero_()
    return made.fill_(1) if parameter.dim() < 2 else made.normal_(0, SPREAD)


def mark_quantized(model: Any, setup: Mapping[str, Any]) -> None:
    """What transformers sets on a model that it loads in 4 bit: the quantizer, and what peft and Trainer ask for."""
    import torch
    import transformers
    from transformers.quantizers import AutoHfQuantizer

    wanted = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=setup["double_quantization"],
        bnb_4bit_compute_dtype=getattr(torch, DTYPES[setup["compute_dtype"] or "bf16"]),
    )
    model.hf_quantizer = AutoHfQuantizer.from_config(wanted, pre_quantized=False)
    model.config.quantization_config = wanted
    model.is_quantized = True
    model.is_loaded_in_4bit = True
    model.quantization_method = wanted.quantization_method()


def packed_linears(model: Any) -> dict[str, Any]:
    """The modules that transformers would replace: every Linear but the head."""
    import torch

    head = model.get_output_embeddings()
    linears = {name: each for name, each in model.named_modules() if type(each) is torch.nn.Linear}
    return {name: each for name, each in linears.items() if each is not head}


def _packed(linear: Any, setup: Mapping[str, Any], device: Any) -> Any:
    """A Linear4bit of the same shape whose random weight was packed on the device."""
    import bitsandbytes as bnb
    import torch

    double = bool(setup["double_quantization"])
    with torch.device("meta"):
        made = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            getattr(torch, DTYPES[setup["compute_dtype"] or "bf16"]),
            compress_statistics=double,
            quant_type="nf4",
        )
    weight = _filled("weight", linear.weight, device)
    made.weight = bnb.nn.Params4bit(weight, requires_grad=False, compress_statistics=double, quant_type="nf4").to(
        device
    )
    if linear.bias is not None:
        made.bias = torch.nn.Parameter(_filled("bias", linear.bias, device), requires_grad=False)
    return made


def with_adapters(model: Any, setup: Mapping[str, Any]) -> Any:
    """peft's model around the base, as a script makes it: rank, targets and dropout stated, the rest as it comes."""
    from peft import LoraConfig, get_peft_model

    target = setup["lora_target"]
    wanted = LoraConfig(
        r=setup["lora_rank"],
        lora_alpha=2 * setup["lora_rank"],
        lora_dropout=setup["lora_dropout"],
        target_modules="all-linear" if target == "all" else list(target),
        modules_to_save=list(setup["additional_target"]) or None,
        use_dora=setup["method"] == "dora",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, wanted, autocast_adapter_dtype=setup["adapter_dtype"] in (None, "fp32"))
