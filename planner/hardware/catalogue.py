"""rules/gpus.toml as GpuKind records: found by the name a person types. Rows become records only when asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from planner.errors import InputError, nearest
from planner.hardware.machine import GpuKind
from planner.rulebook.load import read_rules
from planner.units import GIB, MIB

# Bytes/s of one PCIe lane in one direction, after 128b/130b coding (PCI-SIG: 8, 16, 32 and 64 GT/s).
PCIE_LANE_BYTES_PER_S = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}

_VENDOR_WORDS = re.compile(r"\b(nvidia|geforce|tesla|amd|instinct|radeon|huawei)\b", re.IGNORECASE)
_SIZE = re.compile(r"[\s_-]+\d+\s*gi?b?\s*$", re.IGNORECASE)
_SERIES = re.compile(r"^(rtx|gtx|rx)(?=\d)")

Row = Mapping[str, Any]


def search_key(text: str) -> str:
    """What is left of a name without case, spaces, dashes, brackets and makers' words: ``rtx4090``."""
    return re.sub(r"[^a-z0-9]", "", _VENDOR_WORDS.sub(" ", text).lower())


def find_gpu(text: str, *, place: str = "--gpus") -> GpuKind:
    """The card that a person means by ``RTX4090``, ``4090``, ``A100-80GB`` or the driver's own name.

    Raises InputError: a name of several sizes lists them, an unknown one lists the nearest names.
    """
    rows = _by_key().get(search_key(text), ())
    if not rows:
        raise _unknown(text, place)
    sold = [row for row in rows if not row.get("rebuilt")] or list(rows)
    if len(sold) > 1:
        offers = " or ".join(short_name(row) for row in rows)
        raise InputError(f"{place} {text!r} stands for several cards; name one: {offers}")
    return kind(sold[0])


def reading(text: str) -> str | None:
    """What is assumed when this text names the card: ``A100-80GB`` leaves the board open, ``A100-PCIe-80GB`` not."""
    row = _by_id()[find_gpu(text).id]
    return row.get("stands_for") if search_key(text) in _with_size({search_key(row["aliases"][0])}, row) else None


def knows(text: str) -> bool:
    """True where the catalogue has the name, be it of one card or of several."""
    return search_key(text) in _by_key()


def search_gpus(query: str) -> list[GpuKind]:
    """Cards whose names or architecture match every word of the query, in the file's order; all for ''."""
    words = [search_key(word) or word.lower() for word in query.split()]
    return [kind(row) for row in rows() if all(_matches(row, word) for word in words)]


def closest_names(text: str, *, limit: int = 3) -> list[str]:
    """The catalogue names most like ``text``, best first."""
    wanted = search_key(text)
    keys = nearest(wanted, _by_key(), limit=limit * 2)
    names = dict.fromkeys(short_name(_by_key()[key][0]) for key in keys)
    return list(names)[:limit]


def kind(row: Row) -> GpuKind:
    """A row as a record."""
    return _kind(row["id"])


def short_name(row: Row) -> str:
    """The shortest word that ``--gpus`` understands as exactly this row, such as ``RTX3080-10GB``."""
    alias: str = row["aliases"][0]
    found = _by_key()[search_key(alias)]
    sold = [other for other in found if not other.get("rebuilt")] or list(found)
    return alias if sold == [row] else f"{alias}-{row['memory']['gib']}GB"


def name_for_flags(identifier: str) -> str:
    """The word for ``--gpus`` of the card with this catalogue id."""
    return short_name(_by_id()[identifier])


def offered_bytes(found: GpuKind) -> int:
    """What CUDA offers a program of a card: the total that cudaMemGetInfo and torch tell.

    nvidia-smi shows more from driver 510 on, which counts what the driver keeps for itself. Where no log shows CUDA's
    total, the driver's counts less the most that it keeps of a card of this size or smaller; a size that no driver
    reported is left as it is.
    """
    if found.cuda_bytes is not None:
        return found.cuda_bytes
    if found.vendor != "nvidia" or found.unified or not found.memory_reported:
        return found.memory_bytes
    return found.memory_bytes - _withheld_bytes(found.nominal_bytes or found.memory_bytes)


