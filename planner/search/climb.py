"""The climb: from full fine-tuning down to the least intrusive class that fits, then the best use of the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from planner.memory.result import Verdict
from planner.plan.plan import MethodClass
from planner.search.choice import best_of, fastest_of
from planner.search.desk import Desk
from planner.search.rungs import Rung
from planner.search.spend import Space, build_space
from planner.search.walk import Terms
from planner.training import TrainingSetup

SHORTEST_SEQUENCE = 128
NAMES = {
    "full": "full fine-tuning",
    "freeze": "freeze",
    "lora": "LoRA",
    "dora": "DoRA",
    "qlora": "QLoRA",
    "oft": "OFT",
    "galore": "GaLore",
    "apollo": "APOLLO",
    "badam": "BAdam",
}


@dataclass(eq=False, repr=False)
class Round:
    """One class of the climb: ``rung`` is None where the walk starts. ``refused`` is set where rules shut it out."""

    rung: Rung | None
    label: str
    method_class: MethodClass
    space: Space
    refused: str | None

    def shown(self) -> TrainingSetup | None:
        """What stands for the class: its best that fits, else its leanest."""
        if self.refused is not None:
            return None
        return self.best(self.space.desk.capacity_bytes) or self.space.leanest()

    def best(self, limit_bytes: int, *, coverage: float = 0.99, offload: Sequence[Rung] = ()) -> TrainingSetup | None:
        """The best setup of the class within a limit; offload rungs come in only where nothing fits without."""
        for rung in (None, *offload):
            fitting = self.space.fitting(limit_bytes, coverage=coverage, offload=rung)
            if fitting:
                return best_of(self.space.desk, fitting, self.space.terms)
        return None


@dataclass(eq=False, repr=False)
class Outcome:
    """Where the climb ended. ``chosen`` is None if nothing fits; ``nearest`` is then what comes closest."""

    terms: Terms
    rounds: tuple[Round, ...]
    verdict: Verdict
    chosen: TrainingSetup | None
    round: Round | None
    nearest: TrainingSetup | None
    shortened: int | None = None
    used_offload: Rung | None = None


@dataclass(eq=False, repr=False)
class Climber:
    """Walks the classes of a request in the ladder's order."""

    desk: Desk
    terms: Terms
    rounds: tuple[Round, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.rounds = make_rounds(self.desk, self.terms)

    def climb(self) -> Outcome:
        """Without offload, with offload as far as it may come in, and last the least that might just fit."""
        for search in (self._plainly, self._offloaded):
            found = search()
            if found is not None:
                return found
        return self._uncertain() or self._nothing()

    def _plainly(self) -> Outcome | None:
        asked = [rung for rung in offload_rungs(self.terms) if self._asked(rung)]
        return self._choose(lambda each: each.best(self.desk.capacity_bytes, offload=asked))

    def _offloaded(self) -> Outcome | None:
        """Unasked offload: only where host memory is known, because that is what pays for it."""
        if self.desk.machine.host_room_bytes is None:
            return None
        rungs = [rung for rung in offload_rungs(self.terms) if not self.terms.bar(rung)]
        return self._choose(lambda each: each.best(self.desk.capacity_bytes, offload=rungs))

    def _choose(self, best: Callable[[Round], TrainingSetup | None]) -> Outcome | None:
        """Quality takes the first class that fits; speed and memory compare all of them."""
        found: list[tuple[Round, TrainingSetup]] = []
        for each in self.rounds:
            setup = best(each) if each.refused is None else None
            if setup is not None:
                found.append((each, setup))
                if self.terms.request.objective == "quality":
                    break
        if not found:
            return None
        winner = self._winner([setup for _, setup in found])
        chosen = next((each, setup) for each, setup in found if setup is winner)
        return self._outcome("fits", chosen[1], chosen[0])

    def _winner(self, setups: Sequence[TrainingSetup]) -> TrainingSetup | None:
        """Of the best of each class: the smallest or the fastest."""
        if self.terms.request.objective == "memory":
            return best_of(self.desk, setups, self.terms)
        return fastest_of(self.desk, setups)

    def _uncertain(self) -> Outcome | None:
        """What is expected to fit without the margin for what is not known: a try, and said to be one."""
        for setup, each in sorted(self._leanest(), key=lambda pair: self.desk.need(pair[0]) or 0):
            price = self.desk.price(setup)
            tight = price is not None and price.allocated_bytes + price.context_bytes <= self.desk.capacity_bytes
            if tight and self.desk.host_refusal(setup) is None:
                return self._outcome("uncertain", setup, each)
        return None

    def _nothing(self) -> Outcome:
        nearest = min(self._leanest(), key=lambda pair: self.desk.need(pair[0]) or 0, default=(None, None))
        return Outcome(self.terms, self.rounds, "does_not_fit", None, None, nearest[0])

    def _leanest(self) -> list[tuple[TrainingSetup, Round]]:
        found = [(each.space.leanest(), each) for each in self.rounds if each.refused is None]
        return [(setup, each) for setup, each in found if setup is not None]

    def _outcome(self, verdict: Verdict, setup: TrainingSetup, each: Round) -> Outcome:
        used = next((rung for rung in offload_rungs(self.terms) if rung.in_setup(setup)), None)
        return Outcome(self.terms, self.rounds, verdict, setup, each, setup, used_offload=used)

    def _asked(self, rung: Rung) -> bool:
        request = self.terms.request
        return rung.id in request.allow | request.require and self.terms.bar(rung) is None


def search(desk: Desk, terms: Terms) -> Outcome:
    """The climb, and with consent (shorter-sequences allowed) the same at half the length, a quarter, ..."""
    outcome = Climber(desk, terms).climb()
    rung = next((rung for rung in terms.ladder if rung.steps == "seq_len"), None)
    asked = terms.request.seq_len
    length = terms.start.seq_len // 2
    while rung is not None and not terms.bar(rung) and outcome.verdict != "fits" and length >= SHORTEST_SEQUENCE:
        shorter = replace(terms, start=terms.start.but(seq_len=length))
        found = Climber(desk, shorter).climb()
        outcome = replace(found, terms=terms) if found.verdict == "fits" else outcome
        length //= 2
    end = outcome.chosen or terms.start
    return replace(outcome, shortened=end.seq_len) if end.seq_len < asked else outcome


def offload_rungs(terms: Terms) -> list[Rung]:
    """The rungs of the ladder that move something off the GPU, in its order."""
    return [rung for rung in terms.ladder if rung.is_offload]


def method_class_of(setup: TrainingSetup) -> MethodClass:
    """The mainstream class a setup belongs to, or "other" for everything unusual."""
    usual = setup.param_dtype != "bf16" and setup.optim.startswith("adamw_torch")
    if setup.method == "full" and usual:
        return "full"
    if setup.method not in ("lora", "qlora") or setup.quantization_bit == 8:
        return "other"
    return "lora" if setup.quantization_bit is None else "qlora"


def make_rounds(desk: Desk, terms: Terms) -> tuple[Round, ...]:
    """The classes that the request allows, in the ladder's order: the start, then each class rung."""
    classes = [rung for rung in terms.ladder if rung.is_class and _may_follow(desk, terms, rung)]
    reach = _reaches(terms, classes)
    made = (_rounds(desk, terms, rung, reach[number]) for number, rung in enumerate([None, *classes]))
    return tuple(each for rounds in made for each in rounds)


def _rounds(desk: Desk, terms: Terms, rung: Rung | None, rungs: Sequence[Rung]) -> list[Round]:
    """One class, or with ranks to choose from one for each: the largest first, because it learns most."""
    first = make_round(desk, terms, rung, rungs)
    if not first.space.base.is_adapter or not terms.request.lora_ranks:
        return [first]
    ranked = ((rank, replace(terms, start=terms.start.but(lora_rank=rank))) for rank in terms.request.lora_ranks)
    rounds = ((rank, make_round(desk, each, rung, rungs)) for rank, each in ranked)
    return [replace(each, label=f"{each.label} of rank {rank}") for rank, each in rounds]


def make_round(desk: Desk, terms: Terms, rung: Rung | None, rungs: Sequence[Rung]) -> Round:
    """One class as a round: its base with the free rungs, and why rules shut it out, if they do."""
    space = build_space(desk, terms, rung, rungs)
    label = rung.title if rung else _label(terms.start)
    return Round(rung, label, method_class_of(space.base), space, terms.against(space.base) or space.refused())


@dataclass(eq=False, repr=False)
class Rivals:
    """Classes that the request keeps out, each worked out once: what they would be at their best."""

    desk: Desk
    terms: Terms
    _known: dict[str, Round] = field(default_factory=dict)

    def of(self, rung: Rung) -> Round:
        """The class of a rung as a round of its own, with every rung of the ladder in reach."""
        if rung.id not in self._known:
            self._known[rung.id] = make_round(self.desk, self.terms, rung, self.terms.ladder.rungs)
        return self._known[rung.id]


def _may_follow(desk: Desk, terms: Terms, rung: Rung) -> bool:
    if terms.bar(rung) or rung.in_setup(terms.start):
        return False
    return terms.unmet(rung, terms.take(rung, terms.start), desk.spec, desk.machine) is None


def _reaches(terms: Terms, classes: Sequence[Rung]) -> list[tuple[Rung, ...]]:
    """For the start and each class: the rungs that stand before the next class, which are those it may use."""
    order = list(terms.ladder)
    ends = [order.index(rung) for rung in classes] + [len(order)]
    return [tuple(order[:end]) for end in ends]


def _label(setup: TrainingSetup) -> str:
    return NAMES.get(setup.method, setup.method)
