"""Plan -> the texts of its folder."""

from __future__ import annotations

import json
import re

from planner.data.source import data_source
from planner.emit.readme import readme
from planner.emit.render import comment, launcher_values, render, shell_variable
from planner.emit.surroundings import anchored, emit_context
from planner.errors import NothingFitsError, UnsupportedError
from planner.plan.plan import Configuration, Plan
from planner.plan.serialize import plan_to_dict
from planner.targets import TARGETS
from planner.targets.launchers import Launch

RUN_COMMAND = "bash launch.sh"


def plan_files(plan: Plan) -> dict[str, str]:
    """Relative name to text of everything in a plan's folder; the same plan gives the same texts.

    Raises NothingFitsError for a plan without a choice, UnsupportedError where the engine cannot be told what was
    chosen, InputError for data whose columns do not serve the stage.
    """
    if plan.chosen is None:
        raise NothingFitsError("nothing fits, so there is nothing to write")
    if plan.chosen.setup.engine not in TARGETS:
        raise UnsupportedError(
            f"no files are written for engine {plan.chosen.setup.engine}; engines with files: {', '.join(TARGETS)}"
        )
    target = TARGETS[plan.chosen.setup.engine]
    data = data_source(plan.request.data, plan.chosen.setup.stage, plan.request.mixing)
    context = emit_context(plan, plan.chosen.setup, data)
    setup = target.settle(anchored(plan.chosen.setup), context)
    texts = target.files(setup, context)
    texts["dataset_info.json"] = json.dumps(data.info, ensure_ascii=False, indent=2) + "\n"
    texts |= data.texts
    texts["launch.sh"] = launch_script(target.launch(setup, context), headline=_headline(plan, plan.chosen))
    texts["README.md"] = readme(plan, plan.chosen, setup, context, data, names=(*texts, "plan.json", "README.md"))
    return texts | {"plan.json": _plan_json(plan, texts)}


def _plan_json(plan: Plan, texts: dict[str, str]) -> str:
    """The whole plan; its folder is where it lies, so that the folder may be moved."""
    names = sorted([*texts, "plan.json"])
    whole = {"name": plan_name(plan)} | plan_to_dict(plan, folder=".", files=names, command=RUN_COMMAND)
    return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"


def plan_name(plan: Plan) -> str:
    """A folder name that says what was planned: ``qwen2.5-7b-instruct-sft-qlora-3x20gb``."""
    model = plan.model.id.rstrip("/").rpartition("/")[2]
    method = plan.chosen.setup.method if plan.chosen else "none"
    parts = (model, plan.request.stage, method, _hardware_word(plan))
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(parts).lower()).strip("-.") or "plan"


def _hardware_word(plan: Plan) -> str:
    if plan.request.gpus:
        return (plan.chosen.setup.gpus if plan.chosen else None) or plan.request.gpus
    machine = plan.machine
    count = f"{machine.nodes}x{len(machine.gpus)}" if machine.nodes > 1 else str(len(machine.gpus))
    return f"{count}x{machine.smallest.name}"


def _headline(plan: Plan, chosen: Configuration) -> str:
    return f"{chosen.setup.stage} of {plan.model.id} by {chosen.setup.method} on {_hardware_word(plan)}"


def launch_script(launch: Launch, *, headline: str) -> str:
    """The text of launch.sh: environment, the chosen launcher, the others as comments."""
    return render(
        "launch.sh.j2",
        headline=comment(headline),
        environment=[shell_variable(each) for each in launch.environment],
        program=str(launch.chosen.words[0]),
        remedy=comment(launch.remedy),
        launcher=launcher_values(launch.chosen),
        others=[launcher_values(each) for each in launch.others],
        why_no_others=launch.alone,
        override=launch.override,
    )
