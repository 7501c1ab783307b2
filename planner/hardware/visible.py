"""Which devices a CUDA program would see: the rules of CUDA_VISIBLE_DEVICES on what the driver listed.

Source: CUDA C programming guide, environment variables; NVIDIA MIG user guide, CUDA device enumeration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Answer = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Device:
    """A card, or one MIG slice of it; ``raw`` is the driver's answer about what a program gets."""

    card: Answer
    raw: Answer
    is_slice: bool


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The devices in a program's order, and what a reader should know about the choice."""

    devices: tuple[Device, ...]
    warnings: tuple[str, ...] = ()


def visible_devices(cards: Sequence[Answer], chosen: str | None, *, order: str | None = None) -> Seen:
    """The devices that ``CUDA_VISIBLE_DEVICES=chosen`` leaves; None means that it is not set.

    ``order`` is CUDA_DEVICE_ORDER. Entries are indices, UUID prefixes or MIG names; the first entry that
    names nothing ends the list, as CUDA does.
    """
    everything = [device for card in cards for device in _devices_of(card)]
    unusable = tuple(_no_slices(card) for card in cards if not _devices_of(card))
    if chosen is None:
        return _with_slice_rule(everything, unusable)
    picked, warnings = _pick(cards, everything, chosen)
    return _with_slice_rule(picked, (*unusable, *warnings, *_order_warning(cards, chosen, order)))


def _devices_of(card: Answer) -> list[Device]:
    mig = card.get("mig") or {}
    if not mig.get("enabled"):
        return [Device(card=card, raw=card, is_slice=False)]
    return [Device(card=card, raw=part, is_slice=True) for part in mig.get("slices", [])]


def _no_slices(card: Answer) -> str:
    return f"gpu {card['index']} is in MIG mode without a slice, so no program can use it"


def _pick(cards: Sequence[Answer], everything: list[Device], chosen: str) -> tuple[list[Device], list[str]]:
    picked: list[Device] = []
    for entry in (part.strip() for part in chosen.split(",")):
        device = _find(cards, everything, entry)
        if device is None:
            return picked, [_end_of_list(chosen, entry)]
        if device in picked:
            return [], [f"CUDA_VISIBLE_DEVICES={chosen} names a device twice, and CUDA then shows none"]
        picked.append(device)
    return picked, []


def _end_of_list(chosen: str, entry: str) -> str:
    if entry in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES={chosen!r} hides every GPU from there on"
    return f"CUDA_VISIBLE_DEVICES={chosen}: {entry!r} names no device, and CUDA stops reading there"


def _find(cards: Sequence[Answer], everything: list[Device], entry: str) -> Device | None:
    if entry.isdigit():
        of_card = [device for device in everything if device.card["index"] == int(entry)]
        return of_card[0] if of_card else None
    if entry.startswith("MIG-GPU-"):
        return _old_slice_name(everything, entry)
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    matches = [device for device in everything if str(device.raw.get("uuid") or "").startswith(entry)]
    if not matches:  # a cut card named by its own UUID stands for its first slice
        matches = [device for device in everything if str(device.card.get("uuid") or "").startswith(entry)][:1]
    return matches[0] if len(matches) == 1 else None


def _old_slice_name(everything: list[Device], entry: str) -> Device | None:
    """``MIG-GPU-<uuid>/<gpu instance>/<compute instance>``, the form of drivers before 470."""
    card, _, instances = entry.removeprefix("MIG-").partition("/")
    for device in everything:
        own = f"{device.raw.get('gpu_instance')}/{device.raw.get('compute_instance')}"
        if device.is_slice and str(device.card.get("uuid") or "").startswith(card) and own == instances:
            return device
    return None


def _with_slice_rule(devices: list[Device], warnings: tuple[str, ...]) -> Seen:
    """One CUDA program sees one slice, and no whole card beside it."""
    slices = [device for device in devices if device.is_slice]
    if not slices or len(devices) == 1:
        return Seen(devices=tuple(devices), warnings=warnings)
    first, rest = slices[0], len(devices) - 1
    name = first.raw.get("name") or "the first slice"
    sentence = (
        f"a program sees one MIG slice and nothing beside it: planned for {name}; "
        f"{rest} other device{'s are' if rest > 1 else ' is'} left out (choose with CUDA_VISIBLE_DEVICES=MIG-...)"
    )
    return Seen(devices=(first,), warnings=(*warnings, sentence))


def _order_warning(cards: Sequence[Answer], chosen: str, order: str | None) -> list[str]:
    """Indices count in CUDA's order, fastest first, unless told otherwise; the driver counts by PCI bus."""
    by_index = any(part.strip().isdigit() for part in chosen.split(","))
    alike = len({(card.get("name"), card.get("total_bytes")) for card in cards}) <= 1
    if not by_index or alike or order == "PCI_BUS_ID":
        return []
    return [
        "CUDA counts different cards fastest first, the driver by PCI bus: "
        "set CUDA_DEVICE_ORDER=PCI_BUS_ID so that CUDA_VISIBLE_DEVICES means these cards"
    ]
