"""Builds the real transformers model of a setup, with peft's adapters, out of fake tensors."""

from __future__ import annotations

import warnings
from typing import Any
from unittest import mock

import torch
from setups import DTYPES, Setup

CUDA = "cuda:0"


def build(setup: Setup) -> torch.nn.Module:
    """The model in training mode, its trainable parameters set; call it under a FakeTensorMode."""
    dtype = getattr(torch, DTYPES[setup.param_dtype])
    model = _base(setup, dtype)
    if setup.method == "qlora":
        import quantized

        quantized.replace_linears(model, setup)
        quantized.prepare(model, setup)
    if setup.liger_kernel:
        import liger

        liger.apply(model, setup)
    if setup.gradient_checkpointing:
        _checkpoint(model, setup)
    if setup.method in ("lora", "qlora"):
        model = _adapted(model, setup)
    return model.train()


def _base(setup: Setup, dtype: torch.dtype) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    options = dict(setup.config)
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    config.use_cache = False
    kernel = "eager" if setup.attention == "flash_attention_2" else setup.attention  # the package is not asked for
    with no_init_weights(), torch.device(CUDA):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=kernel)
    if setup.experts:
        model.set_experts_implementation(setup.experts)
    model.tie_weights()
    model.config._attn_implementation = setup.attention
    return model


def _checkpoint(model: Any, setup: Setup) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": setup.use_reentrant})
    if setup.method != "full":
        model.enable_input_require_grads()


def _adapted(model: Any, setup: Setup) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    targets = "all-linear" if setup.lora_target == "all" else list(setup.lora_target)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=setup.lora_rank,
        lora_alpha=2 * setup.lora_rank,
        lora_dropout=setup.lora_dropout,
        target_modules=targets,
        use_dora=setup.dora,
        modules_to_save=list(setup.additional_target) or None,
        init_lora_weights=not setup.dora,
    )
    with torch.device(CUDA), mock.patch.object(torch.nn.Module, "to", lambda self, *_, **__: self):
        adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    # Module.to swaps parameters, which fakes refuse; all is on one device, and the dtype is set here.
    dtype = getattr(torch, DTYPES[setup.adapter_dtype])
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and (parameter.dtype != dtype or parameter.device.type != "cuda"):
            _replace(adapted, name, torch.nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=CUDA)))
    return adapted


def _replace(model: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    """Casting in place cannot swap fake tensors, so a parameter is exchanged."""
    parent_name, _, last = name.rpartition(".")
    parent: Any = model.get_submodule(parent_name)
    if isinstance(parent, torch.nn.ParameterDict):
        parent[last] = parameter
    else:
        setattr(parent, last, parameter)


def blocks_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The decoder blocks, in order: the longest ModuleList that is not a list of experts."""
    lists = [m for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and "expert" not in name]
    return list(max(lists, key=len)) if lists else []
