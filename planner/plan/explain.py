"""Why a plan is what it is, in plain sentences with the figures that decide."""

from __future__ import annotations

from dataclasses import replace

from planner.errors import PlannerError
from planner.memory.host import CHECKPOINTS_KEPT, checkpoints_kept
from planner.plan.guides import rule_of_thumb
from planner.plan.plan import Configuration
from planner.plan.ways import checkpointing, crowded, other_ways, spread, why_spread
from planner.rulebook.load import engine_rows
from planner.search.climb import Outcome, Round, offload_rungs
from planner.search.desk import Desk
from planner.search.rungs import Rung
from planner.training import TrainingSetup
from planner.units import GIB, show_count, show_gib

DESKTOP_BYTES = GIB // 2  # what a desktop session holds of a card
SMALL_HOST_BYTES = 32 * GIB  # of any machine that trains, a host is seldom smaller
ADAPTER_FIELDS = ("lora_rank", "lora_target", "lora_dropout")


def held_by(setup: TrainingSetup) -> str:
    """``ZeRO-3, micro batch 1, checkpointing``: how a setup is held, in a few words."""
    words = [spread(setup), f"micro batch {setup.micro_batch_size}"]
    words += [checkpointing(setup)]
    words += [f"offload of {setup.offload}"] if setup.offload != "none" else []
    return ", ".join(words)


def reasons_of(desk: Desk, outcome: Outcome) -> tuple[str, ...]:
    """Why this class, why not the better ones, and what the rest of the memory was spent on."""
    reasons = [_why_chosen(desk, outcome)] if outcome.chosen is not None else []
    passed = _passed_over(outcome)
    reasons += [_why_not(desk, outcome, each) for each in passed]
    reasons += [_thumb(desk, outcome, each) for each in passed if each.method_class == "full" and not each.refused]
    if outcome.chosen is not None and outcome.round is not None:
        reasons += why_spread(desk, outcome.round, outcome.chosen)
        reasons += _spent(desk, outcome, outcome.chosen)
        reasons += other_ways(desk, outcome.chosen)
    return tuple(reason for reason in reasons if reason)


def _passed_over(outcome: Outcome) -> list[Round]:
    """The classes that stand before the chosen one; all of them where nothing was chosen."""
    if outcome.round is None:
        return list(outcome.rounds)
    return list(outcome.rounds)[: list(outcome.rounds).index(outcome.round)]


def _why_chosen(desk: Desk, outcome: Outcome) -> str:
    setup, each = outcome.chosen, outcome.round
    if setup is None or each is None:
        return ""
    need, capacity = desk.need(setup) or 0, desk.capacity_bytes
    figures = f"{show_gib(need)} of {show_gib(capacity)} a GPU"
    if outcome.verdict == "uncertain":
        return f"{each.label} ({held_by(setup)}) may fit: {figures}, so without the margin for what is not known"
    why = {
        "quality": "is the least intrusive method that fits",
        "speed": "is the fastest of the methods allowed",
        "memory": "needs least of the methods allowed",
    }[outcome.terms.request.objective]
    return f"{each.label} {why}: {held_by(setup)}, {figures}"


def _why_not(desk: Desk, outcome: Outcome, each: Round) -> str:
    if each.refused is not None:
        return f"{each.label} is ruled out: {each.refused}"
    if outcome.terms.request.objective != "quality" and each.best(desk.capacity_bytes) is not None:
        return ""
    lean = each.space.leanest()
    price = desk.price(lean) if lean is not None else None
    if lean is None or price is None:
        return f"{each.label} cannot be priced here"
    host = desk.host_refusal(lean)
    if host is not None and price.required_bytes <= desk.capacity_bytes:
        return f"{each.label} does not run: {host}"
    short = f"{show_gib(price.required_bytes)} of {show_gib(desk.capacity_bytes)} a GPU"
    more = _states(desk, each) + _no_offload(desk, outcome, each)
    return f"{each.label} does not fit: at its leanest ({held_by(lean)}) it needs {short}{more}"


