"""EDGE: texts -> a folder, whole or not at all, never over something else unasked."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from planner.errors import InputError

DEFAULT_BASE = Path("plans")
# Files that one plan has and another has not: an old one left behind would change what the folder says.
OPTIONAL_FILES = ("ds_config.json", "accelerate.yaml")
_EXECUTABLE = ".sh"


@dataclass(frozen=True, kw_only=True)
class Written:
    """A folder that holds the files. ``unchanged``: it was there already, with the same texts."""

    folder: Path
    files: tuple[str, ...]
    unchanged: bool

    @property
    def command(self) -> str:
        """What starts the run, from where the plan was made."""
        import shlex

        return f"bash {shlex.quote(str(self.folder / 'launch.sh'))}"


def write_folder(
    files: Mapping[str, str],
    out: str | Path | None,
    force: bool = False,
    *,
    name: str | None = None,
    base: Path = DEFAULT_BASE,
) -> Written:
    """Write ``files`` (relative name to text) as one folder and say where it is.

    ``out`` None: ``name``, else the name that ``plan.json`` states, under ``base``; the same texts there are left
    alone, other texts get the next free number. An explicit ``out`` with other content is replaced only with ``force``.
    Raises InputError where the folder exists, cannot be written, or a file stands in its way.
    """
    _check_names(files)
    wanted = base / (name or _name_of(files)) if out is None else Path(out)
    try:
        target = _numbered(wanted, files) if out is None else _explicit(wanted.expanduser(), files, force)
        unchanged = _holds(target, files)
        if not unchanged:
            _place(files, target)
    except (OSError, ValueError, RuntimeError) as problem:  # also a null byte, or the home of nobody
        raise InputError(f"--out {str(wanted)!r} cannot be written: {_reason(problem)}") from None
    return Written(folder=target, files=tuple(files), unchanged=unchanged)


def _name_of(files: Mapping[str, str]) -> str:
    return str(json.loads(files.get("plan.json", "{}")).get("name") or "plan")


def _reason(problem: Exception) -> str:
    return str(getattr(problem, "strerror", None) or problem).lower()


def _check_names(files: Mapping[str, str]) -> None:
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{name!r} is no name inside a folder")


def _numbered(first: Path, files: Mapping[str, str]) -> Path:
    target, number = first, 1
    while target.exists() and not _holds(target, files):
        number += 1
        target = first.with_name(f"{first.name}-{number}")
    return target


def _explicit(target: Path, files: Mapping[str, str], force: bool) -> Path:
    if not target.exists() or _holds(target, files) or _is_empty(target):
        return target
    if not target.is_dir():
        raise InputError(f"--out {str(target)!r} is a file; name a folder")
    if not force:
        raise InputError(f"--out {str(target)!r} exists and holds something else; name another folder or add --force")
    return target


def _is_empty(target: Path) -> bool:
    return target.is_dir() and not any(target.iterdir())


def _holds(target: Path, files: Mapping[str, str]) -> bool:
    """True where every file is there with its text; what a run has added beside them does not count."""
    return target.is_dir() and all(_same(target / name, text) for name, text in files.items())


def _same(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode("utf-8")
    except OSError:
        return False


def _place(files: Mapping[str, str], target: Path) -> None:
    """Build the folder beside its place, then rename it: at no moment is it there in part."""
    if target.exists() and not _is_empty(target):
        _place_over(files, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _fill(building, files)
        building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _place_over(files: Mapping[str, str], target: Path) -> None:
    """With --force: every text is on the disk before the first file is replaced; nothing but plan files goes."""
    building = Path(tempfile.mkdtemp(prefix=".vramplan.", dir=target))
    try:
        _fill(building, files)
        for name in files:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (building / name).replace(target / name)
        for name in OPTIONAL_FILES:
            if name not in files:
                (target / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _fill(folder: Path, files: Mapping[str, str]) -> None:
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8"))
        if path.suffix == _EXECUTABLE:
            path.chmod(0o777 & ~umask)
