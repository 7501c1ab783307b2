"""Where local history lies, and whether it is wanted (an edge: environment and file system, nothing opened).

``VRAMPLAN_HISTORY=off`` leaves history out: nothing is read, nothing is remembered. ``VRAMPLAN_HOME`` names the folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from planner.training import FLAGS

FILE = "history.sqlite"


def home() -> Path:
    """The folder of this user's data: VRAMPLAN_HOME, else the platform's place for such files.

    Source: XDG Base Directory specification (XDG_DATA_HOME); Apple's and Microsoft's folders for application data.
    """
    named = os.environ.get("VRAMPLAN_HOME")
    if named:
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "vramplan"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "vramplan"
    data = os.environ.get("XDG_DATA_HOME") or ""  # a relative path there is to be ignored
    return (Path(data) if Path(data).is_absolute() else Path.home() / ".local" / "share") / "vramplan"


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
