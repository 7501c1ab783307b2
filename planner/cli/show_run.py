"""A run's state -> the live screen, plain lines, and the report at the end."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from planner.run.records import ACTIVE, GpuUse, RunState
from planner.units import gib, show_gib

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

SPARKS = "▁▂▃▄▅▆▇█"
BAR_CELLS = 24
SPARK_CELLS = 24
_WORDS = {
    "preparing": "getting ready",
    "rehearsing": "the longest batch first",
    "running": "training",
    "healing": "healing",
    "stopping": "stopping",
    "finished": "finished",
    "failed": "failed",
    "stopped": "stopped",
    "lost": "lost: its planner was killed",
}
_STYLES = {"finished": "green", "failed": "bold red", "stopped": "yellow", "lost": "bold red", "healing": "yellow"}


def run_view(state: RunState, *, now: float | None = None) -> RenderableType:
    """The one screen of a run: progress, loss, speed, memory, what was healed."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    at = time.time() if now is None else now
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, content in _rows(state):
        grid.add_row(label, content)
    return Group(_headline(state), _where(state, at), Text(), grid)


def _headline(state: RunState) -> Text:
    from rich.text import Text

    return Text.assemble((state.title, "bold"), ("   run " + state.id, "dim"))


def _where(state: RunState, at: float) -> Text:
    from rich.text import Text

    words = [duration((state.ended_at or at) - state.started_at)]
    trained = [attempt for attempt in state.attempts if attempt.purpose == "training"]
    if len(trained) > 1 or state.healed:
        words.append(f"attempt {len(state.attempts)}")
    if trained and trained[-1].resumed_from:
        words.append(f"resumed from {_name(trained[-1].resumed_from)}")
    status = Text(_WORDS[state.status], style=_STYLES.get(state.status, "cyan"))
    return Text.assemble(status, (" · " + " · ".join(words), "dim"))


def _rows(state: RunState) -> list[tuple[str, RenderableType]]:
    from rich.text import Text

    rows: list[tuple[str, RenderableType]] = [("step", _steps(state)), ("loss", _loss(state)), ("speed", _speed(state))]
    rows += [(f"gpu {gpu.index}", _gpu(state, gpu)) for gpu in state.gpus] or [("gpu", _no_gpu(state))]
    rows.append(("host", _host(state)))
    rows += [("healed", Text(sentence, style="yellow")) for sentence in state.healed]
    if state.checkpoint:
        rows.append(("saved", Text(_name(state.checkpoint))))
    if state.message:
        rows.append(("ended", Text(state.message, style=_STYLES.get(state.status, ""))))
    return [*rows, ("next", Text(state.next_step))] if state.next_step else rows


def _steps(state: RunState) -> Text:
    from rich.text import Text

    now = state.progress
    if now.step is None:
        return Text("not begun: loading the model and the data" if state.status in ACTIVE else "none", style="dim")
    if not now.total_steps:
        return Text(f"{now.step:,}")
    share = now.step / now.total_steps
    left = f", {duration(now.remaining_s)} left" if now.remaining_s is not None and state.status in ACTIVE else ""
    full = round(BAR_CELLS * share)
    return Text.assemble(
        ("█" * full, "green"), ("░" * (BAR_CELLS - full), "bright_black"),
        f"  {now.step:,} of {now.total_steps:,}, {share:.0%}{left}",
    )  # fmt: skip


def _loss(state: RunState) -> Text:
    from rich.text import Text

    now = state.progress
    if now.loss is None:
        return Text("none logged yet", style="dim")
    more = [f"{now.loss:.4g}"]
    more += [f"learning rate {now.learning_rate:.2g}"] if now.learning_rate is not None else []
    more += [f"epoch {now.epoch:.2f}"] if now.epoch is not None else []
    more += [f"evaluated {now.eval_loss:.4g}"] if now.eval_loss is not None else []
    return Text.assemble((sparkline(now.losses), "cyan"), "  " + ", ".join(more))


