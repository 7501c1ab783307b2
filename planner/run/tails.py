"""EDGE: a file that somebody else appends to, read line by line as it grows."""

from __future__ import annotations

from pathlib import Path


class JsonlTail:
    """Whole lines that were added since the last look; a file that shrank or was made anew is read from its start."""

    def __init__(self, path: Path, *, from_end: bool = True) -> None:
        self.path = path
        self._offset = self._size() if from_end else 0

    def new_lines(self) -> list[str]:
        """Lines added since the last call; half a line stays for the next."""
        size = self._size()
        if size < self._offset:
            self._offset = 0
        if size == self._offset:
            return []
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(size - self._offset)
        except OSError:
            return []
        end = data.rfind(b"\n") + 1
        self._offset += end
        return [line.decode("utf-8", "replace") for line in data[:end].splitlines() if line.strip()]

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0
