"""``3x20GB``, ``2xRTX4090``, ``2x8xH100-80GB``, ``2xRTX3090,1xRTX4090`` -> Machine, and back.

    text  = group { "," group }
    group = [ count "x" [ count "x" ] ] ( size | name [ ":" MIG profile ] )      two counts: nodes x GPUs of each

Nothing is probed: RAM and links that are not given stay unknown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

from planner.errors import InputError
from planner.hardware.machine import Gpu, GpuKind, Machine
from planner.units import GIB, MIB, parse_size_bytes, show_gib

EXAMPLE = "write such as 3x20GB, 2xRTX4090, 1xA100-80GB or 2x8xH100-80GB"

SMALLEST_GPU_BYTES = 1 * GIB
LARGEST_GPU_BYTES = 1024 * GIB
MOST_GPUS_PER_NODE = 128  # an NVL72 rack, the largest machine with one memory fabric, has 72
MOST_NODES = 16_384
LONGEST_TEXT = 500

# A job never sees a card's whole nominal memory: the driver keeps a part. `cuda_mib` in rules/gpus.toml shows how much:
# up to 16 GB 3.5 % (RTX 5060 Ti: 15816 of 16384 MiB, RTX 4060: 7936 of 8192), cards from 20 to 32 GB without inline ECC
# leave at least 97 %, 80 and 96 GB cards lack up to 1055 MiB (RTX PRO 6000: 97249 of 98304 MiB), larger ones up to 1 %
# (B200: 182631 of 184320 MiB).
RESERVE_SHARE_OF_SMALL = 0.035
RESERVE_CAP_OF_SMALL_BYTES = 576 * MIB
RESERVE_SHARE = 0.03
RESERVE_CAP_BYTES = 1060 * MIB
RESERVE_SHARE_OF_LARGE = 0.01

_COUNT = re.compile(r"^\s*([+-]?\d+)\s*[x×*]\s*", re.IGNORECASE | re.ASCII)
_SIZE = re.compile(r"^\d{1,9}(\.\d{1,12})?\s*(gib|gb|g|mib|mb|m|tib|tb|t)$", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"^[+-]?\d*\.?\d*$", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class _Group:
    nodes: int
    count: int
    what: str


def reserve_bytes(nominal_bytes: int) -> int:
    """What is held back from a card of which only the size is known.

    3.5 % up to 576 MiB, then 3 % up to 1060 MiB, then 1 %.
    """
    small = min(int(nominal_bytes * RESERVE_SHARE_OF_SMALL), RESERVE_CAP_OF_SMALL_BYTES)
    share = min(int(nominal_bytes * RESERVE_SHARE), RESERVE_CAP_BYTES)
    return max(small, share, int(nominal_bytes * RESERVE_SHARE_OF_LARGE))


@lru_cache(maxsize=4096)
def parse_machine(gpus: str, ram: str | None = None) -> Machine:
    """The machine that ``--gpus`` and ``--ram`` describe. GB is nominal: N x 2**30 bytes.

    Raises InputError, one sentence, for anything outside the grammar, a name that the catalogue does not
    have or has several times, and for counts and sizes that no machine has.
    """
    groups = [_group(part, gpus) for part in _parts(gpus)]
    nodes = _nodes(groups, gpus)
    asked = sum(group.count for group in groups)
    if asked > MOST_GPUS_PER_NODE:
        raise InputError(
            f"--gpus {gpus!r} asks for {asked} GPUs in one machine and {MOST_GPUS_PER_NODE} is the most; "
            "write nodes x GPUs, such as 2x8xH100-80GB"
        )
    devices = tuple(_gpus(groups))
    _check_vendors(devices, gpus)
    ram_bytes = None if ram is None else parse_ram_bytes(ram)
    return Machine(gpus=devices, nodes=nodes, ram_bytes=ram_bytes, assumptions=_assumptions(groups, devices))


def format_gpus(machine: Machine) -> str:
    """The ``--gpus`` text of a machine: what ``parse_machine`` reads back to the same cards.

    A card that the catalogue does not know is written by its size, rounded up to whole GB.
    """
    runs = [(len(list(run)), what) for what, run in groupby(_word(gpu) for gpu in machine.gpus)]
    nodes = f"{machine.nodes}x" if machine.nodes > 1 else ""
    return ",".join(f"{nodes}{count}x{what}" for count, what in runs)


def _word(gpu: Gpu) -> str:
    if gpu.kind is not None:
        from planner.hardware.catalogue import name_for_flags
        from planner.hardware.slices import slice_for_flags

        return (slice_for_flags if gpu.mig else name_for_flags)(gpu.kind.id)
    if gpu.nominal_bytes is None:
        return f"{-(-(gpu.total_bytes or gpu.capacity_bytes) // GIB)}GB"
    return _size_text(gpu.nominal_bytes)


def _size_text(size_bytes: int) -> str:
    """The size in the largest unit that states it exactly; odd bytes as a fraction that reads back to them."""
    if size_bytes % GIB == 0:
        return f"{size_bytes // GIB}GB"
    if size_bytes % MIB == 0:
        return f"{size_bytes // MIB}MB"
    return f"{(size_bytes + 0.4) / GIB:.10f}GB"


def _parts(text: str) -> list[str]:
    if len(text) > LONGEST_TEXT:
        raise InputError(f"--gpus is {len(text)} characters long, more than any machine needs; {EXAMPLE}")
    if not text.strip():
        raise InputError(f"--gpus is empty; {EXAMPLE}")
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(f"--gpus {text!r} has an empty group beside a comma; {EXAMPLE}")
    return parts


def _group(part: str, text: str) -> _Group:
    """One group. As few counts as make the rest readable are split off: ``7900XTX`` is a name."""
    counts, rest = _split(part, _is_size)  # sizes never need the catalogue to be read
    if not _is_size(rest):
        counts, rest = _split(part, _readable)
    numbers = [_count(digits, text) for digits in counts]
    _check_rest(rest, numbers, text)
    nodes, count = [1, 1, *numbers][-2:]
    return _Group(nodes=nodes, count=count, what=rest)


def _split(part: str, readable: Callable[[str], bool]) -> tuple[list[str], str]:
    counts: list[str] = []
    rest = part
    while not readable(rest) and len(counts) < 2 and (found := _COUNT.match(rest)):
        counts.append(found[1])
        rest = rest[found.end() :]
    return counts, rest


def _is_size(text: str) -> bool:
    return bool(_SIZE.match(text))


def _readable(text: str) -> bool:
    if _is_size(text):
        return True
    if _is_bare_number(text) and len(text) < 3:  # 20 is a forgotten unit, 4090 a card
        return False
    from planner.hardware.catalogue import knows
    from planner.hardware.slices import names_slice

    return knows(text) or names_slice(text)


def _is_bare_number(text: str) -> bool:
    return bool(text) and bool(_NUMBER.match(text))


def _count(digits: str, text: str) -> int:
    count = int(digits) if len(digits) <= 9 else MOST_NODES + 1
    if count < 1:
        raise InputError(f"--gpus {text!r} asks for {digits} GPUs; write a count of at least 1, such as 3x20GB")
    if count > MOST_NODES:
        raise InputError(f"--gpus {text!r}: a count of {digits} is more than any cluster has; {EXAMPLE}")
    return count


def _check_rest(rest: str, counts: Sequence[int], text: str) -> None:
    """Raises the sentence that fits what is left once the counts are gone."""
    if _readable(rest):
        return
    if not rest:
        raise InputError(f"--gpus {text!r} has a count and no GPU after it; {EXAMPLE}")
    if _is_bare_number(rest):
        shown = f"{counts[-1]}x{rest}GB" if counts and rest.isdigit() else "3x20GB"
        raise InputError(f"--gpus {text!r}: {rest!r} has no unit; write {shown} for a size in GB, or a card's name")
    if rest[0] in "x×*" and rest[1:2].isdigit():
        raise InputError(f"--gpus {text!r} has no count before the x; write 1{rest} or more")
    if len(counts) == 2 and _COUNT.match(rest):
        raise InputError(f"--gpus {text!r} has three counts; write nodes x GPUs x card, such as 2x8xH100-80GB")
    if rest.startswith("-"):
        raise InputError(f"--gpus {text!r}: {rest!r} is negative; {EXAMPLE}")


def _nodes(groups: Sequence[_Group], text: str) -> int:
    nodes = {group.nodes for group in groups}
    if len(nodes) > 1:
        raise InputError(f"--gpus {text!r} mixes groups of different node counts; all nodes must be alike")
    return nodes.pop()


def _check_vendors(gpus: Sequence[Gpu], text: str) -> None:
    """One job has one driver stack: CUDA, ROCm and CANN builds of a framework exclude each other."""
    vendors = sorted({gpu.kind.vendor for gpu in gpus if gpu.kind is not None})
    if len(vendors) > 1:
        raise InputError(f"--gpus {text!r} mixes cards of {' and '.join(vendors)}, and one job runs on one of them")


def _gpus(groups: Sequence[_Group]) -> Iterator[Gpu]:
    index = 0
    for group in groups:
        make = _anonymous if _is_size(group.what) else _named
        for _ in range(group.count):
            yield make(group.what, index)
            index += 1


def _anonymous(size: str, index: int) -> Gpu:
    nominal = parse_size_bytes(size, place="--gpus")
    if not SMALLEST_GPU_BYTES <= nominal <= LARGEST_GPU_BYTES:
        raise InputError(f"--gpus: {size!r} is no GPU's memory; sizes from 1GB to 1024GB are read")
    reserve = reserve_bytes(nominal)
    return Gpu(
        index=index,
        name=f"{nominal / GIB:g} GB GPU",
        kind=None,
        capacity_bytes=nominal - reserve,
        total_bytes=None,
        nominal_bytes=nominal,
        reserve_bytes=reserve,
    )


def _named(name: str, index: int) -> Gpu:
    from planner.hardware.catalogue import find_gpu
    from planner.hardware.slices import find_slice, names_slice

    is_slice = names_slice(name)
    found = find_slice(name) if is_slice else find_gpu(name)
    capacity = planned_bytes(found)
    return Gpu(
        index=index,
        name=found.name,
        kind=found,
        capacity_bytes=capacity,
        total_bytes=found.memory_bytes if found.memory_reported else None,
        nominal_bytes=found.nominal_bytes,
        reserve_bytes=found.memory_bytes - capacity,
        compute_capability=found.compute_capability,
        mig=is_slice,
    )


def planned_bytes(kind: GpuKind) -> int:
    """What a plan counts on of a named card: what CUDA offers or the size less a reserve, without a system's share."""
    from planner.hardware.catalogue import offered_bytes

    size = kind.memory_bytes
    offered = offered_bytes(kind) if kind.memory_reported else size - reserve_bytes(size)
    return offered - (kind.system_bytes or 0)


