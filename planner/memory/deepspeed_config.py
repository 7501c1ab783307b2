"""The memory side of a DeepSpeed JSON: the buckets and limits that are emitted, and those that a file states.

Buckets count elements, not bytes; what one element weighs is the regime's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from planner.errors import InputError, UnsupportedError
from planner.memory.autotp import GATHER_ON_SAVE
from planner.memory.autotp import section as autotp_section
from planner.training import OPTIMIZER_OFFLOADS, PARAM_OFFLOADS, Offload

# LLaMA-Factory 0.9.5, examples/deepspeed/ds_z2_config.json and ds_z3_config.json.
STAGE2_BUCKET_ELEMENTS = 500_000_000
SUB_GROUP_ELEMENTS = 1_000_000_000
MAX_LIVE_ELEMENTS = 1_000_000_000
MAX_REUSE_ELEMENTS = 1_000_000_000

# deepspeed/runtime/zero/config.py (0.18 and 0.19): what an absent key means.
ABSENT_BUCKET_ELEMENTS = 500_000_000
ABSENT_PREFETCH_ELEMENTS = 50_000_000
ABSENT_PERSISTENCE_ELEMENTS = 100_000

NVME_PATH = "nvme_swap"

_GRAD_DTYPES: dict[str, Literal["bf16", "fp16", "fp32"]] = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "half": "fp16",
    "float16": "fp16",
    "fp32": "fp32",
    "float": "fp32",
    "float32": "fp32",
}


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """What a DeepSpeed JSON says that memory depends on. ``*_elements`` count tensor elements.

    ``grad_accum_dtype`` None: the dtype of the 16-bit model. ``allgather_bucket_elements`` counts under
    stages 1 and 2; ``prefetch``, ``persistence``, ``max_live`` and ``sub_group`` under stage 3.
    """

    stage: Literal[0, 1, 2, 3]
    offload: Offload
    reduce_bucket_elements: int
    allgather_bucket_elements: int
    prefetch_elements: int
    persistence_elements: int
    max_live_elements: int
    sub_group_elements: int
    overlap_comm: bool
    contiguous_gradients: bool
    round_robin_gradients: bool
    grad_accum_dtype: Literal["bf16", "fp16", "fp32"] | None
    pin_memory: bool


def default_deepspeed_config(stage: int, offload: Offload, hidden: int, tensor: int = 1) -> dict[str, Any]:
    """The ``zero_optimization`` part (with what belongs to it) that a plan is priced with and emits.

    ``stage`` 1, 2 or 3; ``hidden`` the model's width in elements; ``tensor`` GPUs that share each layer. Stage 1 and 2
    take the buckets of LLaMA-Factory's examples (5e8, no overlap); stage 3 the numbers that transformers puts for
    ``"auto"`` (transformers/integrations/deepspeed.py: h*h, 0.9*h*h and 10*h). No value is left ``"auto"``.
    Raises UnsupportedError where DeepSpeed cannot offload that way at that stage.
    """
    if stage not in (1, 2, 3):
        raise UnsupportedError(f"ZeRO stage {stage} is not planned for; valid: 1, 2, 3")
    if stage < 3 and offload in PARAM_OFFLOADS:
        raise UnsupportedError(
            f"offload {offload!r} needs parallelism zero3: DeepSpeed offloads those under ZeRO-3 only"
        )
    zero = _stage3(hidden) if stage == 3 else _stage12(stage)
    if tensor > 1:
        zero[GATHER_ON_SAVE] = True
    whole = {"zero_allow_untested_optimizer": True, "zero_optimization": zero | _offload_part(offload)}
    return whole | autotp_section(tensor)


def _stage12(stage: int) -> dict[str, Any]:
    return {
        "stage": stage,
        "allgather_partitions": True,
        "allgather_bucket_size": STAGE2_BUCKET_ELEMENTS,
        "overlap_comm": False,
        "reduce_scatter": True,
        "reduce_bucket_size": STAGE2_BUCKET_ELEMENTS,
        "contiguous_gradients": True,
        "round_robin_gradients": True,
    }


def _stage3(hidden: int) -> dict[str, Any]:
    return {
        "stage": 3,
        "overlap_comm": False,
        "contiguous_gradients": True,
        "sub_group_size": SUB_GROUP_ELEMENTS,
        "reduce_bucket_size": hidden * hidden,
        "stage3_prefetch_bucket_size": _auto_prefetch(hidden),
        "stage3_param_persistence_threshold": 10 * hidden,
        "stage3_max_live_parameters": MAX_LIVE_ELEMENTS,
        "stage3_max_reuse_distance": MAX_REUSE_ELEMENTS,
        "stage3_gather_16bit_weights_on_model_save": True,
    }


def _auto_prefetch(hidden: int) -> int:
    return int(0.9 * hidden * hidden)


def _offload_part(offload: Offload) -> dict[str, Any]:
    device = {"device": "nvme", "nvme_path": NVME_PATH} if offload == "nvme" else {"device": "cpu"}
    target = device | {"pin_memory": True}
    part: dict[str, Any] = {}
    if offload in OPTIMIZER_OFFLOADS:
        part["offload_optimizer"] = dict(target)
    if offload in PARAM_OFFLOADS:
        part["offload_param"] = dict(target)
    return part


def read_buckets(config: Mapping[str, Any], hidden: int, *, place: str = "ds_config") -> Buckets:
    """Buckets as the run would use them: ``"auto"`` resolved for ``hidden``, absent keys by DeepSpeed's defaults.

    Raises InputError, opening with ``place``, for what DeepSpeed would refuse or not understand.
    """
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        raise InputError(f"{place}: zero_optimization {zero!r} is not an object with a stage")
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise InputError(f"{place}: zero_optimization.stage {stage!r} is not valid; choose 1, 2 or 3")

    def elements(key: str, absent: int, auto: int | None = None) -> int:
        return _elements(zero.get(key, absent), auto, f"{place}: zero_optimization.{key}")

    overlap = zero.get("overlap_comm")
    offload = read_offload(zero, place=place)
    return Buckets(
        stage=stage,
        offload=offload,
        reduce_bucket_elements=elements("reduce_bucket_size", ABSENT_BUCKET_ELEMENTS, hidden * hidden),
        allgather_bucket_elements=elements("allgather_bucket_size", ABSENT_BUCKET_ELEMENTS),
        prefetch_elements=elements("stage3_prefetch_bucket_size", ABSENT_PREFETCH_ELEMENTS, _auto_prefetch(hidden)),
        persistence_elements=elements("stage3_param_persistence_threshold", ABSENT_PERSISTENCE_ELEMENTS, 10 * hidden),
        max_live_elements=elements("stage3_max_live_parameters", MAX_LIVE_ELEMENTS),
        sub_group_elements=elements("sub_group_size", SUB_GROUP_ELEMENTS),
        overlap_comm=stage == 3 if overlap is None else bool(overlap),
        contiguous_gradients=bool(zero.get("contiguous_gradients", True)),
        round_robin_gradients=bool(zero.get("round_robin_gradients", False)),
        grad_accum_dtype=_grad_dtype(config, place),
        pin_memory=any(bool(_device_part(zero, key, place).get("pin_memory", True)) for key in _OFFLOAD_KEYS),
    )


_OFFLOAD_KEYS = ("offload_optimizer", "offload_param")


def read_offload(zero: Mapping[str, Any], *, place: str = "ds_config") -> Offload:
    """The contract's word for what the ``zero_optimization`` object moves off the GPU."""
    devices = {key: _device_part(zero, key, place).get("device", "none") for key in _OFFLOAD_KEYS}
    for key, device in devices.items():
        if device not in ("none", "cpu", "nvme"):
            raise InputError(f"{place}: {key}.device {device!r} is not known; valid: none, cpu, nvme")
    if "nvme" in devices.values():
        return "nvme"
    words: dict[tuple[bool, bool], Offload] = {
        (False, False): "none",
        (True, False): "optimizer",
        (False, True): "params",
        (True, True): "all",
    }
    optimizer, params = (devices[key] == "cpu" for key in _OFFLOAD_KEYS)
    return words[(optimizer, params and zero.get("stage") == 3)]


def _device_part(zero: Mapping[str, Any], key: str, place: str) -> Mapping[str, Any]:
    part = zero.get(key) or {}
    if not isinstance(part, Mapping):
        raise InputError(f'{place}: zero_optimization.{key} {part!r} is not an object such as {{"device": "cpu"}}')
    return part


def _elements(value: Any, auto: int | None, place: str) -> int:
    if value == "auto":
        if auto is None:
            raise InputError(f'{place} "auto" is not filled in by transformers; write a number of elements')
        return auto
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise InputError(f"{place} {value!r} is not a number of elements")
    return int(value)


def _grad_dtype(config: Mapping[str, Any], place: str) -> Literal["bf16", "fp16", "fp32"] | None:
    word = (config.get("data_types") or {}).get("grad_accum_dtype")
    if word is None:
        return None
    if word not in _GRAD_DTYPES:
        raise InputError(f"{place}: data_types.grad_accum_dtype {word!r} is not known; valid: bf16, fp16, fp32")
    return _GRAD_DTYPES[word]