@cache
def _withheld_bytes(nominal_bytes: int) -> int:
    """The most that the driver keeps of a card of this size or smaller of which both totals are known."""
    both = [row["memory"] for row in rows() if "cuda_mib" in row["memory"]]
    kept: list[tuple[int, int]] = [
        (memory["gib"] * GIB, (memory["driver_mib"] - memory["cuda_mib"]) * MIB) for memory in both
    ]
    return max((part for size, part in kept if size <= nominal_bytes), default=min(part for _, part in kept))


@cache
def rows() -> tuple[Row, ...]:
    """Every ``[[gpu]]`` of rules/gpus.toml."""
    return tuple(read_rules("gpus")["gpu"])


@cache
def slices() -> tuple[Row, ...]:
    """Every ``[[slices]]`` of rules/gpus.toml: the MIG profiles of cards."""
    return tuple(read_rules("gpus").get("slices", ()))


def socs(row: Row) -> list[str]:
    """Systems on a chip that have this GPU, as a device tree names them."""
    found: list[str] = _architectures()[row["architecture"]].get("soc", [])
    return found


@cache
def _by_id() -> dict[str, Row]:
    return {row["id"]: row for row in rows()}


@cache
def _architectures() -> dict[str, Row]:
    return {row["id"]: row for row in read_rules("gpus")["architecture"]}


@cache
def _by_key() -> dict[str, tuple[Row, ...]]:
    found: dict[str, list[Row]] = {}
    for row in rows():
        for key in _keys(row):
            found.setdefault(key, []).append(row)
    return {key: tuple(kept) for key, kept in found.items()}


def _keys(row: Row) -> set[str]:
    """Every word for a row: its id, aliases and names, each also with its size and without RTX or GTX."""
    return _with_size({search_key(word) for word in (row["id"], *row["aliases"], *row["names"])}, row)


def _with_size(words: set[str], row: Row) -> set[str]:
    size = f"{row['memory']['gib']}g"
    words |= {word + end for word in words if not word.endswith(size + "b") for end in (size, size + "b")}
    return words | {_SERIES.sub("", word) for word in words}


def _matches(row: Row, word: str) -> bool:
    return word == search_key(row["architecture"]) or any(word in key for key in _keys(row))


def _unknown(text: str, place: str) -> InputError:
    others = _by_key().get(search_key(_SIZE.sub("", text)), ())
    if others:
        sizes = " or ".join(short_name(row) for row in others)
        return InputError(f"{place}: there is no {text!r} in the catalogue; that card is known as {sizes}")
    close = closest_names(text)
    offer = f"did you mean {' or '.join(close)}?" if close else "`plan gpus` lists what is known"
    return InputError(f"{place}: GPU {text!r} is not in the catalogue; {offer}", hint="a size works too: 2x24GB")


@cache
def _kind(identifier: str) -> GpuKind:
    row = _by_id()[identifier]
    architecture = _architectures()[row["architecture"]]
    memory = row["memory"]
    capability = architecture.get("compute_capability")
    reported = memory.get("driver_mib")
    return GpuKind(
        id=row["id"],
        name=row["names"][0],
        vendor=architecture["vendor"],
        architecture=row["architecture"],
        memory_bytes=reported * MIB if reported else memory["gib"] * GIB,
        memory_reported=reported is not None,
        nominal_bytes=memory["gib"] * GIB,
        cuda_bytes=memory["cuda_mib"] * MIB if "cuda_mib" in memory else None,
        compute_capability=(capability[0], capability[1]) if capability else None,
        dense_tflops={dtype: float(value) for dtype, value in row.get("tflops", {}).items()},
        dtypes=tuple(architecture["dtypes"]),
        bandwidth_bytes_per_s=_scaled(row.get("bandwidth_gb_per_s"), 1e9),
        nvlink_bytes_per_s=_scaled(row.get("nvlink_gb_per_s"), 0.5e9),
        nvlink_bridge=row.get("nvlink_bridge", False),
        pcie_bytes_per_s=_pcie_bytes_per_s(row.get("pcie")),
        unified=row.get("unified", False),
        system_bytes=memory["system_mib"] * MIB if "system_mib" in memory else None,
        note=row.get("note"),
        source=_sources(row),
        checked=str(row["checked"]),
    )


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _pcie_bytes_per_s(pcie: Row | None) -> float | None:
    return None if pcie is None else PCIE_LANE_BYTES_PER_S[pcie["generation"]] * pcie["lanes"]


def _sources(row: Row) -> str:
    parts: Iterable[str | None] = (row["source"], row.get("memory_source"))
    return "; ".join(part for part in parts if part)
