"""EDGE: local folders, config.json files and the Hugging Face cache -> config dict and what the weight files say."""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import InputError

_HEADER_LIMIT_BYTES = 100_000_000  # safetensors' own limit
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What safetensors headers say: bytes of all tensors, elements of all tensors, bytes by dtype (``BF16`` …)."""

    total_bytes: int
    elements: int
    bytes_by_dtype: dict[str, int]
    missing_files: tuple[str, ...] = ()

    @property
    def main_dtype(self) -> str:
        """The dtype that holds most bytes."""
        return max(self.bytes_by_dtype, key=lambda name: self.bytes_by_dtype[name])


def config_path(name: str) -> Path | None:
    """The config.json that a path names (itself, or inside the folder), or None where nothing like it exists.

    Raises InputError for an existing folder without a config.json.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        return None
    inside = path / "config.json"
    if not inside.is_file():
        raise InputError(f"model folder {name!r} holds no config.json")
    return inside


def hub_cache_path(name: str) -> Path | None:
    """config.json of a model that lies in the local Hugging Face cache, or None."""
    folder = hub_cache_dir() / ("models--" + name.replace("/", "--"))
    if name.count("/") > 1 or not folder.is_dir():
        return None
    main = folder / "refs" / "main"
    revisions = [main.read_text().strip()] if main.is_file() else []
    snapshots = folder / "snapshots"
    revisions += sorted(each.name for each in snapshots.iterdir()) if snapshots.is_dir() else []
    found = (snapshots / revision / "config.json" for revision in revisions)
    return next((path for path in found if path.is_file()), None)


def hub_cache_dir() -> Path:
    """huggingface_hub's own order: HF_HUB_CACHE, HF_HOME/hub, XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("HF_HUB_CACHE")
    if given:
        return Path(given).expanduser()
    home = os.environ.get("HF_HOME")
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(home or f"{cache}/huggingface").expanduser() / "hub"


def read_config(path: Path) -> dict[str, Any]:
    """A parsed config.json. Raises InputError for a file that cannot be read or holds no JSON object."""
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{path}: cannot be read ({problem})") from None
    except json.JSONDecodeError as problem:
        raise InputError(f"{path}: line {problem.lineno} is not valid JSON ({problem.msg.lower()})") from None
    if not isinstance(parsed, dict):
        raise InputError(f"{path}: the file holds no JSON object")
    return parsed


def stored_weights(folder: Path) -> Stored | None:
    """Exact bytes, elements and dtypes of a folder's safetensors files; None where it has none.

    Shards that the index names and the folder lacks are listed in ``missing_files``.
    """
    index = folder / _INDEX
    if index.is_file():
        weight_map = read_config(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InputError(f"{index}: key 'weight_map' is missing")
        names = sorted({str(name) for name in weight_map.values()})
    else:
        names = sorted(each.name for each in folder.glob("*.safetensors"))
    present = [name for name in names if (folder / name).is_file()]
    if not present:
        return None
    total, elements, by_dtype = 0, 0, Counter[str]()
    for name in present:
        for dtype, shape_elements, size_bytes in _tensors(folder / name):
            total, elements = total + size_bytes, elements + shape_elements
            by_dtype[dtype] += size_bytes
    missing = tuple(name for name in names if name not in present)
    return Stored(total_bytes=total, elements=elements, bytes_by_dtype=dict(by_dtype), missing_files=missing)


def stated_bytes(path: Path) -> int:
    """Bytes that a safetensors file has by its own header. Raises InputError for one that cannot be read."""
    tensor_bytes = sum(size_bytes for _, _, size_bytes in _tensors(path))
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    return 8 + int(length) + tensor_bytes


def _tensors(path: Path) -> list[tuple[str, int, int]]:
    """(dtype, elements, bytes) of every tensor. Source: the safetensors format, a u64 length and a JSON header."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _HEADER_LIMIT_BYTES:
                raise ValueError("header too long")
            header = json.loads(file.read(length))
        return [_tensor(entry) for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise InputError(f"{path}: not a readable safetensors file") from None


def _tensor(entry: dict[str, Any]) -> tuple[str, int, int]:
    elements = 1
    for size in entry["shape"]:
        elements *= int(size)
    first, last = entry["data_offsets"]
    return str(entry["dtype"]), elements, int(last) - int(first)
