"""EDGE: a run's folder on disk, the lock on a plan's folder, and the index of runs.

``<plan folder>/runs/<id>/`` holds ``state.json`` (whole or not at all), ``events.jsonl``, ``samples.jsonl``, the log.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.calibrate.place import home
from planner.errors import InputError, nearest
from planner.run.records import RunState

if TYPE_CHECKING:
    from pydantic import TypeAdapter

FORMAT = 1
RUNS = "runs"
STATE, EVENTS, SAMPLES, LOG, STOP, REPORT = (
    "state.json", "events.jsonl", "samples.jsonl", "log", "stop", "report.json",
)  # fmt: skip
RESERVE, RESERVED_BYTES = ".reserve", 256 << 10
# A sample a second at first; the more there are, the rarer they become, so that a month stays a few megabytes.
SAMPLES_AT_FULL_RATE = 3600
_encoded = json.JSONEncoder(ensure_ascii=False, default=vars).encode  # records as they are, without a copy


class RunFolder:
    """Where one run keeps what it knows. Writing never raises: a full disk must not end a training.

    A little room is reserved for the last words: on a full disk it is given up to write how the run ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        self._next_sample = 0.0
        self._started = time.time()

    @property
    def id(self) -> str:
        """The run's name."""
        return self.path.name

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def save(self, state: RunState) -> None:
        """Replace ``state.json`` at once; the old one stays where there is no room for the new."""
        data = _encoded({"format": FORMAT} | vars(state)).encode()
        problem = self._replace(data)
        if problem is not None and not state.is_active:
            self.give_up_reserve()
            problem = self._replace(data)
        self.problem = problem and f"{self.path / STATE} cannot be written: {problem}"

    def _replace(self, data: bytes) -> str | None:
        building = self.path / f".{STATE}.{os.getpid()}"
        try:
            _write(building, data, os.O_TRUNC)
            building.replace(self.path / STATE)
        except OSError as problem:
            with suppress(OSError):
                building.unlink(missing_ok=True)
            return (problem.strerror or str(problem)).lower()
        return None

    def reserve(self) -> None:
        """Take the room for the last words."""
        with suppress(OSError):
            (self.path / RESERVE).write_bytes(b"\0" * RESERVED_BYTES)

    def give_up_reserve(self) -> None:
        """Let go of it; the run is at its end."""
        with suppress(OSError):
            (self.path / RESERVE).unlink(missing_ok=True)

    def event(self, kind: str, **values: Any) -> None:
        """One line of ``events.jsonl``: when, what, and its values (secrets hidden by the caller)."""
        self.events(kind, [values])

    def events(self, kind: str, each: Iterable[Mapping[str, Any]]) -> None:
        """A line for each, in one write."""
        at = round(time.time(), 3)
        self._append(EVENTS, [{"at": at, "event": kind, **values} for values in each])

    def sample(self, **values: Any) -> None:
        """One line of ``samples.jsonl``, as often as the age of the run allows."""
        now = time.time()
        if now >= self._next_sample:
            self._next_sample = now + max(1.0, (now - self._started) / SAMPLES_AT_FULL_RATE) - 0.25
            self._append(SAMPLES, [{"at": round(now, 2)} | values])

    def _append(self, name: str, entries: Iterable[Mapping[str, Any]]) -> None:
        lines = [_encoded({key: _finite(value) for key, value in entry.items()}) + "\n" for entry in entries]
        with suppress(OSError):
            _write(self.path / name, "".join(lines).encode(), os.O_APPEND)

    def ask_to_stop(self) -> None:
        """Leave word for the supervisor."""
        (self.path / STOP).touch()

    @property
    def is_asked_to_stop(self) -> bool:
        """True once somebody left word."""
        return (self.path / STOP).exists()


def _write(path: Path, data: bytes, how: int) -> None:
    """All of it into a file that is made where there is none, at the price of three calls of the system."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o666)
    try:
        while data:
            data = data[os.write(file, data) :]
    finally:
        os.close(file)


def _finite(value: Any) -> Any:
    """JSON knows no NaN: such a loss is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def new_run(plan_folder: Path) -> RunFolder:
    """A new empty folder under the plan's. Raises InputError where it cannot be made."""
    while True:
        path = plan_folder / RUNS / _new_name(time.time())
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if path.is_dir():  # another machine's run of the same millisecond
                continue
            raise InputError(f"{str(path)!r} cannot be made: file exists") from None
        except OSError as problem:
            raise InputError(f"{str(path)!r} cannot be made: {(problem.strerror or str(problem)).lower()}") from None
        return RunFolder(path)


def _new_name(now: float) -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{int(now * 1000) % 1000:03}{secrets.token_hex(1)}"