def _thumb(desk: Desk, outcome: Outcome, each: Round) -> str:
    """A popular guide's sum for full fine-tuning beside ours, for one GPU that is large enough."""
    setup = outcome.terms.batch.split(each.space.base, outcome.terms.batch.micro_sizes[0])
    alone = replace(desk.machine, gpus=desk.machine.gpus[:1], nodes=1)
    samples = setup.micro_batch_size
    guide = rule_of_thumb(desk.spec.parameters, samples=samples, seq_tokens=setup.seq_len)
    try:
        ours = desk.price_of(setup.but(parallelism="none", offload="none"), desk.spec, alone)
    except PlannerError:
        return ""
    said = f"a common rule of thumb says {guide.words()} for full fine-tuning on one GPU at micro batch {samples}"
    return f"{said}; with gradients, fp32 copies and what the layers keep it is {ours.allocated_bytes / 1e9:.0f} GB"


def _no_offload(desk: Desk, outcome: Outcome, each: Round) -> str:
    """What offload of this class would take of the host, where the GPUs could then hold the rest."""
    for rung in () if desk.machine.unified else offload_rungs(outcome.terms):
        lean = each.space.leanest(rung) if rung.id not in outcome.terms.request.forbid else None
        price = desk.price(lean) if lean is not None else None
        if price is None or price.required_bytes > desk.capacity_bytes:
            continue
        ram = desk.machine.host_room_bytes
        if ram is None:
            return f"; with {rung.title} it would fit, for {show_gib(price.host_bytes)} of host memory a node"
        if price.host_bytes > ram:
            return f"; offload is ruled out too: {desk.host_refusal(lean or each.space.base)}"
    return ""


def _states(desk: Desk, each: Round) -> str:
    """For full fine-tuning: what weights, gradients and states alone come to, with and without sharding."""
    if each.method_class != "full" or desk.spec.parameters == 0:
        return ""
    ranks = desk.machine.world_size
    total = 16 * desk.spec.parameters
    held = (
        f"; weights, gradients and Adam states are 16 bytes for each of {show_count(desk.spec.parameters)} parameters"
    )
    sharded = f", {show_gib(total / ranks)} sharded over {ranks} GPUs" if ranks > 1 else ""
    return f"{held}: {show_gib(total)} on one GPU{sharded}"


def _spent(desk: Desk, outcome: Outcome, setup: TrainingSetup) -> list[str]:
    batch = outcome.terms.batch
    product = f"{setup.micro_batch_size} x {setup.gradient_accumulation_steps} x {batch.ranks} GPUs"
    reasons = [f"micro batch {product} = {batch.effective} sequences a step, the same on every rung"]
    if outcome.shortened is not None:
        reasons.append(
            f"sequences are cut to {outcome.shortened} tokens, with your consent: what lies beyond is not learnt"
        )
    if outcome.used_offload is not None:
        reasons.append(_offload(desk, outcome, outcome.used_offload, setup))
    return reasons


def _offload(desk: Desk, outcome: Outcome, rung: Rung, setup: TrainingSetup) -> str:
    price = desk.price(setup)
    need = show_gib(price.host_bytes) if price else "an unknown amount"
    ram = desk.machine.host_room_bytes
    have = "which is not known to be there" if ram is None else f"of {show_gib(ram)}"
    asked = "offload" in outcome.terms.fixed
    why = "as asked" if asked else "it does not fit without"
    return f"{rung.title}, {why}: this takes {need} of host memory a node, {have}"


def assumptions_of(desk: Desk, outcome: Outcome, chosen: Configuration | None) -> tuple[str, ...]:
    """What the plan takes for granted: the machine's, the estimate's and the speed model's assumptions."""
    found = list(desk.machine.assumptions)
    shown = outcome.chosen or outcome.nearest
    if chosen is not None:
        found += chosen.estimate.assumptions
    if shown is not None and desk.speed(shown) is not None:
        found.append(_speed_assumption(desk))
    if desk.machine.host_room_bytes is None:
        found.append("host memory is not known: rungs that need it are shown and not chosen unasked (say --ram)")
    return tuple(dict.fromkeys(found))


