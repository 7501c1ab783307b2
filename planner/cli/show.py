"""Plan -> screen: hardware, ladder, what fits, the chosen configuration and why, and the command to run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from planner.cli.bars import stacked_bar
from planner.cli.show_estimate import machine_line, verdict_line
from planner.cli.tables import notes, plain_table
from planner.units import gib, show_count, show_gib

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from planner.emit.write import Written
    from planner.plan.plan import Configuration, Plan, RungReport

CLASS_NAMES = {"full": "full", "lora": "LoRA", "qlora": "QLoRA", "other": "other"}


def plan_screen(plan: Plan, written: Written | None = None) -> RenderableType:
    """The whole screen of the main job; ``written`` is the folder, once there is one."""
    from rich.console import Group
    from rich.text import Text

    shown = plan.chosen or plan.nearest_miss
    return Group(
        job_line(plan),
        Text(machine_line(plan.machine), style="dim"),
        Text(),
        ladder_table(plan),
        Text("✓ taken   ? only with --allow   time: of a token, against without the rung", style="dim"),
        Text(),
        configuration_table(plan),
        Text("batch: samples a GPU × accumulation × GPUs   left: GiB under the capacity", style="dim"),
        *_decided(plan),
        Text(),
        *(_closeup(shown, is_chosen=plan.chosen is not None) if shown else ()),
        *_data_notes(plan),
        *notes("why", plan.reasons, style="bold"),
        *notes("try", plan.remedies, style="bold"),
        *notes("assumed", plan.assumptions),
        *notes("warning", plan.warnings, style="yellow"),
        *_next_step(written),
    )


def _decided(plan: Plan) -> list[RenderableType]:
    """How many setups stand behind the table."""
    from rich.text import Text

    space = plan.space
    if space is None:
        return []
    return [
        Text(f"of {space.valid:,} valid setups {space.priced:,} were priced, the rest excluded by bounds", style="dim")
    ]


def job_line(plan: Plan) -> Text:
    """The model and what is asked of it."""
    from rich.text import Text

    request, spec = plan.request, plan.model
    engine = "" if request.engine == "llamafactory" else f", {request.engine}"
    sequences = "1 sequence" if request.global_batch == 1 else f"{request.global_batch} sequences"
    shape = f"{request.seq_len} tokens, {sequences} a step{engine}"
    return Text.assemble((spec.id, "bold"), f"  {show_count(spec.parameters)}, {request.stage}, {shape}")


def _data_notes(plan: Plan) -> list[RenderableType]:
    """The lengths of the data, and the steps and hours of the recipe's epochs over it."""
    found, chosen = plan.data, plan.chosen
    if found is None:
        return []
    from planner.cli.show_fit import course_line
    from planner.fit.job import JobSize, course
    from planner.targets.recipe import recipe

    shares = ", ".join(f"{share:.0%} ≤ {found.quantile(share):,}" for share in (0.5, 0.9, 0.99))
    count = f"{found.samples:,} samples" if found.samples else f"{len(found.lengths):,} samples read"
    said = [f"{count} of {found.mean:,.0f} tokens on average: {shares}, longest {found.lengths[-1]:,}"]
    if chosen is not None and found.samples:
        epochs = float(recipe(chosen.setup)["num_train_epochs"].value)
        run = course(JobSize(samples=found.samples, epochs=epochs), chosen.setup, plan.machine, chosen.speed)
        said.append(f"{epochs:g} epochs, {course_line(run).plain.removeprefix('job: ')}")
    return notes("data", said, style="bold")


TIER_NAMES = {0: "free", 1: "light", 2: "sharding", 3: "method", 4: "slow", 5: "data"}
_ON_REQUEST = "on request only"


