"""The search on a machine of different cards: on all of them and on fewer, whichever gives the better plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from planner.errors import InputError
from planner.hardware.machine import Gpu, Machine
from planner.hardware.parse import format_gpus
from planner.model.spec import ModelSpec
from planner.plan.plan import Request
from planner.search.climb import Outcome, search
from planner.search.constraints import violations
from planner.search.crews import crews
from planner.search.desk import Desk, PriceFunction, SpeedFunction
from planner.search.walk import Terms, settle
from planner.units import show_gib

_VERDICTS = {"fits": 2, "uncertain": 1, "does_not_fit": 0}


@dataclass(eq=False, repr=False)
class Found:
    """One search with the desk it was made at."""

    desk: Desk
    outcome: Outcome

    @property
    def rate(self) -> float:
        """Tokens per second of the choice; 0 where nothing is chosen or known."""
        speed = self.desk.speed(self.outcome.chosen) if self.outcome.chosen else None
        return speed.tokens_per_s if speed else 0.0

    @property
    def need_bytes(self) -> int:
        """Required bytes of the choice; 0 where nothing is chosen."""
        chosen = self.outcome.chosen
        return (self.desk.need(chosen) or 0) if chosen else 0

    def told(self, amount: str = "") -> str:
        """``LoRA may fit at about 9,000 tokens/s``, with ``amount`` behind the class."""
        outcome = self.outcome
        if outcome.chosen is None or outcome.round is None:
            return "nothing fits"
        sure = "" if outcome.verdict == "fits" else " may fit"
        rate = f" at about {self.rate:,.0f} tokens/s" if self.rate else ""
        return f"{outcome.round.label}{sure}{amount}{rate}"

    def rank(self) -> tuple[int, int, int, int]:
        """What counts before speed: the verdict, no unasked offload, and for quality the class and LoRA's rank."""
        outcome = self.outcome
        used = outcome.used_offload
        plain = used is None or "offload" in outcome.terms.fixed or used.id in outcome.terms.request.allow
        by_class = outcome.terms.request.objective == "quality"
        rung = outcome.round.rung if by_class and outcome.round is not None else None
        place = list(outcome.terms.ladder).index(rung) + 1 if rung is not None else 0
        adapters = outcome.chosen.lora_rank if by_class and outcome.chosen is not None else 0
        return _VERDICTS[outcome.verdict], int(plain), -place, adapters


def search_machine(
    request: Request, spec: ModelSpec, machine: Machine, price: PriceFunction, speed: SpeedFunction
) -> tuple[Found, Found]:
    """The search on the whole machine, and the best one: that, or one on fewer cards of a better rank, or as good and
    faster.
    """

    def desk_of(terms: Terms, where: Machine) -> Desk:
        asked = violations(terms.start, spec, where)
        tolerated = frozenset(found.rule_id for found in asked if found.effect == "unproven")
        return Desk(spec, where, price, speed, tolerated)

    terms = settle(request, spec, machine)
    desk = desk_of(terms, machine)
    whole = Found(desk, search(desk, terms))
    return whole, _best(request, machine, desk_of, whole)


def _best(request: Request, machine: Machine, desk_of: Callable[[Terms, Machine], Desk], found: Found) -> Found:
    if all(each.refused is not None for each in found.outcome.rounds):
        return found
    best = found
    for crew in crews(machine):
        other = _on(request, crew, desk_of, found)
        if other is not None and _is_better(other, best):
            best = other
    return best


def _on(request: Request, crew: Machine, desk_of: Callable[[Terms, Machine], Desk], found: Found) -> Found | None:
    try:
        terms = settle(replace(request, gpus=format_gpus(crew)), found.desk.spec, crew)
    except InputError:  # what was asked for needs more cards
        return None
    desk = desk_of(terms, crew)
    return Found(desk, search(desk, terms))


def _is_better(other: Found, best: Found) -> bool:
    if other.rank() != best.rank():
        return other.rank() > best.rank()
    if other.outcome.terms.request.objective == "memory" or other.outcome.chosen is None:
        return False
    return other.rate > best.rate


def why_these(whole: Found, best: Found) -> Iterator[str]:
    """Which cards are left out and what all of them would have done, or that none is worth leaving out."""
    machine = whole.desk.machine
    if best is whole:
        if any(True for _ in crews(machine)):
            yield (
                f"these cards differ: {_card(machine.smallest)} decides what fits and the slowest how long a step "
                "takes; leaving cards out would not be better"
            )
        return
    kept = {gpu.index for gpu in best.desk.machine.gpus}
    out = [gpu for gpu in machine.gpus if gpu.index not in kept]
    verb = "are" if len(out) > 1 else "is"
    yield f"{' and '.join(_card(gpu) for gpu in out)} {verb} left out: {_compared(whole, best)}{_numbering(machine)}"


def _card(gpu: Gpu) -> str:
    return f"gpu {gpu.index} ({gpu.name}, {show_gib(gpu.capacity_bytes)})"


def _compared(whole: Found, best: Found) -> str:
    return f"with every card {whole.told()}, without {best.told()}"


def _numbering(machine: Machine) -> str:
    if machine.source == "probe":
        return ""
    return " (numbered as in --gpus: put the driver's numbers into CUDA_VISIBLE_DEVICES)"