def sparkline(values: tuple[float, ...], cells: int = SPARK_CELLS) -> str:
    """The values as a line of blocks, each the mean of as many where there are more; equal values lie low."""
    if not values:
        return ""
    count = min(cells, len(values))
    edges = [len(values) * cell // count for cell in range(count + 1)]
    shown = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    least, most = min(shown), max(shown)
    span = (most - least) or 1.0
    return "".join(SPARKS[min(len(SPARKS) - 1, int((value - least) / span * len(SPARKS)))] for value in shown)


def _speed(state: RunState) -> Text:
    from rich.text import Text

    now, said = state.progress, state.prediction
    words = [] if now.tokens_per_s is None else [f"{now.tokens_per_s:,.0f} tokens/s"]
    words += [] if now.seconds_per_step is None else [f"{now.seconds_per_step:.3g} s a step"]
    predicted = ""
    if said.tokens_per_s is not None and not state.on_cpu:
        low, high = said.low_tokens_per_s or 0, said.high_tokens_per_s or 0
        predicted = f"   predicted {said.tokens_per_s:,.0f} ({low:,.0f} to {high:,.0f})"
    return Text.assemble(", ".join(words) or ("not known yet", "dim"), (predicted, "dim"))


def _gpu(state: RunState, gpu: GpuUse) -> Text:
    """A bar up to the capacity: in use now, the most so far, and a mark where the prediction lies."""
    from rich.text import Text

    predicted = state.prediction.device_bytes
    capacity = gpu.capacity_bytes or max(predicted, gpu.peak_bytes or 0)
    bar = _memory_bar(gpu.now_bytes, gpu.peak_bytes, predicted, capacity)
    over = gpu.peak_bytes is not None and gpu.peak_bytes > predicted
    words = f"{_short(gpu.now_bytes)} now, {_short(gpu.peak_bytes)} peak, {_short(predicted)} predicted"
    return Text.assemble(bar, "  ", (words, "yellow" if over else ""), (f", of {show_gib(capacity)}", "dim"))


def _memory_bar(now: int | None, peak: int | None, predicted: int | None, capacity: int) -> Text:
    from rich.text import Text

    cells = [_cell(size, capacity) for size in (now, peak)]
    bar = Text()
    for number in range(BAR_CELLS):
        sign, style = (
            ("█", "blue") if number < cells[0] else ("▒", "blue") if number < cells[1] else ("░", "bright_black")
        )
        bar.append(sign, style=style)
    if predicted is not None:
        at = min(BAR_CELLS - 1, _cell(predicted, capacity))
        bar = Text.assemble(bar[:at], ("│", "bold"), bar[at + 1 :])
    return bar


def _cell(size: int | None, capacity: int) -> int:
    return 0 if not size or capacity <= 0 else min(BAR_CELLS, max(1, round(BAR_CELLS * size / capacity)))


def _short(size: int | None) -> str:
    return "?" if size is None else f"{gib(size):.1f}"


def _no_gpu(state: RunState) -> Text:
    from rich.text import Text

    said = state.prediction
    if state.on_cpu:
        return Text("not used: this run is on the CPU", style="dim")
    allocated = state.progress.allocated_bytes
    used = f"; torch says that it allocated {show_gib(allocated)}" if allocated else ""
    return Text(f"none is seen here{used}; predicted {show_gib(said.device_bytes)} a GPU", style="dim")


def _host(state: RunState) -> Text:
    from rich.text import Text

    host = state.host
    if host.now_bytes is None or host.limit_bytes is None:
        return Text("not measured yet", style="dim")
    bar = _memory_bar(host.now_bytes, host.peak_bytes, None, host.limit_bytes)
    words = f"  {show_gib(host.now_bytes)} now, {show_gib(host.peak_bytes or 0)} peak"
    return Text.assemble(bar, words, (f", of {show_gib(host.limit_bytes)}", "dim"))


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def duration(seconds: float | None) -> str:
    """``1:02:03``, ``2:03``; days where there are any."""
    if seconds is None:
        return "?"
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    clock = f"{hours}:{minutes:02}:{left:02}" if hours or days else f"{minutes}:{left:02}"
    return f"{days} d {clock}" if days else clock


def plain_line(state: RunState) -> str:
    """The same in one line, for a log."""
    now = state.progress
    words = [_WORDS[state.status]]
    if now.step is not None:
        words.append(f"step {now.step}" + (f" of {now.total_steps}" if now.total_steps else ""))
    words += [] if now.loss is None else [f"loss {now.loss:.4g}"]
    words += [] if now.tokens_per_s is None else [f"{now.tokens_per_s:,.0f} tokens/s"]
    words += [f"gpu {gpu.index} {_short(gpu.now_bytes)} GiB, peak {_short(gpu.peak_bytes)}" for gpu in state.gpus]
    if now.remaining_s is not None and state.status in ACTIVE:
        words.append(f"{duration(now.remaining_s)} left")
    return ", ".join(words)


def report_screen(report: dict[str, Any], page: str | None) -> RenderableType:
    """What was promised, what came of it, and every attempt."""
    from rich.console import Group
    from rich.text import Text

    style = _STYLES.get(report["status"], "")
    parts: list[RenderableType] = [
        Text.assemble((report["title"], "bold"), ("   run " + report["run"], "dim")),
        Text.assemble((_WORDS[report["status"]], style), f": {report['message']}" if report["message"] else ""),
    ]
    parts += [Text(f"next: {report['next_step']}")] if report["next_step"] else []
    parts += [Text(), _promises(report), Text(), _attempts(report)]
    return Group(*parts, *([Text(), Text(f"plots: {page}", style="dim")] if page else []))


def _promises(report: dict[str, Any]) -> Table:
    from planner.cli.tables import plain_table
    from planner.run.page import rows_of

    table = plain_table("Promised and measured")
    table.add_column("", overflow="fold")
    for heading in ("predicted", "measured", "error"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows_of(report):
        table.add_row(*row)
    return table


def _attempts(report: dict[str, Any]) -> Table:
    from rich.text import Text

    from planner.cli.tables import plain_table

    table = plain_table("Attempts")
    table.add_column("", justify="right", no_wrap=True)
    for heading in ("what", "batch", "steps", "ended"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("batch", "steps"))
    for each in report["attempts"]:
        table.add_row(*map(Text, _attempt_cells(each)))  # [rank0] in a log is no markup
    return table


def _attempt_cells(each: dict[str, Any]) -> tuple[str, ...]:
    what = "the longest batch" if each["purpose"] == "rehearsal" else "training"
    what += f", resumed from {_name(each['resumed_from'])}" if each["resumed_from"] else ""
    what += f"; {each['change'].rpartition('next: ')[2]}" if each["change"] else ""
    batch = f"{each['micro_batch_size']} × {each['gradient_accumulation_steps']}, {each['effective_batch']} a step"
    steps = "" if each["last_step"] is None else f"{each['first_step']} to {each['last_step']}"
    ended = "well" if each["diagnosis"] is None else each["diagnosis"]["cause"]
    return str(each["number"]), what, batch, steps, ended if each["ended_at"] else "not yet"