def parse_ram_bytes(ram: str) -> int:
    """Bytes of a ``--ram`` text such as ``64GB``; InputError, one sentence, for anything else."""
    if len(ram) > 40:
        raise InputError(f"--ram is {len(ram)} characters long; write a size such as 64GB")
    return parse_size_bytes(ram, place="--ram")


def _assumptions(groups: Sequence[_Group], gpus: Sequence[Gpu]) -> tuple[str, ...]:
    """What was taken for granted, each sentence once."""
    readings = [_reading(group.what) for group in groups if not _is_size(group.what)]
    said = [sentence for sentence in readings if sentence]
    said += [sentence for gpu in gpus for sentence in _assumed(gpu)]
    return tuple(dict.fromkeys(said))


def _reading(name: str) -> str | None:
    from planner.hardware.catalogue import reading
    from planner.hardware.slices import MARK

    return reading(name.partition(MARK)[0])


def _assumed(gpu: Gpu) -> list[str]:
    if gpu.kind is not None:
        return _assumed_of_kind(gpu, gpu.kind)
    return [
        f"{gpu.name}: {show_gib(gpu.reserve_bytes)} of {show_gib(gpu.nominal_bytes or 0)} is taken to be the driver's; "
        "a card with inline ECC on (T4, A10, L4, A40, L40S) shows 6 % less, so name it instead",
        f"{gpu.name}: compute capability 8.0 or newer is assumed, with bfloat16 and flash attention 2; "
        "name the card if it is older",
    ]


def _assumed_of_kind(gpu: Gpu, kind: GpuKind) -> list[str]:
    said = [f"{gpu.name}: {kind.note}"] if kind.note else []
    if not kind.memory_reported:
        said.append(
            f"{gpu.name}: no source for the driver's total; nominal {show_gib(kind.memory_bytes)} "
            f"less {show_gib(gpu.reserve_bytes)} for the driver"
        )
    elif kind.cuda_bytes is None and gpu.reserve_bytes and not kind.unified:
        said.append(
            f"{gpu.name}: no source for what CUDA offers of the driver's {show_gib(kind.memory_bytes)}; "
            f"{show_gib(gpu.reserve_bytes, digits=2)} less, as of cards of its size or smaller"
        )
    return said + _shared_with_the_system(gpu, kind)


def _shared_with_the_system(gpu: Gpu, kind: GpuKind) -> list[str]:
    if not kind.unified:
        return []
    if kind.system_bytes is None:
        return [
            f"{gpu.name}: how much of the shared memory the system itself holds is not known; `plan probe` on the "
            "device reads what is free"
        ]
    return [f"{gpu.name}: {show_gib(kind.system_bytes)} of the shared memory is taken to be the system's own"]
