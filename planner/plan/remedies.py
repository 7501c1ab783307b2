"""Nothing fits: which hardware, method or length would do, each tried with the same prices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from planner.hardware.machine import Gpu, Machine
from planner.plan.ways import cut, spread
from planner.rulebook.load import engine_rows
from planner.search.batch import plan_batch
from planner.search.climb import SHORTEST_SEQUENCE, Climber, Outcome, method_class_of
from planner.search.desk import Desk
from planner.search.walk import Terms
from planner.training import TrainingSetup
from planner.units import GIB, show_gib

COUNTS = (2, 3, 4, 6, 8, 16, 24, 32, 48, 64)  # beyond one node of 8: whole nodes
CARD_GIB = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141, 192)
CARD_SHARE = 0.97  # of a card's nominal size that a job may use, as for sizes without a name


def remedies_of(desk: Desk, outcome: Outcome) -> tuple[str, ...]:
    """Sentences, the nearest remedy first: another method, shorter sequences, more GPUs, a larger card, host memory."""
    found = (_host, _method, _length, _count, _card, _offload, cut)
    sentences = tuple(sentence for look in found for sentence in look(desk, outcome))
    return sentences or tuple(_more_and_larger(desk, outcome))


def _host(desk: Desk, outcome: Outcome) -> Iterator[str]:
    """Where the GPUs would do and the host would not: how much of it is wanted, or which release loads with less."""
    setup = outcome.nearest
    price = desk.price(setup) if setup is not None else None
    if setup is None or price is None or price.required_bytes > desk.capacity_bytes:
        return
    room = desk.machine.host_room_bytes
    if room is None or price.host_bytes <= room:
        yield f"free disk of at least {show_gib(price.least_disk_bytes)} a node would do: the GPUs are large enough"
        return
    yield f"host memory of at least {show_gib(price.host_bytes)} a node would do: the GPUs are large enough"
    yield from _release(desk, outcome)


def _release(desk: Desk, outcome: Outcome) -> Iterator[str]:
    """An earlier release that the engine accepts too, where the job loads with it."""
    row = engine_rows().get(outcome.terms.request.engine, {})
    versions = row.get("earlier_versions", {})
    if not versions or outcome.terms.start.versions:
        return
    terms = replace(outcome.terms, start=outcome.terms.start.but(versions=dict(versions)))
    found = Climber(Desk(desk.spec, desk.machine, desk.price_of, desk.speed_of, desk.tolerated), terms).climb()
    if found.verdict == "fits" and found.chosen is not None and found.round is not None:
        named = ",".join(f"{package}={version}" for package, version in versions.items())
        yield (
            f"with {named.replace('=', ' ')} it would load and fit, as {found.round.label} under "
            f"{spread(found.chosen)}: --versions {named}"
        )


def _method(desk: Desk, outcome: Outcome) -> Iterator[str]:
    """A milder class that the request kept out and that would fit."""
    terms = outcome.terms
    opened = replace(
        terms, request=replace(terms.request, require=frozenset(), allow=frozenset()), fixed=_unfixed(terms)
    )
    for each in Climber(desk, replace(opened, start=_full(terms))).rounds:
        setup = each.best(desk.capacity_bytes) if each.refused is None else None
        if setup is not None:
            yield f"{each.label} would fit: --method {setup.method}, {show_gib(desk.need(setup) or 0)} a GPU"
            return


def _unfixed(terms: Terms) -> dict[str, object]:
    kept = ("method", "optim", "param_dtype", "quantization_bit")
    return {name: value for name, value in terms.fixed.items() if name not in kept}


def _full(terms: Terms) -> TrainingSetup:
    return terms.start.but(method="full", quantization_bit=None, param_dtype=None, optim="adamw_torch")


def _length(desk: Desk, outcome: Outcome) -> Iterator[str]:
    length = outcome.terms.start.seq_len // 2
    while length >= SHORTEST_SEQUENCE:
        shorter = replace(outcome.terms, start=outcome.terms.start.but(seq_len=length))
        found = Climber(desk, shorter).climb()
        if found.verdict == "fits" and found.chosen is not None:
            label = found.round.label if found.round else found.chosen.method
            yield f"{length} tokens would fit, with {label}: --seq-len {length} or --allow shorter-sequences"
            return
        length //= 2


def _count(desk: Desk, outcome: Outcome) -> Iterator[str]:
    """The smallest number of the same GPUs that does."""
    have = desk.machine.world_size
    for count in (count for count in COUNTS if count > have):
        in_node = 1 if desk.machine.unified else min(count, 8)
        machine = replace(desk.machine, gpus=_copies(desk.machine.smallest, in_node), nodes=max(1, count // in_node))
        label = _fits_on(desk, outcome, machine)
        if label is not None:
            yield f"{machine.world_size} of these GPUs would do, with {label}"
            return


def _card(desk: Desk, outcome: Outcome) -> Iterator[str]:
    """The smallest card size that does, as many of them as now."""
    for size in CARD_GIB:
        capacity = int(size * GIB * CARD_SHARE)
        if capacity <= desk.capacity_bytes:
            continue
        gpus = tuple(replace(gpu, capacity_bytes=capacity, nominal_bytes=size * GIB) for gpu in desk.machine.gpus)
        label = _fits_on(desk, outcome, replace(desk.machine, gpus=gpus))
        if label is not None:
            yield f"{desk.machine.world_size} x {size} GB would do, with {label}"
            return


def _more_and_larger(desk: Desk, outcome: Outcome) -> Iterator[str]:
    """Where neither alone does: a node of eight larger cards, then eight such nodes."""
    for nodes in (1, 8):
        for size in CARD_GIB:
            gpu = replace(desk.machine.smallest, capacity_bytes=int(size * GIB * CARD_SHARE), nominal_bytes=size * GIB)
            machine = replace(desk.machine, gpus=_copies(gpu, 8), nodes=nodes)
            label = _fits_on(desk, outcome, machine)
            if label is not None:
                yield f"{machine.world_size} x {size} GB would do, with {label}"
                return


def _offload(desk: Desk, outcome: Outcome) -> Iterator[str]:
    """What offload would take, where it was not taken for want of host memory or of knowing it."""
    if desk.machine.unified:
        return
    for each in outcome.rounds:
        for rung in (rung for rung in outcome.terms.ladder if rung.is_offload):
            if each.refused is not None or rung.id in outcome.terms.request.forbid:
                continue
            setup = each.space.leanest(rung)
            price = desk.price(setup) if setup is not None else None
            if price is None or price.required_bytes > desk.capacity_bytes:
                continue
            yield f"{each.label} with {rung.title} would fit the GPUs; {_host_need(desk, price.host_bytes)}"
            return


def _host_need(desk: Desk, host_bytes: int) -> str:
    ram = desk.machine.host_room_bytes
    have = "how much there is, is not known (say --ram)" if ram is None else f"there are {show_gib(ram)}"
    return f"it needs {show_gib(host_bytes)} of host memory a node, and {have}"


def _fits_on(desk: Desk, outcome: Outcome, machine: Machine) -> str | None:
    """The class that fits on another machine, as the reader would call it, or None."""
    other = Desk(desk.spec, machine, desk.price_of, desk.speed_of, desk.tolerated)
    found = Climber(other, _on(outcome.terms, machine)).climb()
    if found.verdict != "fits" or found.chosen is None or found.round is None:
        return None
    kind = method_class_of(found.chosen)
    alone = kind == "other" or found.chosen.parallelism == "none"
    return found.round.label if alone else f"{found.round.label} under {spread(found.chosen)}"


def _on(terms: Terms, machine: Machine) -> Terms:
    """The same request on another machine: its batch and its default parallelism."""
    setup = terms.start
    shared = setup.tensor_parallel * setup.pipeline_parallel * setup.context_parallel
    batch = plan_batch(terms.request.global_batch, max(1, machine.world_size // shared), terms.request.pinned)
    several = "ddp" if setup.parallelism == "none" and machine.world_size > 1 else setup.parallelism
    start = batch.split(setup.but(parallelism=several), batch.start_micro)
    return replace(terms, batch=batch, start=start)


def _copies(gpu: Gpu, count: int) -> tuple[Gpu, ...]:
    return tuple(replace(gpu, index=number) for number in range(count))
