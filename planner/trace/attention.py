"""Attention as a CUDA card would run it: the fused operations called by name.

A CPU build of torch would choose the mathematical path with its s x s scores.
"""

from __future__ import annotations

from typing import Any

import torch

from planner.trace import releases

FLASH_DTYPES = (torch.bfloat16, torch.float16)
HAS_FLASH = True


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Follows attention.cpp of torch: flash without a mask in 16 bit, else memory-efficient."""
    query, key, value, attn_mask = (_autocast(t) for t in (query, key, value, attn_mask))
    one_width = query.shape[-1] == key.shape[-1] == value.shape[-1] <= 256
    paired = enable_gqa or query.shape[1] == key.shape[1]
    if HAS_FLASH and attn_mask is None and query.dtype in FLASH_DTYPES and one_width and paired:
        return flash(query, key, value, dropout_p, is_causal, scale)
    if query.shape[1] != key.shape[1]:  # the memory-efficient kernel knows neither grouped nor broadcast heads
        return _mathematical(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return _efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)


def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, causal: bool, scale: float | None
) -> torch.Tensor:
    """The flash kernel on [batch, heads, tokens, width]; widths are padded to a multiple of eight."""
    width = query.shape[-1]
    scale = scale if scale is not None else width**-0.5
    if width % 8:
        query, key, value = (torch.nn.functional.pad(t, (0, 8 - width % 8)) for t in (query, key, value))
    out: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
        query, key, value, dropout, causal, False, scale=scale
    )[0]
    return out[..., :width] if width % 8 else out


def _mathematical(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
    grouped: bool,
) -> torch.Tensor:
    """In fp32 throughout: autocast brings SDPA's arguments to 16 bits and is off inside (aten/autocast_mode.h)."""
    with torch.autocast("cuda", enabled=False):
        out: torch.Tensor = torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, mask, dropout, causal, None, scale=scale, enable_gqa=grouped
        )[0]
    return out


def _efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    if mask is not None:
        mask = _as_bias(mask, query)
    out: torch.Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, True, dropout, causal, scale=scale
    )[0]
    return out


def _as_bias(mask: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Boolean masks become an additive one per call; rows are padded to sixteen for alignment (attention.cpp)."""
    if mask.dtype == torch.bool:
        bias = torch.zeros_like(mask, dtype=query.dtype)
        mask = bias.masked_fill_(mask.logical_not(), float("-inf"))
    tokens = mask.shape[-1]
    if tokens % 16:
        mask = torch.nn.functional.pad(mask, (0, 16 - tokens % 16))[..., :tokens]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], tokens)


def _autocast(tensor: torch.Tensor | None) -> torch.Tensor | None:
    floating = tensor is not None and tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)
    if tensor is None or not floating or not torch.is_autocast_enabled("cuda"):
        return tensor
    return tensor.to(torch.get_autocast_dtype("cuda"))


def flash_attention_2(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    query_length: int,
    is_causal: bool,
    dropout: float = 0.0,
    softmax_scale: float | None = None,
    target_dtype: torch.dtype | None = None,
    **_: Any,
) -> torch.Tensor:
    """In place of transformers' ``_flash_attention_forward``: [batch, tokens, heads, width] in and out."""
    if target_dtype is not None and query.dtype == torch.float32:
        query, key, value = (t.to(target_dtype) for t in (query, key, value))
    if attention_mask is not None:
        raise NotImplementedError("padded batches under flash_attention_2 are refused before they come here")
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    out = flash(query, key, value, dropout, is_causal, softmax_scale)
    return out.transpose(1, 2)


def install(*, flash: bool) -> None:
    """Puts these in place of torch's and transformers' functions; ``flash``: the card has its kernels."""
    global HAS_FLASH
    HAS_FLASH = flash
    functional: Any = torch.nn.functional
    functional.scaled_dot_product_attention = scaled_dot_product_attention
    releases.allow_flash_attention(flash_attention_2)
    if releases.installed() < (5,):
        return
    import transformers.masking_utils

    masks: Any = transformers.masking_utils
    masks.is_tracing = lambda *_: False  # fakes look traced, and get a mask that a card skips
    masks._ignore_causal_mask_sdpa = _ignores_mask
    masks.find_packed_sequence_indices = lambda *_: None  # it reads position ids; those here are never packed


def _ignores_mask(
    padding_mask: torch.Tensor | None,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    local_attention_size: int | None = None,
    **_: Any,
) -> bool:
    """A batch without padding under one window needs no mask; a padded one does (its values cannot be read here)."""
    return padding_mask is None and (local_attention_size is None or kv_length < local_attention_size)
