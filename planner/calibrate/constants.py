"""What ``plan calibrate`` measured on a machine, as a frozen record; None is what could not be measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from planner.errors import InputError, shown

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Bytes on one GPU and rates of one machine.

    ``context_bytes`` is what a training process holds outside the allocator once its libraries are loaded (NVML, less
    torch's reserved memory), ``context_alone_bytes`` right after the context was made. ``nccl_bytes`` is one
    communicator over ``nccl_ranks`` GPUs. ``matmul_tflops`` maps a dtype to the best shape's TFLOP/s,
    ``matmul_shapes`` to every shape's. Rates are bytes/s in one direction; ``refused`` says why a figure is missing.
    """

    measured_at: str
    gpu: str
    torch: str
    cuda: str | None = None
    context_bytes: int | None = None
    context_alone_bytes: int | None = None
    library_growth_bytes: Mapping[str, int] = field(default_factory=dict)
    cublas_workspace_bytes: int | None = None
    granularity_bytes: int | None = None
    nccl_bytes: int | None = None
    nccl_ranks: int | None = None
    matmul_tflops: Mapping[str, float] = field(default_factory=dict)
    matmul_shapes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    bandwidth_bytes_per_s: float | None = None
    to_device_bytes_per_s: float | None = None
    to_host_bytes_per_s: float | None = None
    p2p_bytes_per_s: float | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the number of the format first."""
        return {"format": FORMAT, **asdict(self)}


def constants_from_mapping(document: Mapping[str, Any], *, place: str = "constants") -> Constants:
    """The record in plain values. Raises InputError for another format, a wrong field, type or sign."""
    values = dict(document)
    number = values.pop("format", None)
    if number != FORMAT:
        raise InputError(f"{place}: format {shown(number)} is not {FORMAT}; measure again with `plan calibrate`")
    known = {each.name: str(each.type) for each in fields(Constants)}
    for name, value in values.items():
        if name not in known:
            raise InputError(f"{place}: {name} is not a field")
        if not _fits(known[name], value):
            raise InputError(f"{place}: {name} {shown(value)} is not {known[name]}")
    try:
        return Constants(**values)
    except TypeError:
        raise InputError(f"{place}: measured_at, gpu and torch must be given") from None


def _fits(kind: str, value: Any, *, least: float = 1e-9) -> bool:
    """True where a JSON value is of the field's annotated type; only what a library adds may be zero."""
    if value is None:
        return kind.endswith("| None")
    if kind.startswith("Mapping"):
        inner = kind[kind.index(", ") + 2 : kind.rindex("]")]
        return isinstance(value, Mapping) and all(_fits(inner, each, least=0) for each in value.values())
    if kind.startswith("str"):
        return isinstance(value, str)
    number = type(value) is int if kind.startswith("int") else type(value) in (int, float)
    return number and least <= value < 2**63
