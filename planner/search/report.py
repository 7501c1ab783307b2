"""The walk as it is told: every rung, applied or why not, bytes before and after, and what it costs in time."""

from __future__ import annotations

from dataclasses import dataclass

from planner.plan.plan import RungReport
from planner.search.climb import Outcome, Rivals, Round
from planner.search.constraints import newly_met
from planner.search.desk import Desk
from planner.search.rungs import Rung
from planner.training import TrainingSetup
from planner.units import show_gib


@dataclass(eq=False, repr=False)
class Teller:
    """Walks from the naive start to the setup that the climb ended at, rung by rung in the ladder's order."""

    desk: Desk
    outcome: Outcome
    rivals: Rivals

    def tell(self) -> tuple[RungReport, ...]:
        """One report a rung. Applied rungs chain: each one's bytes after are the next one's before."""
        end = self.outcome.chosen or self.outcome.nearest
        if end is None:
            return tuple(self._skipped(rung, self.outcome.terms.start) for rung in self.outcome.terms.ladder)
        state = self.outcome.terms.start.but(lora_rank=end.lora_rank)  # ranks to choose from are no rung
        reports = []
        for rung in self.outcome.terms.ladder:
            after = self._step(rung, state, end)
            if after is None:
                reports.append(self._skipped(rung, end))
            else:
                reports.append(self._applied(rung, state, after))
                state = after
        return tuple(reports)

    def _step(self, rung: Rung, state: TrainingSetup, end: TrainingSetup) -> TrainingSetup | None:
        """The state with the rung taken, where the end has it; None where it does not."""
        if rung.id in self.outcome.terms.request.forbid:
            return None
        if rung.steps == "micro_batch_size":
            changed = end.micro_batch_size != state.micro_batch_size
            return self.outcome.terms.batch.split(state, end.micro_batch_size) if changed else None
        if rung.steps == "seq_len":
            return state.but(seq_len=end.seq_len) if self.outcome.shortened else None
        if rung.steps == "gradient_checkpointing":
            some = type(end.gradient_checkpointing) is int
            return state.but(gradient_checkpointing=end.gradient_checkpointing) if some else None
        if rung.environment and not rung.changes:
            return state
        return self.outcome.terms.take(rung, state) if rung.in_setup(end) else None

    def _applied(self, rung: Rung, before: TrainingSetup, after: TrainingSetup) -> RungReport:
        reason = rung.reason
        if rung.steps == "micro_batch_size":
            reason = self._micro_reason(before, after)
        elif rung.id in self.outcome.terms.request.require:
            reason = f"required; {rung.reason}"
        elif before is after and rung.changes:
            reason = f"asked for; {rung.reason}"
        return self._report(rung, True, reason, before, after)

    def _micro_reason(self, before: TrainingSetup, after: TrainingSetup) -> str:
        batch = self.outcome.terms.batch
        sizes = f"{after.micro_batch_size} x {after.gradient_accumulation_steps} x {batch.ranks} = {batch.effective}"
        if after.micro_batch_size < before.micro_batch_size:
            return f"micro batch {before.micro_batch_size} becomes {after.micro_batch_size}: {sizes} sequences a step"
        return f"there is room: micro batch {before.micro_batch_size} becomes {after.micro_batch_size}: {sizes} a step"

    def _skipped(self, rung: Rung, end: TrainingSetup) -> RungReport:
        """Why not, and what the rung would bring on top of where the climb ended."""
        barred = self.outcome.terms.bar(rung)
        if barred and not barred.startswith("on request"):
            return self._bare(rung, barred)
        return self._skipped_class(rung, end, barred) if rung.is_class else self._skipped_step(rung, end, barred)

    def _skipped_class(self, rung: Rung, end: TrainingSetup, barred: str | None) -> RungReport:
        """A class of its own is shown at its best, or at its leanest where it does not fit."""
        terms = self.outcome.terms
        unmet = terms.unmet(rung, terms.take(rung, terms.start), self.desk.spec, self.desk.machine)
        if unmet:
            return self._bare(rung, f"{barred}; {unmet}" if barred else unmet)
        each = next((each for each in self.outcome.rounds if each.rung is rung), None) or self.rivals.of(rung)
        shown = each.shown()
        if shown is None:
            return self._bare(rung, f"{barred}; {each.refused}" if barred else str(each.refused))
        return self._report(rung, False, barred or self._why_no_class(each), end, shown)

    def _skipped_step(self, rung: Rung, end: TrainingSetup, barred: str | None) -> RungReport:
        after = self._tried(rung, end)
        unmet = self.outcome.terms.unmet(rung, end, self.desk.spec, self.desk.machine)
        useless = unmet or newly_met(end, after, self.desk.spec, self.desk.machine)
        if useless:
            return self._bare(rung, f"{barred}; {useless}" if barred else useless)
        return self._report(rung, False, barred or self._why_not(rung, end, after), end, after)

    def _tried(self, rung: Rung, end: TrainingSetup) -> TrainingSetup:
        terms = self.outcome.terms
        if rung.steps == "micro_batch_size":
            return end
        if rung.steps == "seq_len":
            return end.but(seq_len=max(1, end.seq_len // 2))
        if rung.steps == "gradient_checkpointing":
            return end.but(gradient_checkpointing=2)
        taken = terms.take(rung, end)
        if rung.through and taken.parallelism not in rung.through and "parallelism" not in terms.fixed:
            taken = taken.but(parallelism=rung.through[-1])
        return taken

    def _why_not(self, rung: Rung, end: TrainingSetup, after: TrainingSetup) -> str:
        if rung.steps == "micro_batch_size":
            batch = self.outcome.terms.batch
            sizes = f"{end.micro_batch_size} x {end.gradient_accumulation_steps} x {batch.ranks} = {batch.effective}"
            return f"not needed: micro batch {end.micro_batch_size} stays, {sizes} sequences a step"
        if self.outcome.verdict != "fits":
            return self._why_no_help(end, after)
        needed = self.desk.need(after)
        if needed is not None and needed > self.desk.capacity_bytes:
            return f"not enough: it needs {show_gib(needed)} of {show_gib(self.desk.capacity_bytes)}"
        if rung.is_offload:
            return self._why_no_offload(after)
        return "not needed: " + self._pace(end, after)

    def _why_no_offload(self, after: TrainingSetup) -> str:
        host = self.desk.host_refusal(after)
        return f"not needed: it fits on the GPUs; besides, {host}" if host else "not needed: it fits on the GPUs"

    def _pace(self, end: TrainingSetup, after: TrainingSetup) -> str:
        times = self.desk.slowdown(end, after)
        if times is None:
            return "it fits without"
        if times > 1.01:
            return f"it fits without, and this would take {times:.2f} times as long"
        if times < 0.99:
            return f"it fits without; as much work would take {times:.2f} times as long"
        return "it fits without, at the same speed"

    def _why_no_help(self, end: TrainingSetup, after: TrainingSetup) -> str:
        host = self.desk.host_refusal(after)
        if host:
            return f"refused: {host}"
        if after.offload != end.offload and self.desk.machine.host_room_bytes is None:
            price = self.desk.price(after)
            need = show_gib(price.host_bytes) if price else "unknown"
            return f"not chosen unasked: host memory is unknown, and it needs {need} a node"
        needed, had = self.desk.need(after), self.desk.need(end)
        if needed is not None and had is not None and needed >= had:
            return "does not help: it needs no less"
        return "not enough: " + (f"it still needs {show_gib(needed)}" if needed is not None else "it cannot be priced")

    def _why_no_class(self, found: Round) -> str:
        chosen = self.outcome.round
        if chosen is None:
            return self._too_much(found)
        order = list(self.outcome.rounds)
        if found in order and order.index(found) < order.index(chosen):
            return self._too_much(found)
        return f"not needed: {chosen.label} fits"

    def _too_much(self, each: Round) -> str:
        lean = each.space.leanest()
        need = self.desk.need(lean) if lean else None
        if need is None:
            return "not enough"
        return f"not enough: at its leanest it needs {show_gib(need)} of {show_gib(self.desk.capacity_bytes)}"

    def _bare(self, rung: Rung, reason: str) -> RungReport:
        return RungReport(
            id=rung.id, title=rung.title, tier=rung.tier, applied=False, reason=reason,
            before_bytes=None, after_bytes=None, slowdown=None, quality_risk=rung.quality_risk,
        )  # fmt: skip

    def _report(
        self, rung: Rung, applied: bool, reason: str, before: TrainingSetup, after: TrainingSetup
    ) -> RungReport:
        same = before is after
        return RungReport(
            id=rung.id,
            title=rung.title,
            tier=rung.tier,
            applied=applied,
            reason=reason,
            before_bytes=self.desk.need(before),
            after_bytes=self.desk.need(after),
            slowdown=None if same else self.desk.slowdown(before, after),
            quality_risk=rung.quality_risk,
        )
