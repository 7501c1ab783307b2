"""Builds the real transformers model of a job, with peft's adapters, out of fake tensors."""

from __future__ import annotations

import warnings
from typing import Any
from unittest import mock

import torch

from planner.errors import UnsupportedError
from planner.memory.regime import EMBEDDING_NAMES
from planner.trace import attention, bitsandbytes_like, releases
from planner.trace.job import Job
from planner.training import Dtype

CUDA = "cuda:0"
DTYPES: dict[Dtype, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NOT_CONFIG = frozenset({"model_type", "architectures", "torch_dtype", "dtype", "auto_map", "quantization_config"})


def build(job: Job) -> torch.nn.Module:
    """The model in training mode, its trainable parameters set; call it under a FakeTensorMode.

    Raises UnsupportedError for an architecture that the installed transformers does not have, and for another release
    than an old one that is installed.
    """
    releases.refuse_other_release(job)
    model = _base(job)
    if job.experts_apart and not releases.runs_own_code(job):
        from planner.trace.experts import take_apart

        take_apart(model)
    if job.quantization_bit is not None:
        _quantize(model, job)
    if job.liger_kernel:
        from planner.trace import liger

        liger.apply(model, job)
    if job.gradient_checkpointing:
        _checkpoint(model, job)
    if job.method == "freeze":
        _freeze(model, job)
    if job.is_adapter:
        model = _adapted(model, job)
    return model.train()  # type: ignore[no-any-return]


def _base(job: Job) -> Any:
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = str(job.config.get("model_type"))
    if kind not in transformers.CONFIG_MAPPING:
        raise UnsupportedError(
            f"transformers {transformers.__version__} does not have model_type {kind!r}",
            hint="pip install --upgrade transformers",
        )
    options = {key: value for key, value in job.config.items() if key not in NOT_CONFIG}
    config = AutoConfig.for_model(kind, **options)
    if releases.installed() >= (5,):
        config.use_cache = False
    with releases.no_init_weights(), torch.device(CUDA):
        model = AutoModelForCausalLM.from_config(
            config,
            attn_implementation=_has(_buildable(job), kind),
            **{releases.dtype_word(): DTYPES[job.base_dtype]},
        )
    model.tie_weights()
    model.config._attn_implementation = job.attention
    releases.name_flash_attention(model, attention.flash_attention_2)
    return model


def _buildable(job: Job) -> str:
    """transformers 5 asks for the flash package when a model is built, and looks its kernel up at every call."""
    later = job.attention == "flash_attention_2" and releases.installed() >= (5,)
    return "eager" if later else job.attention


def _has(kernel: str, kind: str) -> str:
    """The kernel, where the architecture has it; what transformers itself would complain about is said first."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UnsupportedError(f"transformers has no causal language model of model_type {kind!r}")
    return kernel


def _quantize(model: Any, job: Job) -> None:
    """Every linear but the output head, as transformers' bitsandbytes quantizer does, and peft's upcasts."""
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and module is not head:
            exchange(model, name, _packed(module, job))
    setattr(model, f"is_loaded_in_{job.quantization_bit}bit", True)
    for name, parameter in list(model.named_parameters()):
        parameter.requires_grad = False
        norm = job.kbit_upcast == "norms" and parameter.ndim == 1 and "norm" in name
        if (norm or job.kbit_upcast == "all") and not hasattr(parameter, "quant_state"):
            fresh = bitsandbytes_like.empty(tuple(parameter.shape), torch.float32)
            exchange(model, name, torch.nn.Parameter(fresh, requires_grad=False))
    model.tie_weights()


def _packed(module: torch.nn.Linear, job: Job) -> torch.nn.Module:
    if job.quantization_bit == 8:
        return bitsandbytes_like.Linear8bitLt(module)
    return bitsandbytes_like.Linear4bit(module, job.double_quantization, DTYPES[job.compute_dtype], job.bitsandbytes)


def _checkpoint(model: Any, job: Job) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": job.reentrant})
    for place, layer in enumerate(blocks_of(model), start=1):
        layer.gradient_checkpointing = place % int(job.gradient_checkpointing) == 0
    if job.method != "full":
        model.enable_input_require_grads()


def _freeze(model: Any, job: Job) -> None:
    """The last layers train, in the dtype of what trains (LLaMA-Factory model/adapter.py)."""
    blocks = blocks_of(model)
    trained = {id(p) for block in blocks[-job.freeze_trainable_layers :] for p in block.parameters()}
    for name, parameter in list(model.named_parameters()):
        parameter.requires_grad = id(parameter) in trained
        if parameter.requires_grad and parameter.dtype != DTYPES[job.trained_dtype]:
            fresh = torch.empty(parameter.shape, dtype=DTYPES[job.trained_dtype], device=CUDA)
            exchange(model, name, torch.nn.Parameter(fresh))


def _adapted(model: Any, job: Job) -> Any:
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=job.lora_rank,
        lora_alpha=2 * job.lora_rank,
        lora_dropout=job.lora_dropout,
        target_modules=_targets(model, job),
        use_dora=job.dora,
        modules_to_save=list(job.additional_target) or None,
        init_lora_weights=not job.dora,
    )
    with torch.device(CUDA), mock.patch.object(torch.nn.Module, "to", lambda self, *_, **__: self):
        try:
            adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
        except ValueError as problem:
            raise UnsupportedError(f"peft does not take these modules: {str(problem).splitlines()[0]}") from None
    # Module.to swaps parameters, which fakes refuse; all is on one device, and the dtype is set here.
    for name, parameter in adapted.named_parameters():
        dtype = DTYPES[_dtype_of(name, job)]
        if parameter.requires_grad and (parameter.dtype != dtype or parameter.device.type != "cuda"):
            fresh = torch.empty(parameter.shape, dtype=dtype, device=CUDA)
            exchange(adapted, name, torch.nn.Parameter(fresh))
    return adapted


def _dtype_of(name: str, job: Job) -> Dtype:
    return job.whole_dtype if "modules_to_save" in name else job.adapter_dtype


def _targets(model: Any, job: Job) -> str | list[str]:
    """``all``: peft's own word, or LLaMA-Factory's list of linears' last names but lm_head (model_utils/misc.py)."""
    if job.lora_target != "all":
        return list(job.lora_target)
    if not job.names_linears:
        return "all-linear"
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    names = [name for name in linears if "lm_head" not in name]
    names += [name for name, module in model.named_modules() if type(module).__name__ == "Conv1D"]
    return sorted({name.rpartition(".")[2] for name in names} - EMBEDDING_NAMES)


def exchange(model: torch.nn.Module, name: str, made: Any) -> None:
    """Casting in place cannot swap fake tensors, so parameters and modules are exchanged."""
    parent_name, _, last = name.rpartition(".")
    parent: Any = model.get_submodule(parent_name)
    if isinstance(parent, torch.nn.ParameterDict):
        parent[last] = made
    else:
        setattr(parent, last, made)


def blocks_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The decoder blocks, in order: the longest ModuleList that is not a list of experts."""
    lists = [m for name, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and "expert" not in name]
    found: list[torch.nn.Module] = max(([*each] for each in lists), key=len, default=[])
    return found
