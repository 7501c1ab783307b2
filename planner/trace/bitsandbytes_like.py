"""bitsandbytes without its kernels: modules that hold and allocate what its own do, for peft to wrap.

4 bit: a packed weight of half a byte a value, scales per 64 values (fp32, or one byte and a second scale per 256 of
those); 0.50 dequantizes past 1,536 rows in forward, older releases always, and all in backward (backends/cuda/ops.py,
autograd/_functions.py MatMul4Bit). Before 0.47 a module computes in the dtype of its first input, whatever it was told
(nn/modules.py, set_compute_type): an fp32 one has the 16-bit weight converted, and autocast converts both back. 8 bit,
0.50: one byte a value and a scale a row; forward makes an fp16 and an int8 copy of its input, an int32
product and the result, and holds its input; backward dequantizes (MatMul8bitLt). Outliers depend on data: none.
"""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch.autograd import Function

BLOCK, NESTED_BLOCK = 64, 256
DEQUANTIZED_ABOVE_ROWS = 1536
OWN_PRODUCT = (0, 50)  # gemm_4bit in place of a dequantized weight and torch's product
TOLD_DTYPE = (0, 47)
CUDA = "cuda:0"


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An empty tensor on the inert device."""
    return torch.empty(shape, dtype=dtype, device=CUDA)


class _Product4bit(Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, packed: torch.Tensor, state: Any) -> torch.Tensor:
        ctx.save_for_backward(packed)
        ctx.state = state
        if state.release < OWN_PRODUCT:
            return torch.nn.functional.linear(inputs, _dequantized(state, state.dtype).to(inputs.dtype))
        out = inputs.new_empty((*inputs.shape[:-1], state.shape[0]))
        if inputs.numel() // inputs.shape[-1] > DEQUANTIZED_ABOVE_ROWS:
            _dequantized(state, inputs.dtype)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        weight = _dequantized(ctx.state, ctx.state.dtype)
        return torch.matmul(grad, weight.to(grad.dtype)), None, None


def _dequantized(state: Any, dtype: torch.dtype) -> torch.Tensor:
    scales = empty((state.absmax.numel(),), torch.float32) if state.nested else state.absmax
    weight = empty(state.shape, dtype)
    del scales
    return weight


class Linear4bit(torch.nn.Linear):
    """An nf4 weight that holds no values."""

    def __init__(self, plain: torch.nn.Linear, nested: bool, compute: torch.dtype, release: tuple[int, ...]) -> None:
        torch.nn.Module.__init__(self)  # a linear's own would make a weight
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, plain.bias
        self.compute_dtype, self.compute_type_is_set = compute, release >= TOLD_DTYPE
        values = plain.weight.numel()
        packed: Any = torch.nn.Parameter(empty((-(-values // 2), 1), torch.uint8), requires_grad=False)
        packed.quant_state = _state(plain.weight, nested, compute, release)
        packed.quant_type, packed.compress_statistics = "nf4", nested
        self.weight = packed

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The product in the compute dtype, handed out in the dtype that came in."""
        if not self.compute_type_is_set and inputs.dtype in (torch.float32, torch.bfloat16):
            self.compute_dtype = inputs.dtype
        self.compute_type_is_set = True
        product = _Product4bit.apply(inputs.to(self.compute_dtype), self.weight, self.weight.quant_state)
        if self.bias is not None:
            self.bias.to(self.compute_dtype)  # the kernel adds it
        out: torch.Tensor = product.to(inputs.dtype)
        return out


def _state(weight: torch.Tensor, nested: bool, dtype: torch.dtype, release: tuple[int, ...]) -> Any:
    blocks = -(-weight.numel() // BLOCK)
    state = SimpleNamespace(shape=tuple(weight.shape), dtype=dtype, nested=nested, release=release)
    state.code = empty((16,), torch.float32)
    state.absmax = empty((blocks,), torch.uint8 if nested else torch.float32)
    state.parts = [state.absmax, state.code]
    if nested:
        second = empty((-(-blocks // NESTED_BLOCK),), torch.float32)
        state.parts += [second, empty((256,), torch.float32), empty((), torch.float32)]
    return state


class _Product8bit(Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        flat = inputs.reshape(-1, inputs.shape[-1])
        ctx.codes, ctx.scales, ctx.inputs, ctx.shape = codes, scales, flat, inputs.shape
        half = flat.to(torch.float16)
        quantized, rows = empty(tuple(flat.shape), torch.int8), empty((flat.shape[0],), torch.float32)
        del half
        product = empty((flat.shape[0], codes.shape[0]), torch.int32)
        out = empty((*inputs.shape[:-1], codes.shape[0]), inputs.dtype)
        del product, quantized, rows
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        grad = grad.reshape(-1, grad.shape[-1]).contiguous()
        dtype = ctx.inputs.dtype
        weight = ctx.codes.to(dtype, copy=True).mul_(ctx.scales.unsqueeze(1).mul(1.0 / 127.0))
        return torch.matmul(grad.to(dtype), weight).view(ctx.shape), None, None


class Linear8bitLt(torch.nn.Linear):
    """An int8 weight that holds no values, as LLM.int8() keeps it."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        torch.nn.Module.__init__(self)  # a linear's own would make a weight
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, plain.bias
        shape = tuple(plain.weight.shape)
        packed: Any = torch.nn.Parameter(empty(shape, torch.int8), requires_grad=False)
        packed.quant_state = SimpleNamespace(parts=[empty((shape[0],), torch.float32)])
        self.weight, self.index = packed, None
        self.state = SimpleNamespace(has_fp16_weights=False, threshold=6.0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The product in the dtype that came in; the kernel adds the bias."""
        out: torch.Tensor = _Product8bit.apply(inputs, self.weight, self.weight.quant_state.parts[0])
        return out


def install() -> None:
    """Stands in for the package before peft looks for it."""
    package, modules = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.nn")
    package.__spec__ = importlib.machinery.ModuleSpec("bitsandbytes", None)
    contents: dict[str, Any] = {"Linear4bit": Linear4bit, "Linear8bitLt": Linear8bitLt}
    contents |= {"Params4bit": torch.nn.Parameter, "Int8Params": torch.nn.Parameter}
    vars(modules).update(contents)
    vars(package)["nn"] = modules
    sys.modules |= {"bitsandbytes": package, "bitsandbytes.nn": modules}
