"""The raw answer of a probe -> Machine. Pure, so that a captured answer is a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.hardware.catalogue import PCIE_LANE_BYTES_PER_S, offered_bytes
from planner.hardware.identify import identify, identify_shared, name_of_chip, without_slice
from planner.hardware.machine import Gpu, GpuKind, Holder, Links, Machine
from planner.hardware.slices import slice_named
from planner.hardware.visible import Device, Seen, visible_devices
from planner.units import MIB, show_gib

Answer = dict[str, Any]

# An idle card still has a few MiB of its own in use (display, persistence): not worth a warning below this.
QUIET_BYTES = 256 * MIB


def machine_from_answer(answer: Answer) -> Machine:
    """The machine that a program started here would see.

    Capacity is free memory, else the driver's total as far as CUDA offers it, else the catalogue's. A refused reading
    stays None and is named in ``warnings``; a card whose memory nobody knows is left out, with a warning.
    """
    host, environment = answer["host"], answer.get("environment", {})
    nvml = _with_own_chip(answer["nvml"], host)
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    seen = visible_devices(nvml["gpus"], chosen, order=environment.get("CUDA_DEVICE_ORDER"))
    read = [(device, _gpu(device, host)) for device in seen.devices]
    gpus = tuple(gpu for _, gpu in read if gpu is not None)
    ram_bytes, ram_free_bytes = _ram(host)
    software = dict(answer.get("software", {}))
    return Machine(
        gpus=gpus,
        source="probe",
        links=_links(seen, gpus, nvml["p2p"]),
        ram_bytes=ram_bytes,
        ram_free_bytes=ram_free_bytes,
        cpu_cores=_cores(host),
        disk_free_bytes=host.get("disk_free_bytes"),
        driver=nvml.get("driver"),
        software=software,
        warnings=tuple(_warnings(nvml, seen, read, gpus, software)),
    )


def _with_own_chip(nvml: Answer, host: Answer) -> Answer:
    """NVML's answer, or where there is none (JetPack 5) the GPU that is part of the host's chip."""
    name = name_of_chip(host.get("compatible") or ())
    if name is None or nvml["gpus"]:
        return nvml
    return {**nvml, "error": None, "gpus": [{"index": 0, "name": name}], "own_chip": nvml.get("error") or "no GPU"}


def _gpu(device: Device, host: Answer) -> Gpu | None:
    """One device; without memory of its own it has the host's, as much as is free of that."""
    raw, card = device.raw, device.card
    total, free = raw.get("total_bytes"), raw.get("free_bytes")
    kind = _slice(device) if device.is_slice else _kind(card, host)
    if kind is not None and kind.unified and total is None:
        total, free = _ram(host)
    offered = offered_bytes(kind) if kind else None
    capacity = free if free is not None else min((size for size in (total, offered) if size is not None), default=None)
    if capacity is None:
        return None
    return Gpu(
        index=card["index"],
        name=raw.get("name") or card.get("name") or "unnamed GPU",
        kind=kind,
        capacity_bytes=capacity,
        total_bytes=total,
        free_bytes=free,
        nominal_bytes=kind.nominal_bytes if kind else None,
        compute_capability=_capability(device, kind),
        uuid=raw.get("uuid"),
        mig=device.is_slice,
        holders=tuple(_holder(process) for process in raw.get("processes") or ()),
    )


def _slice(device: Device) -> GpuKind | None:
    """By the card that the driver's name starts with, and the profile that it ends with."""
    return slice_named(device.raw.get("name") or "", _whole(device.card))


def _whole(card: Answer) -> GpuKind | None:
    """The card by its own name or by a slice's."""
    return identify(without_slice(card.get("name") or ""), card.get("total_bytes"))


def _kind(card: Answer, host: Answer) -> GpuKind | None:
    """By the driver's name and total; one that refuses the total may share the host's memory, whose size then tells."""
    name, total = card.get("name") or "", card.get("total_bytes")
    return identify(name, total) or (identify_shared(name, host.get("ram_total_bytes")) if total is None else None)


def _capability(device: Device, kind: GpuKind | None) -> tuple[int, int] | None:
    """The driver's word; for a name that the catalogue knows, the catalogue's."""
    told = device.card.get("compute_capability")
    if told is not None:
        return int(told[0]), int(told[1])
    if kind is None:
        kind = _whole(device.card)
    return kind.compute_capability if kind else None


def _holder(process: Answer) -> Holder:
    return Holder(pid=process["pid"], name=process.get("name"), used_bytes=process.get("used_bytes"))


def _ram(host: Answer) -> tuple[int | None, int | None]:
    """Total and free host memory: the smaller of the machine's and the container's."""
    cgroup = host.get("cgroup") or {}
    total = _smallest(host.get("ram_total_bytes"), cgroup.get("memory_limit_bytes"))
    return total, _smallest(host.get("ram_available_bytes"), cgroup.get("memory_room_bytes"), total)


