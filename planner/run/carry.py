"""EDGE: what an earlier run of the same files was healed with, so that nobody has to run out of memory twice."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress

from planner.errors import PlannerError
from planner.run.attempt import Way
from planner.run.job import SAID_ELSEWHERE, Job
from planner.run.overrides import SIDE_FILES, target_of, with_settings
from planner.run.read_plan import priced
from planner.run.records import RunState
from planner.run.state import load_state, runs_of
from planner.run.surroundings import HIDDEN


def fingerprint(job: Job) -> str:
    """Equal for equal files and settings of one run."""
    told = json.dumps([sorted(job.texts.items()), sorted(job.overrides.items())], default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def first_way(job: Job, own_id: str) -> Way:
    """As the newest earlier run of the same files went on in the end, else as the files say."""
    plain = Way(setup=job.setup, estimate=job.estimate, values=dict(job.overrides))
    for path in reversed(runs_of(job.folder)):
        if path.name == own_id:
            continue
        with suppress(PlannerError, OSError, ValueError):
            state = load_state(path)
            return _healed(job, state, path.name) or plain
    return plain


def _healed(job: Job, state: RunState, name: str) -> Way | None:
    """The last attempt's settings, where they were healed and nothing was changed since; read back and priced."""
    if not state.healed or not state.attempts or state.fingerprint != fingerprint(job):
        return None
    last = state.attempts[-1]
    if any(value == HIDDEN for value in last.overrides.values()):
        return None
    target = target_of(job.engine)
    files = {each: (job.folder / "runs" / name / each) for each in SIDE_FILES}
    texts = {each: path.read_text(encoding="utf-8") for each, path in files.items() if path.is_file()}
    main = with_settings(job.texts[target.file_name], target.file_name, last.overrides)
    plan = (job.folder / "plan.json").read_text(encoding="utf-8")
    reading = target.read({**job.texts, **texts, target.file_name: main, "plan.json": plan})
    setup = reading.setup.but(**{field: getattr(job.setup, field) for field in SAID_ELSEWHERE})
    estimate, _ = priced(setup, job.plan.model, job.plan.machine)
    return Way(
        setup=setup,
        estimate=estimate,
        values=dict(last.overrides),
        files=texts,
        environment=dict(last.healing),
        change=f"as run {name} was healed: {state.healed[-1].rpartition('next: ')[2]}",
    )
