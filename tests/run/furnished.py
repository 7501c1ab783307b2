"""Places that have what a run asks for: an engine's environment by its metadata, a model in the hub's cache."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

from planner.rulebook.load import engine_rows

ENGINE = {
    "llamafactory": "0.9.5",
    **engine_rows()["llamafactory"]["versions"],
    "liger-kernel": "0.8.5",
    "deepspeed": "0.18.4",
}


def environment(folder: Path, packages: Mapping[str, str] = ENGINE) -> Path:
    """A virtual environment whose packages are metadata and empty modules; its Python."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    base = Path(sys.base_prefix) / "bin"
    (folder / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    site = site_of(folder)
    site.mkdir(parents=True)
    for name, version in packages.items():
        install(site, name, version)
    for module in ("liger_kernel.transformers", "deepspeed"):
        add_module(site, module)
    return python


def add_module(site: Path, name: str, source: str = "") -> None:
    """A module that does what its source says."""
    path = site.joinpath(*name.split("."))
    path.mkdir(parents=True)
    (path / "__init__.py").write_text(source)


def site_of(folder: Path) -> Path:
    return folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def install(site: Path, name: str, version: str, *requires: str) -> None:
    """The metadata of a package."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


def model(folder: Path, *, shards: int = 1) -> Path:
    """A model's folder: a config, a tokenizer, and weights of a few bytes with true headers."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    names = [f"model-{number:05}-of-{shards:05}.safetensors" for number in range(1, shards + 1)]
    names = ["model.safetensors"] if shards == 1 else names
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [64], "data_offsets": [0, 128]}}).encode()
    for name in names:
        (folder / name).write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 128)
    if shards > 1:
        index = {"weight_map": {f"weight{number}": name for number, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def cached_model(home: Path, name: str) -> Path:
    """The same as a snapshot in the hub's cache under HF_HOME."""
    return model(home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / "0123abcd")
