"""The main job: what fits, what is best, why, and the folder that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from planner.cli.flags import PLAN_FLAGS, SETUP_FLAGS, comma_list, count, every, given, with_flags
from planner.errors import (
    EXIT_DOES_NOT_FIT,
    EXIT_FITS,
    EXIT_UNCERTAIN,
    InputError,
    unknown_choice,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from planner.emit.write import Written
    from planner.hardware.machine import Machine
    from planner.model.spec import ModelSpec
    from planner.plan.plan import Plan, Request

OBJECTIVES = ("quality", "speed", "memory")
_PINS = tuple(flag for flag in SETUP_FLAGS if flag.name != "gradient_accumulation_steps")


def _plan(ctx: typer.Context, **values: Any) -> int:
    """From hardware and a model to a folder that trains: what fits, what is best among what fits, and why.

    Without --gpus the hardware here is probed. Every field of a setup (`plan estimate --help` lists all of them) is a
    flag here too and then a pin: nothing changes it.

    Exit codes: 0 a plan fits, 1 none does, 2 bad input, 3 a bug of ours, 5 uncertain, 130 interrupted.
    """
    values = every(values, PLAN_FLAGS)
    if ctx.invoked_subcommand:
        _refuse_leading_flags(ctx.invoked_subcommand, given(values, PLAN_FLAGS))
        return EXIT_FITS
    if values["version"]:
        return _say_version()
    return _answer(plan_from(values), values)


def plan_from(values: dict[str, Any], *, settled: Callable[[Request, Machine], Request] | None = None) -> Plan:
    """The plan that the flags ask for; --data is read for its lengths. Raises InputError.

    ``settled`` may change the request once the machine is known.
    """
    from planner.api import make
    from planner.hardware.load import load_machine
    from planner.model.catalogue import resolve

    request = request_from(values)
    spec = resolve(request.model)
    machine = load_machine(gpus=values["gpus"], ram=values["ram"], machine_file=values["machine"])
    request = settled(request, machine) if settled else request
    refuse_misfits(request, spec)
    if request.data is None:
        return make(request, spec, machine)
    from planner.data.fit import with_lengths

    return with_lengths(request, spec, lambda asked: make(asked, spec, machine))


plan_command = with_flags(_plan, PLAN_FLAGS, hide_rare=True)


def _refuse_leading_flags(command: str, stated: dict[str, Any]) -> None:
    if stated:
        name = "--" + next(iter(stated)).replace("_", "-")
        raise InputError(f"{name} stands before the command {command}; write it after: plan {command} {name} ...")


def _say_version() -> int:
    import planner
    from planner.cli.io import write_out

    write_out(f"vramplan {planner.__version__}")
    return EXIT_FITS


def request_from(values: dict[str, Any]) -> Request:
    """The flags of the main job as a validated Request. Raises InputError."""
    from planner.cli.io import open_setup_values
    from planner.data.mixing import mixing
    from planner.data.source import joined
    from planner.plan.plan import Request
    from planner.training import AUTO_ENGINE, setup_from_mapping

    if not values["model"]:
        raise InputError(
            "--model is missing; name one, such as --model 7B or --model Qwen2.5-7B",
            hint="`plan models` lists the catalogue; a folder, a config.json or a Hugging Face id will do too",
        )
    pins = open_setup_values(given(values, _PINS))
    method = None if values["method"] in (None, "auto") else values["method"]
    mix = mixing(values["mix_strategy"], values["interleave_probs"])
    fixed = {name: values[name] for name in ("model", "stage", "seq_len", "engine") if values[name] is not None}
    is_open = fixed.get("engine") == AUTO_ENGINE
    if is_open:
        del fixed["engine"]
    setup = setup_from_mapping(fixed | pins | ({"method": method} if method else {}), place="plan")
    return Request(
        model=setup.model,
        stage=setup.stage,
        method=method,
        seq_len=setup.seq_len,
        global_batch=count(values["global_batch"], default=64, place="--global-batch"),
        engine=AUTO_ENGINE if is_open else setup.engine,
        objective=_objective(values["objective"]),
        allow=comma_list(values["allow"]),
        require=comma_list(values["require"]),
        forbid=comma_list(values["forbid"]),
        lora_ranks=values["lora_ranks"] or (),
        ladder_file=values["ladder"],
        data=joined(values["data"] or ()),
        mix_strategy=mix.strategy,
        interleave_probs=mix.probs,
        gpus=values["gpus"],
        ram=values["ram"],
        pinned={name: getattr(setup, name) for name in pins},
    )


def refuse_misfits(request: Request, spec: ModelSpec) -> None:
    """Lengths and adapters that the model has no room for are wrong on any machine, whatever would be chosen.

    Raises InputError with the rule.
    """
    from planner.search.constraints import check
    from planner.training import ADAPTER_METHODS, TrainingSetup

    may_adapt = request.method is None or request.method in ADAPTER_METHODS
    names = [name for name in ("lora_rank", "lora_target") if name in request.pinned and may_adapt]
    adapter = {name: request.pinned[name] for name in names}
    check(TrainingSetup(model=request.model, seq_len=request.seq_len, **adapter), spec)


def _objective(text: str | None) -> Any:
    if text is not None and text not in OBJECTIVES:
        raise unknown_choice(text, "--objective", OBJECTIVES)
    return text or "quality"


def _answer(plan: Plan, values: dict[str, Any]) -> int:
    """Write the folder of a plan that may run, then show the whole answer."""
    from planner.cli.io import say, screen, write_out

    written = None if plan.chosen is None else _write(plan, values)
    if values["json"]:
        from planner.cli.jsonout import document
        from planner.plan.serialize import plan_to_dict

        whole = plan_to_dict(plan)
        if written is not None:
            whole |= {"folder": str(written.folder), "files": sorted(written.files), "command": written.command}
        write_out(document(whole))
    else:
        from planner.cli.show import plan_screen

        screen(plan_screen(plan, written))
    if plan.verdict == "uncertain":
        say("warning: it is uncertain that this fits; the folder is written all the same")
    if plan.verdict == "does_not_fit":
        say("error: nothing that is allowed fits; no folder is written")
    return {"fits": EXIT_FITS, "uncertain": EXIT_UNCERTAIN, "does_not_fit": EXIT_DOES_NOT_FIT}[plan.verdict]


def _write(plan: Plan, values: dict[str, Any]) -> Written | None:
    """The folder; None for an engine that no files can be written for, which is an error where --out asks for them."""
    from planner.cli.io import say
    from planner.targets import TARGETS

    if plan.request.engine not in TARGETS and not values["out"]:
        say(f"warning: nothing is written for engine {plan.request.engine}; files exist for {', '.join(TARGETS)}")
        return None
    return written_folder(plan, values)


def written_folder(plan: Plan, values: dict[str, Any]) -> Written:
    """The plan's folder, written where --out says or under its own name."""
    from planner.emit.folder import plan_files, plan_name
    from planner.emit.write import write_folder

    return write_folder(plan_files(plan), values["out"], bool(values["force"]), name=plan_name(plan))