def load_state(path: Path) -> RunState:
    """The state that a run's folder holds. Raises InputError for one that is damaged, which is then set aside."""
    from pydantic import ValidationError

    file = path / STATE
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise ValueError("not of this format")
        return _adapter().validate_json(json.dumps(document))
    except FileNotFoundError:
        raise InputError(f"{str(path)!r} is not the folder of a run: it has no {STATE}") from None
    except OSError as problem:
        raise InputError(f"{str(file)!r} cannot be read: {(problem.strerror or str(problem)).lower()}") from None
    except (ValueError, RecursionError, ValidationError):
        aside = _set_aside(file)
        where = f"; it is kept as {aside.name}" if aside else ""
        raise InputError(
            f"the state of run {path.name} is damaged and was not read{where}",
            hint="its log, events and checkpoints are untouched: `plan run` on the plan's folder resumes from the last "
            "checkpoint",
        ) from None


def _set_aside(file: Path) -> Path | None:
    for number in range(1, 100):
        target = file.with_name(f"{STATE}.damaged-{number}")
        if not target.exists():
            with suppress(OSError):
                return file.replace(target)
            return None
    return None


@cache
def _adapter() -> TypeAdapter[RunState]:
    from pydantic import TypeAdapter

    return TypeAdapter(RunState)


def runs_of(plan_folder: Path) -> list[Path]:
    """The folders of a plan's runs, the oldest first."""
    try:
        return sorted(each for each in (plan_folder / RUNS).iterdir() if each.is_dir() and _is_run(each))
    except OSError:
        return []


def _is_run(path: Path) -> bool:
    return (path / STATE).exists() or any(path.glob(f"{STATE}.damaged-*")) or (path / EVENTS).exists()


# ---- one run at a time in a plan's folder


@contextmanager
def only_run(plan_folder: Path, words: str, *, share: str = "") -> Iterator[None]:
    """Hold the plan's folder for this process. The kernel lets go of it however the process ends.

    ``share`` names one machine's part of a run over several, which all work in the same folder. Raises InputError where
    another one holds it.
    """
    import fcntl

    path = plan_folder / RUNS / (f".lock-{share}" if share else ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as problem:
        reason = (problem.strerror or str(problem)).lower()
        raise InputError(f"{str(plan_folder)!r} cannot be written: {reason}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise _held(file.name, plan_folder) from None
        with suppress(OSError):
            file.truncate(0)
            file.write(words)
            file.flush()
        yield


def _held(path: str, plan_folder: Path) -> InputError:
    with suppress(OSError):
        words = Path(path).read_text(encoding="utf-8", errors="replace").strip()
        return InputError(
            f"{str(plan_folder)!r} is being run already ({words}); two runs would write over each other's checkpoints",
            hint="`plan runs` lists what runs; `plan attach RUN` shows it, `plan stop RUN` ends it",
        )
    return InputError(f"{str(plan_folder)!r} is being run already")


# ---- the index


def remember(folder: RunFolder) -> str | None:
    """Enter a run into the index: a file for each, so that none can damage another. A warning where it fails."""
    try:
        path = home("state") / RUNS / f"{folder.id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"folder": str(folder.path.resolve())}) + "\n", encoding="utf-8")
    except (OSError, RuntimeError) as problem:  # also the home of nobody
        reason = str(getattr(problem, "strerror", None) or problem).lower()
        return f"the run is not in the index of `plan runs`: {reason}"
    return None


def known_runs() -> list[Path]:
    """Folders of the runs in the index that are still there, the oldest first; damaged entries are passed by."""
    found: list[Path] = []
    try:
        entries = sorted((home("state") / RUNS).glob("*.json"))
    except (OSError, RuntimeError):
        return found
    for entry in entries:
        with suppress(OSError, ValueError, TypeError, KeyError):
            folder = Path(json.loads(entry.read_text(encoding="utf-8"))["folder"])
            if folder.is_dir():
                found.append(folder)
    return found


def find_run(name: str | None) -> Path:
    """A run by its name or the beginning of it, by its folder or its plan's; None or "last" is the newest.

    Raises InputError with the nearest names.
    """
    runs = known_runs()
    if name in (None, "last"):
        if not runs:
            raise InputError("no run is known here", hint="`plan run` starts one")
        return runs[-1]
    place = Path(str(name)).expanduser()
    if place.is_dir():
        inside = runs_of(place)
        if inside or (place / STATE).exists():
            return inside[-1] if inside else place
        raise InputError(f"{str(name)!r} holds no run", hint="`plan runs` lists the runs that are known")
    matching = [each for each in runs if each.name.startswith(str(name))]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise InputError(f"run {name!r} may be {' or '.join(each.name for each in matching[-3:])}: write more of it")
    close = nearest(str(name), [each.name for each in runs])
    offer = f"; did you mean {' or '.join(close)}?" if close else ""
    raise InputError(f"run {name!r} is not known{offer}", hint="`plan runs` lists the runs that are known")
