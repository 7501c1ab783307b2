"""EDGE: what the engine prints, from its pipe to a log that stays small, with secrets hidden on the way."""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from planner.run.background import in_background
from planner.run.diagnose import REMARKABLE
from planner.run.surroundings import redact_bytes

FIRST_BYTES = 2 << 20
PART_BYTES = 8 << 20
TAIL_LINES = 300
REMARKABLE_LINES = 400
LONGEST_LINE = 4096
# Reading waits a little after every read, so that a bar that moves ten times a second does not wake it as often.
PAUSE_S = 0.5
_CHUNK = 1 << 18
_BUSY = 1 << 15  # as much at once: nothing waits any more


class RotatingLog:
    """``log`` is what is written now, ``log.1`` the part before it, ``log.first`` the beginning: 18 MiB at most.

    A disk without room costs the log, never the run: ``lost_bytes`` counts what could not be written.
    """

    def __init__(self, path: Path, *, first_bytes: int = FIRST_BYTES, part_bytes: int = PART_BYTES) -> None:
        self.path = path
        self.lost_bytes = 0
        self._first_left = first_bytes
        self._part_bytes = part_bytes
        self._written = 0
        self._file: int | None = None

    def write(self, data: bytes) -> None:
        """Append; the oldest part beyond the beginning goes when a part is full."""
        try:
            if self._first_left > 0:
                self._append(self.path.with_name(self.path.name + ".first"), data[: self._first_left])
                self._first_left -= len(data)
            self._write(data)
        except OSError:
            self.lost_bytes += len(data)

    def _write(self, data: bytes) -> None:
        if self._file is None or self._written >= self._part_bytes:
            self._rotate()
        view = memoryview(data)
        while view:
            count = os.write(self._file, view)  # type: ignore[arg-type]
            self._written += count
            view = view[count:]

    def _rotate(self) -> None:
        self.close()
        if self.path.exists() and self.path.stat().st_size >= self._part_bytes:
            self.path.replace(self.path.with_name(self.path.name + ".1"))
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._written = os.fstat(self._file).st_size

    @staticmethod
    def _append(path: Path, data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    def close(self) -> None:
        """End the part that is written now."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Tail:
    """The last lines of the output, and the last remarkable ones however many others came after them."""

    def __init__(self) -> None:
        self._last: deque[tuple[int, bytes]] = deque(maxlen=TAIL_LINES)
        self._remarkable: deque[tuple[int, bytes]] = deque(maxlen=REMARKABLE_LINES)
        self._first_errors: list[tuple[int, bytes]] = []
        self._count = 0

    def add(self, text: bytes) -> None:
        r"""Whole lines; ``\r`` ends one too."""
        lines = [line for line in text.replace(b"\r", b"\n").split(b"\n") if line]
        first = self._count + 1
        self._count += len(lines)
        if any(word in text for word in REMARKABLE):
            for number, line in enumerate(lines, start=first):
                if any(word in line for word in REMARKABLE):
                    self._note((number, line[:LONGEST_LINE]))
        for number, line in enumerate(lines[-TAIL_LINES:], start=self._count + 1 - min(len(lines), TAIL_LINES)):
            self._last.append((number, line[:LONGEST_LINE]))

    def _note(self, numbered: tuple[int, bytes]) -> None:
        self._remarkable.append(numbered)
        if len(self._first_errors) < REMARKABLE_LINES:
            self._first_errors.append(numbered)

    def lines(self) -> list[str]:
        """All that is kept, in the order it was printed."""
        kept = dict([*self._first_errors, *self._remarkable, *self._last])
        return [kept[number].decode("utf-8", "replace") for number in sorted(kept)]

    def last(self, count: int) -> list[str]:
        """The newest lines that are not blank."""
        lines = [line.decode("utf-8", "replace").rstrip() for _, line in self._last]
        return [line for line in lines if line.strip()][-count:]


class Pump(threading.Thread):
    r"""Reads the engine's pipe to its end, in gulps, so that the engine never waits for it.

    ``seen`` gets whole lines (``\r`` ends one too: progress bars) as bytes, secrets already hidden.
    """

    def __init__(self, pipe: int, log: RotatingLog, seen: Callable[[bytes], None], secrets: Sequence[str] = ()) -> None:
        super().__init__(name="vramplan-log", daemon=True)
        self.tail = Tail()
        self.read_bytes = 0
        self._pipe, self._log, self._seen = pipe, log, seen
        self._secrets = [secret.encode() for secret in secrets]
        self._rest = b""
        self._hurry = threading.Event()

    def run(self) -> None:
        """Until every process that holds the other end has gone."""
        with in_background():
            try:
                while self._gulp():
                    pass
            except (OSError, ValueError):  # the pipe was closed under it
                pass
            self._take(b"", flush=True)
            self._log.close()

    def _gulp(self) -> bool:
        """Read what is there, and let some more gather; half a line waits for its end that long. False at the end."""
        ready, _, _ = select.select([self._pipe], [], [], PAUSE_S if self._rest else None)
        data = os.read(self._pipe, _CHUNK) if ready else b""
        if ready and not data:
            return False
        self._take(data, flush=not ready)
        if ready and len(data) < _BUSY:
            self._hurry.wait(PAUSE_S)
        return True

    def finish(self, patience_s: float) -> None:
        """The engine has ended: read the rest without pauses."""
        self._hurry.set()
        self.join(patience_s)

    def _take(self, data: bytes, *, flush: bool) -> None:
        self.read_bytes += len(data)
        text = self._rest + data
        end = len(text) if flush or len(text) > _CHUNK * 2 else max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        whole, self._rest = text[:end], text[end:]
        if not whole:
            return
        whole = redact_bytes(whole, self._secrets)
        self._log.write(whole)
        self.tail.add(whole)
        self._seen(whole)
