"""Reading what a flag names (an edge): whatever is wrong with the file is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planner.errors import InputError


def read_text(path: str, *, place: str) -> str:
    """The text of a file that a flag names. Raises InputError naming flag, path and what is wrong."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")  # with or without a mark in front
    except UnicodeDecodeError:
        raise InputError(f"{place} {path!r} is not a text file in UTF-8") from None
    except ValueError as problem:  # a null byte, or letters that no file name can have
        raise InputError(f"{place} {path!r} is no file name: {problem}") from None
    except OSError as problem:
        raise InputError(f"{place} {path!r} cannot be read: {(problem.strerror or str(problem)).lower()}") from None


def read_json_object(path: str, *, place: str) -> dict[str, Any]:
    """The JSON object in a file that a flag names. Raises InputError."""
    return json_object(read_text(path, place=place), place=f"{place} {path!r}")


def json_object(text: str, *, place: str) -> dict[str, Any]:
    """The JSON object that ``text`` holds. Raises InputError, which ``place`` (a flag, or a file and line) opens."""
    try:
        value = json.loads(text)
    except ValueError as problem:
        raise InputError(f"{place} is not JSON: {problem}") from None
    except RecursionError:
        raise InputError(f"{place} is not read: its lists or objects lie too deep in each other") from None
    if not isinstance(value, dict):
        raise InputError(f"{place} holds no JSON object but a {type(value).__name__}")
    return value
