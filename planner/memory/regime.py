"""Engine, version and setup -> which tensor is held in which dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.training import Dtype

LossCopies = Literal["hf_4_49", "hf_4_48", "loop", "fp32", "fused", "fused_linear", "chunked"]


@dataclass(frozen=True, kw_only=True)
class Regime:
    """What is held in which dtype while the step runs.

    ``frozen``/``trained`` dtype of weights as held, ``gradient`` dtype of retained gradients, ``autocast`` the
    autocast dtype or None, ``norms`` dtype of frozen norms (kbit preparation makes them fp32), ``adapter`` dtype of
    adapters, ``master`` whether fp32 master weights exist beside 16-bit ones (DeepSpeed), ``state`` dtype of
    optimizer states, ``loss`` the path of logits and cross-entropy.
    """

    frozen: Dtype
    trained: Dtype
    gradient: Dtype
    autocast: Dtype | None
    norms: Dtype
    adapter: Dtype
    state: Dtype
    master: bool
    loss: LossCopies
    head: Dtype
    embedding: Dtype
    upcast_frozen_on_sharding: bool = False  # accelerate 1.11 casts the whole FSDP2 model to fp32
    load_dtype: Dtype = "bf16"
