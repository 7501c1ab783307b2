"""A report's document and samples -> one HTML page that needs nothing beside itself. Pure, but for its template."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

from planner.run.report import Point
from planner.svg import Level, Line, chart
from planner.units import gib, show_gib

ROWS = (
    ("allocated_bytes", "allocated by torch, a GPU"),
    ("device_bytes", "held on the GPU, a GPU"),
    ("host_bytes", "host memory"),
    ("tokens_per_s", "tokens a second"),
)
UNKNOWN = "not measured"
FOR_A_GPU = "not for a CPU"


def rows_of(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What was promised, what came of it and the error, as words; unknown is said."""
    found = []
    for meter, words in ROWS:
        predicted, measured = report["predicted"].get(meter), report["measured"].get(meter)
        error = report["error"].get(meter)
        promised = FOR_A_GPU if report.get("on_cpu") else _shown(meter, predicted, "not known")
        found.append((words, promised, _shown(meter, measured, UNKNOWN), _percent(error)))
    return found + _phases(report)


def _phases(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """A row for each phase of the step that the engine told of."""
    said, found = report["predicted"].get("phases") or {}, []
    for phase, size in (report["measured"].get("phases") or {}).items():
        error = _percent(size / said[phase] - 1) if said.get(phase) else ""
        predicted = _shown("allocated_bytes", said.get(phase), "not known")
        found.append((f"  in phase {phase}", predicted, _shown("allocated_bytes", size, UNKNOWN), error))
    return found


def _shown(meter: str, value: float | None, missing: str) -> str:
    if value is None:
        return missing
    return f"{value:,.0f}" if meter == "tokens_per_s" else show_gib(value, digits=2)


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:+.1%}"


def page(report: Mapping[str, Any], points: Sequence[Point]) -> str:
    """The whole page; every text from outside is escaped by the template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from planner.rulebook.paths import templates_dir

    environment = Environment(loader=FileSystemLoader(templates_dir()), undefined=StrictUndefined, autoescape=True)
    attempts = report["attempts"]
    return environment.get_template("report.html.j2").render(
        title=report["title"],
        run=report["run"],
        engine=report["engine"],
        when=time.strftime("%Y-%m-%d %H:%M", time.localtime(report["started_at"])),
        failed=report["status"] == "failed",
        message=report["message"],
        next_step=report["next_step"],
        rows=rows_of(report),
        charts=[(heading, svg) for heading, svg in charts(report, points) if svg],
        attempts=[_attempt(each) for each in attempts],
        command=shlex.join(attempts[-1]["command"]) if attempts else "",
    )


def charts(report: Mapping[str, Any], points: Sequence[Point]) -> list[tuple[str, str]]:
    """Memory of the GPUs, host memory and loss over time; the longest batch has a loss of made-up samples: left out."""
    unit, scale = _time_unit(points)
    names = sorted({index for point in points for index in point.gpu_bytes}, key=lambda name: (len(name), name))
    gpus = [
        Line(
            name=f"gpu {name}", points=[(p.at_s / scale, gib(p.gpu_bytes[name])) for p in points if name in p.gpu_bytes]
        )
        for name in names
    ]
    levels = [Level(name=f"predicted {show_gib(report['predicted']['device_bytes'])}",
                    y=gib(report["predicted"]["device_bytes"]))]  # fmt: skip
    capacity = report["predicted"].get("capacity_bytes")
    levels += [Level(name=f"capacity {show_gib(capacity)}", y=gib(capacity))] if capacity else []
    host = [(p.at_s / scale, gib(p.host_bytes)) for p in points if p.host_bytes is not None]
    made_up = {each["number"] for each in report["attempts"] if each["purpose"] == "rehearsal"}
    trained = [p for p in points if p.attempt not in made_up]
    loss = [(p.at_s / scale, p.loss) for p in trained if p.loss is not None and p.loss == p.loss]
    return [
        ("GPU memory", chart(gpus, levels, y_unit="GiB", x_unit=unit)),
        ("Loss", chart([Line(name="loss", points=loss)], (), y_unit="loss", x_unit=unit, from_zero=False)),
        ("Host memory", chart([Line(name="resident", points=host)], (), y_unit="GiB", x_unit=unit)),
    ]


def _time_unit(points: Sequence[Point]) -> tuple[str, float]:
    last = points[-1].at_s if points else 0.0
    if last < 300:
        return "seconds", 1.0
    return ("minutes", 60.0) if last < 4 * 3600 else ("hours", 3600.0)


def _attempt(each: Mapping[str, Any]) -> dict[str, Any]:
    diagnosis = each["diagnosis"]
    first, last = each["first_step"], each["last_step"]
    resumed = " (resumed)" if each["resumed_from"] else ""
    return {
        "number": each["number"],
        "what": ("longest batch" if each["purpose"] == "rehearsal" else "training") + resumed + _change(each["change"]),
        "steps": "none" if last is None else f"{first} to {last}",
        "ended": "well" if diagnosis is None else diagnosis["cause"],
    }


def _change(change: str) -> str:
    return f": {change}" if change else ""
