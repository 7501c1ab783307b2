"""Memory that CUDA kernels take inside one operation, which the dispatcher does not show.

Each row: the operation's name and the bytes alive beside its inputs and outputs, from the kernel's source
in the torch repository (aten/src/ATen/native/cuda, .../transformers/cuda).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FLASH_ROUND = 128


def workspace_bytes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Bytes of temporaries of one operation; zero where none are known."""
    rule = RULES.get(name)
    return rule(args, kwargs, out) if rule else 0


def _flash_backward(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """softmax_d and dq_accum in fp32; under grouped heads dk and dv for every query head (flash_api.cpp, mha_bwd)."""
    _, query, key = args[:3]
    batch, heads, tokens, width = query.shape
    kv_heads, kv_tokens = key.shape[1], key.shape[2]
    round_tokens = -(-tokens // FLASH_ROUND) * FLASH_ROUND
    round_width = -(-width // 32) * 32
    softmax_d = batch * heads * round_tokens * 4
    dq_accum = batch * round_tokens * heads * round_width * 4
    expanded = 2 * batch * kv_tokens * heads * width * query.element_size() if kv_heads != heads else 0
    return softmax_d + dq_accum + expanded


def _efficient_backward(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """delta in fp32 (attention_backward.cu); the fp32 dq workspace where a head is wider than 64 or dtype is not fp32."""
    _, query, key, value = args[:4]
    batch, heads, tokens, width = query.shape
    kv_tokens, value_width = key.shape[2], value.shape[3]
    padded_tokens = -(-tokens // 16) * 16
    delta = batch * heads * padded_tokens * 4
    return delta + _efficient_workspace(batch, heads, tokens, kv_tokens, width, value_width, query.element_size())


def _efficient_workspace(b: int, a: int, q: int, k: int, dk: int, dv: int, itemsize: int) -> int:
    """gq (fp32 accumulation) and, for wide heads, gk and gv accumulators, padded to the kernel's blocks."""
    if itemsize == 4:
        return 0
    block_i, block_j = (64, 64) if max(dk, dv) > 128 else (128, 64)
    up = lambda n, m: -(-n // m) * m  # noqa: E731
    grad_q = up(q, block_i) * up(dk, 64) * 4
    grad_kv = up(k, block_j) * (up(dk, 64) + up(dv, 64)) * 4 if max(dk, dv) > 128 else 0
    return b * a * (grad_q + grad_kv)


def _embedding_backward(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Above 3,072 indices: sorted copies (four int64 vectors, and the sort's own two) and fp32 partial sums per segment.

    Segments are data dependent: all tokens distinct, ten rows each (EmbeddingBackwardKernel.cu), is the upper bound used.
    """
    grad, indices = args[:2]
    count, width = indices.numel(), grad.shape[-1]
    if count <= 3072:
        return 0
    return count * 8 * 6


RULES: dict[str, Callable[[tuple[Any, ...], dict[str, Any], Any], int]] = {
    "_scaled_dot_product_flash_attention_backward.default": _flash_backward,
    "_scaled_dot_product_efficient_attention_backward.default": _efficient_backward,
    "embedding_dense_backward.default": _embedding_backward,
}