def _speed_assumption(desk: Desk) -> str:
    from planner.speed.estimate import assumptions

    return assumptions(desk.machine)


def _idle_adapter_settings(outcome: Outcome, chosen: Configuration) -> list[str]:
    """Settings of adapters that were given, where the plan that fits best has none."""
    idle = [name for name in ADAPTER_FIELDS if name in outcome.terms.request.pinned]
    if chosen.setup.is_adapter or not idle:
        return []
    flags = " and ".join("--" + name.replace("_", "-") for name in idle)
    return [
        f"{flags} has no effect: {chosen.setup.method} fits and trains no adapters (say --method lora to have them)"
    ]


def warnings_of(desk: Desk, outcome: Outcome, chosen: Configuration | None) -> tuple[str, ...]:
    """What the reader should know before starting."""
    from planner.search.constraints import violations

    found = list(desk.machine.warnings)
    found += [outcome.terms.batch.warning] if outcome.terms.batch.warning else []
    found += crowded(desk, outcome.terms.batch)
    if chosen is not None:
        found += _idle_adapter_settings(outcome, chosen)
        met = violations(chosen.setup, desk.spec, desk.machine)
        found += [f"{each.sentence} (rule {each.rule_id})" for each in met]
        found += chosen.estimate.warnings
        host = desk.host_refusal(chosen.setup)
        found += [host] if host else []
        found += _host_remarks(desk, chosen) + _tight(desk, chosen)
    return tuple(dict.fromkeys(found))


def _host_remarks(desk: Desk, chosen: Configuration) -> list[str]:
    """Fewer checkpoints than usual, and a host that must be larger than such nodes commonly are."""
    needed, machine = chosen.estimate, desk.machine
    said = []
    kept = checkpoints_kept(needed.disk_bytes, needed.checkpoint_bytes, machine.disk_free_bytes)
    if kept < CHECKPOINTS_KEPT:
        said.append(
            f"{CHECKPOINTS_KEPT} checkpoints would need {show_gib(needed.disk_bytes)} of disk, and "
            f"{show_gib(machine.disk_free_bytes or 0)} are free: save_total_limit is {kept}"
        )
    on_cards = sum(gpu.capacity_bytes for gpu in machine.gpus)
    if machine.host_room_bytes is None and needed.host_bytes > max(on_cards, SMALL_HOST_BYTES):
        said.append(
            f"each node needs {show_gib(needed.host_bytes)} of host memory, more than the {show_gib(on_cards)} of its "
            f"GPUs, and how much there is, is not known: say --ram{_loads_with_less(desk, chosen)}"
        )
    return said


def _loads_with_less(desk: Desk, chosen: Configuration) -> str:
    """An earlier release that the engine accepts too, where it holds less than half on the host."""
    versions = engine_rows().get(chosen.setup.engine, {}).get("earlier_versions", {})
    if not versions or chosen.setup.versions:
        return ""
    host_bytes = desk.price_of(chosen.setup.but(versions=dict(versions)), desk.spec, desk.machine).host_bytes
    if 2 * host_bytes > chosen.estimate.host_bytes:
        return ""
    named = ",".join(f"{package}={version}" for package, version in versions.items())
    return f"; planned with --versions {named} it loads with {show_gib(host_bytes)}"


def _tight(desk: Desk, chosen: Configuration) -> list[str]:
    """A plan that leaves less than a desktop takes, on cards of which no free memory was read."""
    spare = desk.capacity_bytes - chosen.estimate.required_bytes
    unread = any(gpu.free_bytes is None for gpu in desk.machine.gpus)
    if not unread or not 0 <= spare < DESKTOP_BYTES:
        return []
    return [
        f"{show_gib(spare)} a GPU is left and no free memory was read: a desktop or another process on a card would "
        "take it (`plan probe` there shows what is free)"
    ]
