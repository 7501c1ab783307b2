"""The log of one traced step: births and deaths of storages, in order, and what can be read from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

BLOCK_BYTES = 512  # torch's caching allocator rounds every request up to this


def rounded(nbytes: int) -> int:
    """Bytes the caching allocator counts for a request of ``nbytes``."""
    return -(-nbytes // BLOCK_BYTES) * BLOCK_BYTES


@dataclass(frozen=True)
class Birth:
    """One storage: bytes, the operation that made it, and where in the model that was."""

    number: int
    nbytes: int
    op: str
    shape: tuple[int, ...]
    dtype: str
    phase: str
    where: str


@dataclass(frozen=True)
class Event:
    """One line of the log; ``kind`` is birth, death, spike (a kernel's workspace), op or mark."""

    kind: str
    phase: str
    where: str
    text: str
    nbytes: int = 0
    number: int = -1


@dataclass
class Peak:
    """The highest point of a stretch of the log."""

    nbytes: int = 0
    at: int = -1


@dataclass
class Ledger:
    """Events in order, and every birth by its number."""

    events: list[Event] = field(default_factory=list)
    births: dict[int, Birth] = field(default_factory=dict)
    gradients: set[int] = field(default_factory=set)  # births that became a parameter's gradient
    dead: set[int] = field(default_factory=set)
    phase: str = "load"
    where: str = ""

    def birth(self, birth: Birth) -> None:
        """A storage is there."""
        self.births[birth.number] = birth
        self.events.append(Event("birth", self.phase, birth.where, birth.op, birth.nbytes, birth.number))

    def death(self, number: int) -> None:
        """A storage is gone."""
        known = self.births[number]
        self.dead.add(number)
        self.events.append(Event("death", self.phase, known.where, known.op, known.nbytes, number))

    def spike(self, op: str, nbytes: int, where: str) -> None:
        """A kernel takes that much for itself, and gives it back."""
        self.events.append(Event("spike", self.phase, where, op, nbytes))

    def mark(self, text: str) -> None:
        """A line for the reader."""
        self.events.append(Event("mark", self.phase, self.where, text))

    def enter(self, phase: str) -> None:
        """Another phase begins."""
        self.phase = phase
        self.mark(f"phase {phase}")

    def curve(self, *, round_up: bool = False) -> Iterator[tuple[int, Event, int]]:
        """Yields (index, event, live bytes while the event lasts); a spike is live for its event only."""
        size = rounded if round_up else int
        live = 0
        for index, event in enumerate(self.events):
            if event.kind == "birth":
                live += size(event.nbytes)
            elif event.kind == "death":
                live -= size(event.nbytes)
            yield index, event, live + (size(event.nbytes) if event.kind == "spike" else 0)

    def peaks(self, *, round_up: bool = False) -> dict[str, Peak]:
        """The peak of every phase, by the phase's name."""
        found: dict[str, Peak] = defaultdict(Peak)
        for index, event, live in self.curve(round_up=round_up):
            if live > found[event.phase].nbytes:
                found[event.phase] = Peak(live, index)
        return dict(found)

    def live_at(self, index: int) -> list[Birth]:
        """Storages alive at an event, largest first."""
        alive: dict[int, Birth] = {}
        for event in self.events[: index + 1]:
            if event.kind == "birth":
                alive[event.number] = self.births[event.number]
            elif event.kind == "death":
                alive.pop(event.number, None)
        return sorted(alive.values(), key=lambda b: -b.nbytes)

    def live_at_mark(self, text: str) -> int | None:
        """Live bytes at the last mark of that text, or None if there is none."""
        found = None
        for _, event, live in self.curve():
            if event.kind == "mark" and event.text == text:
                found = live
        return found
