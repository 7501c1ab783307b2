"""``plan fit``: the inverse. What is the largest job for this hardware, and what is the least hardware for this job?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from planner.cli.flags import ESTIMATE_FLAGS, JOB, OUTPUT, Flag, count, every, given, with_flags
from planner.errors import EXIT_DOES_NOT_FIT, EXIT_FITS, InputError, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from planner.fit.job import JobSize
    from planner.fit.sweep import Axis, Point
    from planner.hardware.machine import GpuKind
    from planner.plan.plan import Request

MOST = 10**12  # samples, or GPUs, that a flag may name
OWN_FLAGS: tuple[Flag, ...] = (
    Flag(name="global_batch", value="N", panel=JOB, help="sequences per optimizer step over all GPUs (default: 64)"),
    Flag(name="samples", value="N", panel=JOB, help="samples of the training split: adds steps, hours and cost"),
    Flag(name="epochs", value="N", panel=JOB, help="how often each sample is seen (default: 1)"),
    Flag(name="deadline", value="24h", panel=JOB, help="hardware that needs longer for --samples is not offered"),
    Flag(name="cards", value="NAMES", panel=OUTPUT, help="only these cards, such as RTX4090,A100-80GB (default: all)"),
    Flag(name="max_gpus", value="N", panel=OUTPUT, help="the most GPUs of one card to offer (default: 8)"),
    Flag(name="prices", value="FILE", panel=OUTPUT, help="TOML: a card's name = its price an hour; cheapest first"),
    Flag(
        name="sweep", value="FIELD=VALUES", panel=OUTPUT, repeat=True,
        help="seq_len=512..8192 or method=lora,qlora; several give every combination",
    ),
    Flag(name="csv", value="FILE", panel=OUTPUT, help="the sweep as a CSV file; - is stdout"),
    Flag(name="plot", value="FILE.svg", panel=OUTPUT, help="the sweep as a picture over its first numbers"),
)  # fmt: skip
FLAGS = tuple(flag for flag in ESTIMATE_FLAGS if flag.name not in ("from", "json")) + OWN_FLAGS + (ESTIMATE_FLAGS[-1],)
_SETUP = tuple(flag for flag in ESTIMATE_FLAGS if flag.name not in ("ram", "machine", "from", "json"))


def _fit(ctx: typer.Context, **values: Any) -> int:
    """The largest job for given hardware, or the least hardware for a given job.

    With --model and --gpus: the largest micro batch, length and rank with which exactly that setup fits, and a map of
    lengths and batches. With --gpus alone: the largest models and how they can be trained. With --model alone: the
    smallest number of each card that does it. With --sweep: every combination of the values, as a table, CSV
    or a picture.
    """
    values = every(values, FLAGS)
    stated = given(values, _SETUP)
    for name in ("csv", "plot"):
        if values[name] and not values["sweep"]:
            raise InputError(f"--{name} belongs to --sweep: name what to vary, such as --sweep seq_len=512..8192")
    if values["sweep"]:
        return _sweep(stated, values)
    known = bool(values["gpus"] or values["machine"])
    if not values["model"]:
        return _models(stated, values)
    if not known:
        return _hardware(stated, values)
    return _largest(stated, values)


fit_command = with_flags(_fit, FLAGS, hide_rare=True)


def _sweep(stated: dict[str, Any], values: dict[str, Any]) -> int:
    from planner.cli.commands.estimate import Desk
    from planner.cli.io import open_setup_values, screen, write_out
    from planner.fit.sweep import as_csv, read_axis, sweep

    desk = Desk(ram=values["ram"], machine_file=values["machine"])
    axes = [read_axis(text) for text in values["sweep"]]
    points = sweep(open_setup_values(stated), axes, desk.spec, desk.machine)
    if values["csv"] not in (None, "-"):
        _write_new(values["csv"], as_csv(points), flag="--csv")
    if values["plot"]:
        _plot(values["plot"], axes, points)
    if values["csv"] == "-":
        write_out(as_csv(points))
    elif values["json"]:
        from planner.cli.jsonout import document

        rows = [{**point.swept, **(point.figures or {"error": point.error})} for point in points]
        write_out(document({"sweep": rows}))
    else:
        from planner.cli.show_fit import sweep_screen

        screen(sweep_screen(points))
    return EXIT_FITS if any(point.figures.get("verdict") == "fits" for point in points) else EXIT_DOES_NOT_FIT


def _plot(path: str, axes: Sequence[Axis], points: Sequence[Point]) -> None:
    from planner.cli.io import say
    from planner.fit.plot import plot

    if not path.endswith(".svg"):
        raise InputError(f"--plot {path!r} is no SVG file: name one, such as sweep.svg")
    _write_new(path, plot(axes, points), flag="--plot")
    say(f"drawn: {path}")


def _write_new(path: str, text: str, *, flag: str) -> None:
    from pathlib import Path

    try:
        with Path(path).expanduser().open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(
            f"{flag} {path!r} exists: name a new file" + (", or - for stdout" if flag == "--csv" else "")
        ) from None
    except (OSError, ValueError) as problem:
        raise InputError(f"{flag} {path!r} cannot be written: {getattr(problem, 'strerror', problem)}") from None


def _largest(stated: dict[str, Any], values: dict[str, Any]) -> int:
    from planner.cli.commands.estimate import Desk
    from planner.cli.io import screen, write_out
    from planner.fit.job import course
    from planner.fit.largest import grid, largest_of_each
    from planner.speed.estimate import predict_speed

    desk = Desk(ram=values["ram"], machine_file=values["machine"])
    setup, spec, machine, answer = desk.answer(stated, place="plan fit")
    found, cells = largest_of_each(setup, spec, machine), grid(setup, spec, machine)
    size = _size(values)
    run = course(size, setup, machine, predict_speed(setup, spec, machine)) if size else None
    if values["json"]:
        from planner.cli.jsonout import document
        from planner.fit.records import course_json, largest_json

        whole = largest_json(setup, answer, found, cells)
        write_out(document(whole | ({"job": course_json(run)} if run else {})))
    else:
        from planner.cli.show_fit import largest_screen

        screen(largest_screen(setup, spec, machine, answer, found, cells, run))
    return EXIT_FITS if any(each.value is not None for each in found) else EXIT_DOES_NOT_FIT


def _models(stated: dict[str, Any], values: dict[str, Any]) -> int:
    from planner.cli.io import screen, write_out
    from planner.fit.offers import models
    from planner.hardware.load import load_machine
    from planner.model.catalogue import catalogue, from_row

    machine = load_machine(gpus=values["gpus"], ram=values["ram"], machine_file=values["machine"])
    sizes = [(row.names[0], from_row(row)) for row in catalogue().rows if row.kind == "size"]
    sizes.sort(key=lambda named: named[1].parameters)
    found = models(_request(stated | {"model": sizes[0][0]}, values), sizes, machine)
    if values["json"]:
        from planner.cli.jsonout import document
        from planner.fit.records import model_json

        write_out(document({"models": [model_json(*each) for each in found]}))
    else:
        from planner.cli.show_fit import models_screen

        screen(models_screen(machine, found))
    return EXIT_FITS if any(offer is not None for _, _, offer in found) else EXIT_DOES_NOT_FIT


def _hardware(stated: dict[str, Any], values: dict[str, Any]) -> int:
    from planner.cli.commands.plan import refuse_misfits
    from planner.cli.io import screen, write_out
    from planner.fit.offers import offers
    from planner.model.catalogue import resolve

    request, spec = _request(stated, values), resolve(stated["model"])
    refuse_misfits(request, spec)
    size, deadline = _size(values), _hours(values["deadline"])
    if deadline is not None and size is None:
        raise InputError("--deadline needs --samples: without the size of the data no job has a length")
    prices = _prices(values["prices"]) if values["prices"] else None
    found = offers(
        request,
        spec,
        _kinds(values["cards"], prices),
        most=count(values["max_gpus"], default=8, place="--max-gpus", most=MOST),
        size=size,
        prices=prices,
        deadline_hours=deadline,
    )
    if values["json"]:
        from planner.cli.jsonout import document
        from planner.fit.records import offer_json

        write_out(document({"hardware": [offer_json(each) for each in found]}))
    else:
        from planner.cli.show_fit import offers_screen

        screen(offers_screen(request, spec, found))
    return EXIT_FITS if found else EXIT_DOES_NOT_FIT


def _request(stated: dict[str, Any], values: dict[str, Any]) -> Request:
    from planner.cli.commands.plan import request_from
    from planner.cli.flags import PLAN_FLAGS

    return request_from(every({**values, **stated}, PLAN_FLAGS))


def _kinds(names: str | None, prices: dict[str, float] | None) -> Sequence[GpuKind]:
    """The cards to look at: the named ones, else those with a price, else what NVIDIA sells with a known speed."""
    from planner.hardware.catalogue import find_gpu, kind, rows

    if names:
        return [find_gpu(name.strip(), place="--cards") for name in names.split(",") if name.strip()]
    every_kind = [kind(row) for row in rows() if not row.get("rebuilt")]
    if prices is not None:
        return [each for each in every_kind if each.id in prices]
    return [each for each in every_kind if each.vendor == "nvidia" and each.dense_tflops and "bf16" in each.dtypes]


def _prices(path: str) -> dict[str, float]:
    """``RTX4090 = 0.4`` by line. Raises InputError for an unknown card or a price that is no number."""
    from pathlib import Path

    from planner.hardware.catalogue import find_gpu
    from planner.rulebook.load import read_toml

    found: dict[str, float] = {}
    for name, price in read_toml(Path(path)).items():
        if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < float("inf"):
            raise InputError(f"--prices {path}: {name} = {shown(price)} is no price; write a number an hour")
        found[find_gpu(name, place=f"--prices {path}:").id] = float(price)
    if not found:
        raise InputError(f"--prices {path} names no card; write lines such as RTX4090 = 0.4")
    return found


def _size(values: dict[str, Any]) -> JobSize | None:
    from planner.fit.job import JobSize

    if values["samples"] is None:
        if values["epochs"] is not None:
            raise InputError("--epochs needs --samples: how many samples one epoch has")
        return None
    epochs = _positive(values["epochs"], "--epochs") if values["epochs"] is not None else 1.0
    return JobSize(samples=count(values["samples"], default=1, place="--samples", most=MOST), epochs=epochs)


def _hours(text: str | None) -> float | None:
    """``24h``, ``90min``, ``2d`` or a number of hours."""
    if text is None:
        return None
    units = {"min": 1 / 60, "h": 1.0, "d": 24.0}
    unit = next((unit for unit in units if text.strip().endswith(unit)), "")
    return _positive(text.strip().removesuffix(unit), "--deadline", shown_as=text) * units.get(unit, 1.0)


def _positive(text: str, place: str, shown_as: str | None = None) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        example = "24h, 90min or 2d" if place == "--deadline" else "3"
        raise InputError(f"{place} {shown(shown_as or text)} is no positive number: write {example}")
    return number
