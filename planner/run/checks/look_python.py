"""EDGE: ask the engine's Python what it has, in a process of its own; a module that kills it is named and passed by."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planner.run.checks.records import Package, PythonFacts, TorchFacts, Unmet
from planner.run.surroundings import is_secret, redact, secrets_of

ASK_SECONDS = 120.0  # torch and DeepSpeed from a cold network disk take a minute
INSIDE = Path(__file__).with_name("inside.py")
_EXEC = re.compile(r"""^'''exec' "?([^"\n]+?)"? "\$0" "\$@\"""")  # pip's form for paths that a first line cannot hold


def interpreter_of(program: str) -> str:
    """The Python that a launcher's script runs in: its first line's, else the one beside it, else this one."""
    try:
        with Path(program).open("rb") as file:
            head = file.read(4096).decode("utf-8", "replace").splitlines()
    except OSError:
        head = []
    first = head[0][2:].strip().split(" ") if head and head[0].startswith("#!") else []
    longer = _EXEC.match(head[1]) if len(head) > 1 else None
    stated = longer[1] if longer else first[0] if first and "python" in Path(first[0]).name else None
    beside = Path(program).with_name("python")
    for path in (stated, str(beside)):
        if path and Path(path).exists():
            return path
    return sys.executable


def ask_python(
    path: str,
    packages: Sequence[Package],
    *,
    also: Sequence[str] = (),
    engine: str | None = None,
    with_torch: bool = False,
    environment: Mapping[str, str],
    seconds: float = ASK_SECONDS,
) -> PythonFacts:
    """What that Python has; ``environment`` is the run's, of which secrets are kept back.

    ``also`` are packages whose versions are asked as well; ``with_torch`` imports torch to see whether it reaches the
    GPUs.
    """
    asking = _Asking(path, {name: value for name, value in environment.items() if not is_secret(name)}, seconds)
    modules = [(each.name, each.module) for each in packages if each.module]
    names = list(dict.fromkeys([*(each.name for each in packages), *also]))
    asking.ask({"packages": names, "engine": engine, "torch": with_torch, "modules": modules})
    while asking.ended_at is not None:  # go on behind what ended the process
        tried = [module for _, module in modules]
        modules = modules[tried.index(asking.ended_at) + 1 :] if asking.ended_at in tried else modules
        asking.ask({"packages": [], "engine": None, "torch": False, "modules": modules})
    found = asking.told
    if "packages" not in found:
        return PythonFacts(path=path, problem=asking.problem or "it says nothing")
    secrets = secrets_of(environment)
    return PythonFacts(
        path=path,
        version=found["version"],
        packages=found["packages"],
        broken={module: redact(reason, secrets) for module, reason in asking.broken.items()},
        unmet=tuple(Unmet(stated=stated, installed=installed) for stated, installed in found.get("unmet", ())),
        torch=_torch(found.get("torch")),
    )


class _Asking:
    """One Python and what it told so far. ``ended_at`` is the module at which its last process ended too early."""

    def __init__(self, path: str, environment: Mapping[str, str], seconds: float) -> None:
        self._path, self._environment, self._seconds = path, dict(environment), seconds
        self._source = f"exec(compile({INSIDE.read_text(encoding='utf-8')!r}, 'inside', 'exec'))"
        self.told: dict[str, Any] = {}
        self.broken: dict[str, str] = {}
        self.ended_at: str | None = None
        self.problem: str | None = None

    def ask(self, asked: Mapping[str, Any]) -> None:
        """Start it once. It starts in its own folder: nothing of the plan's can shadow a module."""
        self.ended_at = None
        try:
            done = subprocess.run(  # noqa: S603 - the Python that was named, our own words
                [self._path, "-c", self._source, json.dumps(asked)], env=self._environment,
                cwd=Path(self._path).absolute().parent, stdin=subprocess.DEVNULL, capture_output=True,
                timeout=self._seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            self._take(late.stdout or b"", f"it did not end in {self._seconds:.0f} s")
            return
        except OSError as problem:
            self.problem = (problem.strerror or str(problem)).lower()
            return
        code = done.returncode
        self._take(done.stdout, f"signal {-code} ended the process" if code < 0 else f"it ended with status {code}")

    def _take(self, output: bytes, ended: str) -> None:
        trying: str | None = None
        for line in output.decode("utf-8", "replace").splitlines():
            told = _line(line)
            if told.pop("done", False):
                return
            trying = told.pop("trying", trying)
            if "broken" in told:
                module, reason = told.pop("broken")
                self.broken[module] = reason
            self.told |= told
        self.problem, self.ended_at = ended, trying
        if trying == "torch":
            self.told["torch"] = {**(self.told.get("torch") or {}), "available": False, "problem": ended}
        elif trying is not None:
            self.broken[trying] = ended


def _line(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _torch(told: Mapping[str, Any] | None) -> TorchFacts | None:
    if not told:
        return None
    return TorchFacts(**{**told, "architectures": tuple(told.get("architectures", ()))})