def ladder_table(plan: Plan) -> Table:
    """Every rung of the walk: taken or why not, what it changes in GiB, what it costs in time."""
    from rich.text import Text

    table = plain_table("The ladder, least intrusive first")
    table.add_column("", width=1)
    table.add_column("rung", overflow="fold")
    table.add_column("GiB a GPU", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("", overflow="fold", ratio=1)
    tier = None
    for rung in plan.ladder:
        if rung.tier != tier:
            tier = rung.tier
            table.add_row("", Text(TIER_NAMES.get(tier, f"tier {tier}"), style="italic"))
        cells = _rung_cells(rung, plan.machine.smallest.capacity_bytes)
        table.add_row(*cells, style="" if rung.applied else "dim")
    return table


def _rung_cells(rung: RungReport, capacity_bytes: int) -> list[RenderableType]:
    from rich.text import Text

    asks = rung.reason.startswith(_ON_REQUEST)
    mark = Text("✓", style="green") if rung.applied else Text("?" if asks else "–")
    words = _on_request(rung, capacity_bytes) if asks else _short(rung)
    return [mark, rung.id, _before_after(rung), _times(rung.slowdown), words]


def _short(rung: RungReport) -> str:
    """An applied rung's first clause (`plan rungs ID` tells the rest), or why it was passed over."""
    return re.split(r"[,;:] ", rung.reason, maxsplit=1)[0] if rung.applied else rung.reason


def _on_request(rung: RungReport, capacity_bytes: int) -> str:
    """What speaks against a rung that is taken only when asked for: a rule, its size, or its risk."""
    rule = rung.reason.partition("; ")[2]
    if rule or rung.after_bytes is None:
        return rule
    return "does not fit" if rung.after_bytes > capacity_bytes else f"risk {rung.quality_risk}"


def _before_after(rung: RungReport) -> str:
    if rung.after_bytes is None:
        return ""
    if rung.before_bytes is None or rung.before_bytes == rung.after_bytes:
        return f"{gib(rung.after_bytes):.1f}"
    return f"{gib(rung.before_bytes):.1f} → {gib(rung.after_bytes):.1f}"


def _times(slowdown: float | None) -> str:
    return "" if slowdown is None else f"×{slowdown:.2f}"


def configuration_table(plan: Plan) -> Table:
    """The configurations at their best: class by profile, what each needs and how fast it goes."""
    table = plain_table("What fits")
    table.add_column("", width=1)
    table.add_column("method", no_wrap=True)
    table.add_column("profile", no_wrap=True)
    table.add_column("GiB a GPU", justify="right")
    table.add_column("left", justify="right")
    table.add_column("batch", justify="right", no_wrap=True)
    table.add_column("tokens/s", justify="right")
    table.add_column("", no_wrap=True)
    for name, why in _classes_without_a_row(plan):
        table.add_row("", name, "", "", "", "", "", why, style="dim")
    for row in plan.configurations:
        table.add_row(*_configuration_cells(row, plan), style=_row_style(row, plan))
    return table


_CLASS_RUNGS = {"lora": "lora", "qlora": "qlora-nf4"}


def _classes_without_a_row(plan: Plan) -> list[tuple[str, str]]:
    """The mainstream classes of which nothing is shown, where the choice of method was left open, and why in a word."""
    if plan.request.method is not None:
        return []
    shown = {row.method_class for row in plan.configurations}
    # A rung that was not even priced is shut out by a rule.
    barred = {rung.id for rung in plan.ladder if rung.after_bytes is None}
    return [
        (name, "ruled out" if _CLASS_RUNGS.get(each) in barred else "none fits")
        for each, name in CLASS_NAMES.items()
        if each not in shown and each != "other"
    ]


def _row_style(row: Configuration, plan: Plan) -> str:
    if row == plan.chosen:
        return "bold green"
    return "" if row.safe else "dim"


def _configuration_cells(row: Configuration, plan: Plan) -> list[str]:
    estimate = row.estimate
    left = "" if estimate.capacity_bytes is None else f"{gib(estimate.capacity_bytes - estimate.required_bytes):+.1f}"
    return [
        "▸" if row == plan.chosen else "",
        f"{CLASS_NAMES[row.method_class]}{_detail(row, ranked=bool(plan.request.lora_ranks))}",
        row.profile,
        f"{gib(estimate.required_bytes):.1f}",
        left,
        batch_shape(row, plan.machine.world_size),
        _tokens(row),
        _remark(row),
    ]


def _detail(row: Configuration, *, ranked: bool) -> str:
    """What the class does not say: its rank where there was a choice, and how it is spread over the cards."""
    setup = row.setup
    kind = setup.parallelism if setup.parallelism not in (None, "none", "ddp") else ""
    method = setup.method if row.method_class == "other" else ""
    rank = f"r{setup.lora_rank}" if ranked and setup.is_adapter else ""
    offload = f"+{setup.offload}" if setup.offload != "none" else ""
    words = " ".join(word for word in (method, rank, f"{kind}{offload}") if word)
    return f" {words}" if words else ""


def batch_shape(row: Configuration, world_size: int) -> str:
    """``3×7×3``: samples per GPU and step, accumulation, data-parallel GPUs."""
    setup = row.setup
    ranks = max(1, world_size // (setup.tensor_parallel * setup.pipeline_parallel * setup.context_parallel))
    return f"{setup.micro_batch_size}×{setup.gradient_accumulation_steps}×{ranks}"


def _tokens(row: Configuration) -> str:
    return "" if row.speed is None else f"{row.speed.tokens_per_s:,.0f}"


def _remark(row: Configuration) -> str:
    if row.estimate.verdict == "does_not_fit":
        return "does not fit"
    return "safe" if row.safe else "not safe"


def _closeup(row: Configuration, *, is_chosen: bool) -> list[RenderableType]:
    from rich.text import Text

    setup = row.setup
    name = "Chosen" if is_chosen else "Nothing fits; the nearest miss"
    spread = f", {setup.parallelism}" if setup.parallelism not in (None, "none") else ""
    title = Text.assemble((name, "bold"), f": {setup.method}{spread}, {row.profile}")
    needed = row.estimate
    host = f"needed on each node: {show_gib(needed.host_bytes)} of RAM, {show_gib(needed.disk_bytes)} of disk"
    speed = _speed_line(row) if is_chosen else []
    return [title, verdict_line(row.estimate), stacked_bar(row.estimate), Text(host), *speed]


def _speed_line(row: Configuration) -> list[RenderableType]:
    from rich.text import Text

    if row.speed is None:
        return [Text("speed unknown: the catalogue says nothing of this card's throughput")]
    speed = row.speed
    span = f"{speed.low_tokens_per_s:,.0f} to {speed.high_tokens_per_s:,.0f}"
    return [Text(f"about {speed.tokens_per_s:,.0f} tokens/s ({span}), bound by {speed.bound_by}; predicted")]


def _next_step(written: Written | None) -> list[RenderableType]:
    from rich.text import Text

    if written is None:
        return []
    how = "there already, unchanged" if written.unchanged else f"{len(written.files)} files"
    return [
        Text(),
        Text.assemble(("written", "bold"), f"  {written.folder} ({how})"),
        Text.assemble(("run it ", "bold"), f"  {written.command}"),
    ]
