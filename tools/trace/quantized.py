"""4-bit linears of bitsandbytes on fake tensors: its own forward and backward, on weights that hold no values."""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from setups import Setup

CUDA = "cuda:0"
BLOCK, NESTED_BLOCK = 64, 256  # bitsandbytes' defaults: values per scale, and scales per second scale


class Linear4bit(bnb.nn.Linear4bit):
    """bitsandbytes' module around an empty packed weight; its constructor would quantize real values."""

    def __init__(self, plain: torch.nn.Linear, nested: bool, dtype: torch.dtype) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, plain.bias
        self.compute_dtype, self.compute_type_is_set = torch.bfloat16, True
        self.quant_storage, self.support_avx512bf16_for_cpu = torch.uint8, False
        self.weight = torch.nn.Parameter(_empty(plain.weight.numel() // 2, torch.uint8, 1), requires_grad=False)
        self.weight.quant_state = _state(plain.weight, nested, dtype)
        self.weight.quant_type, self.weight.compress_statistics = "nf4", nested


def _empty(count: int, dtype: torch.dtype, *more: int) -> torch.Tensor:
    return torch.empty((count, *more), dtype=dtype, device=CUDA)


def _state(weight: torch.Tensor, nested: bool, dtype: torch.dtype) -> QuantState:
    blocks = -(-weight.numel() // BLOCK)
    common: dict[str, Any] = {"shape": weight.shape, "blocksize": BLOCK, "quant_type": "nf4", "dtype": dtype}
    common["code"] = _empty(16, torch.float32)
    if not nested:
        return QuantState(absmax=_empty(blocks, torch.float32), **common)
    second = QuantState(
        absmax=_empty(-(-blocks // NESTED_BLOCK), torch.float32),
        code=_empty(256, torch.float32),
        blocksize=NESTED_BLOCK,
        dtype=torch.float32,
    )
    offset = torch.empty((), dtype=torch.float32, device=CUDA)
    return QuantState(absmax=_empty(blocks, torch.uint8), offset=offset, state2=second, **common)


def replace_linears(model: Any, setup: Setup) -> None:
    """Every linear but the output head, as transformers' bitsandbytes quantizer does."""
    head = model.get_output_embeddings()
    dtype = next(model.parameters()).dtype
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and module is not head:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Linear4bit(module, setup.double_quantization, dtype))
    model.is_loaded_in_4bit = True


def prepare(model: Any, setup: Setup) -> None:
    """Freezes the base; ``kbit_upcast`` norms or all gives fp32 to the norms or to everything not packed (peft)."""
    for name, parameter in list(model.named_parameters()):
        parameter.requires_grad = False
        packed = parameter.dtype == torch.uint8
        wanted = setup.kbit_upcast == "all" or (setup.kbit_upcast == "norms" and parameter.ndim == 1 and "norm" in name)
        if wanted and not packed:
            fresh = torch.nn.Parameter(_empty(parameter.shape[0], torch.float32, *parameter.shape[1:]), False)
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, fresh)
    model.tie_weights()
