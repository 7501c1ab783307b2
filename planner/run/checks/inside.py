"""EDGE, inside the engine's Python: versions, requirements, imports, torch, told as lines of JSON on its first output.

Standard library only and no import of this package: that Python need not have it, and may be older than ours. The one
argument is a JSON object: ``packages``, ``engine`` (whose requirements are checked), ``torch`` (whether to import it),
``modules`` to import (pairs of package and module; what is not installed is passed by). Without ``packages`` only the
modules are tried.
"""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import importlib.util
import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO


def versions(names: list[str]) -> dict[str, str]:
    """Those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = str(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return found


def unmet(package: str) -> list[list[str | None]]:
    """Pairs of a stated requirement and what is installed; empty where nothing can be told."""
    try:
        requirements = importlib.import_module("packaging.requirements")  # that Python's; it comes with transformers
    except ImportError:
        return []
    stated = [requirements.Requirement(text) for text in metadata.requires(package) or ()]
    found: list[list[str | None]] = []
    for each in stated:
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        have = versions([each.name]).get(each.name)
        if have is None or not each.specifier.contains(have, prereleases=True):
            found.append([f"{each.name}{each.specifier}", have])
    return found


def sentence(problem: BaseException) -> str:
    """The kind of an exception and the first line that says something."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0]}" if lines else type(problem).__name__


def built_for() -> dict[str, Any] | None:
    """What torch was built for, read from its version file."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(next(iter(found.submodule_search_locations))) / "version.py"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return None
    values = dict(re.findall(r"^(cuda|hip|__version__)\b[^=\n]*=\s*'([^']+)'", text, re.MULTILINE))
    return {"version": values.get("__version__", "?"), "cuda": values.get("cuda"), "hip": values.get("hip")}


def reaches() -> dict[str, Any]:
    """Whether torch gets to the GPUs; what it warns of is the reason."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch = importlib.import_module("torch")
        available = bool(torch.cuda.is_available())
        count = int(torch.cuda.device_count())
    reasons = [str(each.message).splitlines()[0] for each in said if "CUDA" in str(each.message)]
    flags = torch._C._cuda_getArchFlags() if hasattr(torch._C, "_cuda_getArchFlags") else ""
    problem = None if available else next(iter(reasons), None)
    return {"available": available, "count": count, "architectures": (flags or "").split(), "problem": problem}


def tell(stream: TextIO, **values: Any) -> None:
    """One line."""
    stream.write(json.dumps(values) + "\n")
    stream.flush()


def main(asked: dict[str, Any], stream: TextIO) -> None:
    """Cheap answers first, so that a module that ends the process takes none of them along."""
    if asked["packages"]:
        facts(asked, stream)
    installed = versions([package for package, _ in asked["modules"]])
    for package, module in asked["modules"]:
        if package in installed:
            tell(stream, trying=module)
            try:
                importlib.import_module(module)
            except (Exception, SystemExit) as problem:
                tell(stream, broken=[module, sentence(problem)])
    tell(stream, done=True)


def facts(asked: dict[str, Any], stream: TextIO) -> None:
    """Versions, requirements, and what torch was built for."""
    tell(stream, version=sys.version.split()[0], packages=versions(asked["packages"]))
    if asked["engine"] and versions([asked["engine"]]):
        tell(stream, unmet=unmet(asked["engine"]))
    torch = built_for()
    tell(stream, torch=torch)
    if torch is not None and asked["torch"]:
        tell(stream, trying="torch")
        try:
            tell(stream, torch={**torch, **reaches()})
        except Exception as problem:
            tell(stream, torch={**torch, "available": False, "problem": sentence(problem)})


if __name__ == "__main__":
    _own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what imports print is nobody's answer
    main(json.loads(sys.argv[1]), _own)
