"""Memory that CUDA kernels take inside one operation, which the dispatcher does not show.

Each row: the operation's name and the bytes alive beside its inputs and outputs, from the kernel's source
in the torch repository (aten/src/ATen/native/cuda, .../transformers/cuda).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def workspace_bytes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Bytes of temporaries of one operation; zero where none are known."""
    rule = RULES.get(name)
    return rule(args, kwargs, out) if rule else 0


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _flash_backward(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """softmax_d and dq_accum in fp32; under grouped heads dk and dv for every query head (flash_api.cpp, mha_bwd)."""
    grad, query, key = args[:3]
    batch, heads, tokens, width = query.shape
    kv_heads, kv_tokens = key.shape[1], key.shape[2]
    padded_tokens = _up(tokens, 128)
    padded_width = _up(width, 32) if width <= 192 else 256
    softmax_d = batch * heads * padded_tokens * 4
    dq_accum = batch * padded_tokens * heads * padded_width * 4
    expanded = 2 * batch * kv_tokens * heads * width * query.element_size() if kv_heads != heads else 0
    copied = 0 if grad.transpose(1, 2).is_contiguous() else grad.numel() * grad.element_size()
    return softmax_d + dq_accum + expanded + copied


def _efficient_forward(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """An fp32 output beside the 16-bit one where a head is wider than a block of keys (kernel_forward.h)."""
    query, _, value = args[:3]
    batch, heads, tokens, _ = query.shape
    return batch * heads * tokens * value.shape[-1] * 4 if value.shape[-1] > 128 and query.element_size() == 2 else 0


def _efficient_backward(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """delta, and fp32 staging for dq, and for dk and dv of wide heads (attention_backward.cu, kernel_backward.h)."""
    grad, query, key, value = args[:4]
    batch, heads, tokens, width = query.shape
    value_width, kv_tokens = value.shape[-1], key.shape[2]
    half = query.element_size() == 2
    rows, columns, in_registers = _efficient_blocks(max(width, value_width), half)
    blocks = -(-tokens // rows) * -(-width // columns)
    staged = blocks * (rows * columns + 4)
    if half and not in_registers:
        splits = max(1, min(-(-kv_tokens // columns), 200 // (batch * heads)))
        staged += splits * columns * (_up(width, rows) + _up(value_width, rows))
    delta = batch * heads * tokens * 4
    product = 0 if half else batch * heads * tokens * value_width * 4  # fp32 computes delta outside of the kernel
    copied = 0 if grad.transpose(1, 2).is_contiguous() else grad.numel() * grad.element_size()
    return copied + delta + max(product, batch * heads * _up(staged, 4) * 4)


def _efficient_blocks(width: int, half: bool) -> tuple[int, int, bool]:
    """Queries and keys of a block, and whether dk and dv stay in registers, on compute capability 8.0 and up."""
    if width <= 64:
        return 64, 64, half
    if not half:
        return 128, 64, False
    return (128, 128, True) if width <= 128 else (128, 64, False)


def _embedding_backward(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Above 3,072 tokens: one fp32 row per token and six vectors of indices (EmbeddingBackwardKernel.cu)."""
    grad, indices = args[:2]
    count, width = indices.numel(), grad.shape[-1]
    return count * (width * 4 + 6 * 8) if count > 3072 else 0


def _gemm_4bit(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Past 1,536 rows bitsandbytes dequantizes the weight and its nested scales (backends/cuda/ops.py)."""
    inputs, packed = args[:2]
    rows, values = inputs.numel() // inputs.shape[-1], 2 * packed.numel()
    if rows <= 1536:
        return 0
    scales = values // 64 * 4 if kwargs.get("absmax_8bit") is not None else 0
    return values * inputs.element_size() + scales


def _softmax(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Softmax kernels copy what is not contiguous (SoftMax.cu, host_softmax)."""
    tensors = [arg for arg in args if hasattr(arg, "is_contiguous")]
    return sum(t.numel() * t.element_size() for t in tensors if not t.is_contiguous())


def _softmax_backward(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """grad * output is made first (SoftMax.cu, softmax_backward_cuda_out)."""
    return int(out.numel() * args[1].element_size()) + _softmax(args, kwargs, out)


RULES: dict[str, Callable[[tuple[Any, ...], dict[str, Any], Any], int]] = {
    "_scaled_dot_product_flash_attention_backward.default": _flash_backward,
    "_scaled_dot_product_efficient_attention.default": _efficient_forward,
    "_scaled_dot_product_efficient_attention_backward.default": _efficient_backward,
    "embedding_dense_backward.default": _embedding_backward,
    "_softmax.default": _softmax,
    "_log_softmax.default": _softmax,
    "_softmax_backward_data.default": _softmax_backward,
    "_log_softmax_backward_data.default": _softmax,
    "bitsandbytes.gemm_4bit.default": _gemm_4bit,
}
