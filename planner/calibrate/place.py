"""Where this user's files lie, and whether history is wanted (an edge: environment and file system, nothing opened).

``VRAMPLAN_HISTORY=off`` leaves history out: nothing is read, nothing is remembered. ``VRAMPLAN_HOME`` names the folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from planner.training import FLAGS

FILE = "history.sqlite"
_XDG = {"data": ("XDG_DATA_HOME", ".local/share"), "state": ("XDG_STATE_HOME", ".local/state")}


def home(kind: Literal["data", "state"] = "data") -> Path:
    """The folder of this user's data (history), or state (the index of runs): VRAMPLAN_HOME, else the platform's place.

    Raises RuntimeError for a user without a home. Source: XDG Base Directory specification; Apple's and Microsoft's
    folders for application data.
    """
    named = os.environ.get("VRAMPLAN_HOME")
    if named:
        return Path(named).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "vramplan"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "vramplan"
    variable, default = _XDG[kind]
    stated = Path(os.environ.get(variable) or "")  # a relative path there is to be ignored
    return (stated if stated.is_absolute() else Path.home() / default) / "vramplan"


def store_path() -> Path:
    """The file of predictions against observations; it need not exist."""
    return home() / FILE


def is_wanted() -> bool:
    """False where VRAMPLAN_HISTORY says off (or false, no, 0)."""
    return FLAGS.get(os.environ.get("VRAMPLAN_HISTORY", "on").strip().lower(), True)


def stamp(path: Path) -> tuple[int, ...] | None:
    """What changes whenever the file does (its write-ahead log too); None where there is no such file."""
    found: list[int] = []
    for each in (path, path.with_name(path.name + "-wal")):
        try:
            told = each.stat()
        except OSError:
            if each is path:
                return None
            continue
        found += [told.st_ino, told.st_mtime_ns, told.st_size]
    return tuple(found)