def _cores(host: Answer) -> int | None:
    quota = (host.get("cgroup") or {}).get("cpu_quota")
    return _smallest(host.get("cpu_affinity"), None if quota is None else max(1, int(quota)))


def _smallest(*sizes: int | None) -> int | None:
    return min((size for size in sizes if size is not None), default=None)


def _links(seen: Seen, gpus: tuple[Gpu, ...], pairs: Sequence[Answer]) -> Links:
    if len(gpus) < 2:
        return Links()
    indices = {device.card["index"] for device in seen.devices}
    among = [pair for pair in pairs if indices.issuperset(pair["pair"])]
    nvlink = _for_all([pair["nvlink"] for pair in among])
    cards = [device.card for device in seen.devices]
    speed = _nvlink_bytes_per_s([gpu.kind for gpu in gpus]) if nvlink else _pcie_bytes_per_s(cards)
    return Links(nvlink=nvlink, p2p=_for_all([pair["read"] for pair in among]), bytes_per_s=speed)


def _for_all(answers: Sequence[bool | None]) -> bool | None:
    if any(answer is False for answer in answers):
        return False
    return None if not answers or any(answer is None for answer in answers) else True


def _nvlink_bytes_per_s(kinds: Sequence[GpuKind | None]) -> float | None:
    speeds = [kind.nvlink_bytes_per_s if kind else None for kind in kinds]
    known = [speed for speed in speeds if speed is not None]
    return min(known) if len(known) == len(speeds) else None


def _pcie_bytes_per_s(cards: Sequence[Answer]) -> float | None:
    """The slowest card's link: its best generation (an idle card runs slower) on the lanes that it has now."""
    speeds = []
    for card in cards:
        lane = PCIE_LANE_BYTES_PER_S.get(card.get("pcie_generation") or 0)
        lanes = card.get("pcie_lanes")
        if lane is None or not lanes:
            return None
        speeds.append(lane * lanes)
    return min(speeds, default=None)


def _warnings(
    nvml: Answer, seen: Seen, read: Sequence[tuple[Device, Gpu | None]], gpus: Sequence[Gpu], software: dict[str, str]
) -> list[str]:
    found = _absence(nvml) + list(seen.warnings)
    found += [_left_out(device) for device, gpu in read if gpu is None]
    found += [sentence for device, gpu in read if gpu is not None for sentence in _held(device, gpu)]
    found += [f"the driver refused {line}" for line in nvml.get("refused", [])]
    return found + _software_warnings(gpus, software)


def _absence(nvml: Answer) -> list[str]:
    if nvml.get("own_chip"):
        return [
            f"no NVIDIA driver answered ({nvml['own_chip']}); the device tree says that the GPU is "
            f"{nvml['gpus'][0]['name']}, part of this chip"
        ]
    if nvml.get("error"):
        return [
            f"no NVIDIA driver answered ({nvml['error']}); AMD and Ascend cards are not probed, name them with --gpus"
        ]
    return [] if nvml["gpus"] else ["the NVIDIA driver answered and lists no GPU"]


def _left_out(device: Device) -> str:
    name = device.card.get("name") or "a card without a name"
    return f"gpu {device.card['index']} ({name}) is left out: its memory size is refused and its name does not tell"


def _held(device: Device, gpu: Gpu) -> list[str]:
    """What holds memory on a card, or what is not known about it."""
    place = f"gpu {gpu.index} ({gpu.name})"
    if gpu.free_bytes is None:
        return [f"{place}: free memory is unknown; planned as if all {show_gib(gpu.capacity_bytes)} were free"]
    used = device.raw.get("used_bytes")
    if used is None or used < QUIET_BYTES:
        return []
    return [f"{place}: {show_gib(used)} is in use, {show_gib(gpu.free_bytes)} free; {held_by(gpu, used)}"]


def held_by(gpu: Gpu, used_bytes: int) -> str:
    """``"held by python (4242) 11.7 GiB, ..."``: who has a card's memory, as far as the driver names them."""
    named = [f"{holder.name or 'process'} ({holder.pid})" + _amount(holder) for holder in gpu.holders]
    told = sum(holder.used_bytes or 0 for holder in gpu.holders)
    unseen = used_bytes - told
    if unseen >= QUIET_BYTES and all(holder.used_bytes is not None for holder in gpu.holders):
        named.append(f"{show_gib(unseen)} by what is not visible from here (the display, another user or container)")
    return "held by " + ", ".join(named or ["processes that the driver does not name"])


def _amount(holder: Holder) -> str:
    return f" {show_gib(holder.used_bytes)}" if holder.used_bytes is not None else ""


def _software_warnings(gpus: Sequence[Gpu], software: dict[str, str]) -> list[str]:
    torch = software.get("torch", "")
    if gpus and torch.endswith("+cpu"):
        return [f"torch {torch} is a build without CUDA and cannot use these GPUs"]
    return []
