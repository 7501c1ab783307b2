"""EDGE: the checkpoints of an output folder, and which of them are whole."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path

_NAME = re.compile(r"^checkpoint-(\d+)$")
UNFINISHED = ".incomplete"


def step_of(checkpoint: Path) -> int | None:
    """The step that a folder's name states; None where it is no checkpoint."""
    found = _NAME.match(checkpoint.name)
    return int(found[1]) if found else None


def checkpoints(output: Path) -> list[Path]:
    """Every checkpoint, whole or not, the oldest first."""
    try:
        found = [each for each in output.iterdir() if step_of(each) is not None and each.is_dir()]
    except OSError:
        return []
    return sorted(found, key=lambda each: step_of(each) or 0)


def is_whole(checkpoint: Path) -> bool:
    """True where the trainer finished writing: ``trainer_state.json`` is its last file, and no weights are empty.

    DeepSpeed writes ``latest`` after its own files and before that.
    """
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        weights = [each for each in checkpoint.iterdir() if each.suffix in (".safetensors", ".bin", ".pt")]
        return isinstance(state, dict) and all(each.stat().st_size > 0 for each in weights)
    except (OSError, ValueError):
        return False


def last_whole(output: Path) -> Path | None:
    """The newest checkpoint that can be resumed from."""
    return next((each for each in reversed(checkpoints(output)) if is_whole(each)), None)


def set_unfinished_aside(output: Path) -> list[Path]:
    """Rename checkpoints that were cut off, newer than the last whole one, so that no trainer resumes from them.

    Nothing is deleted. Returns where they are now.
    """
    moved = []
    for each in reversed(checkpoints(output)):
        if is_whole(each):
            break
        target = each.with_name(each.name + UNFINISHED)
        number = 1
        while target.exists():
            number += 1
            target = each.with_name(f"{each.name}{UNFINISHED}-{number}")
        with suppress(FileNotFoundError):  # another machine of the run was first
            each.rename(target)
            moved.append(target)
    return moved
