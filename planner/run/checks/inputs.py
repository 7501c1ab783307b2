"""The model and the data: there, whole, readable, or to be had. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from planner.run.checks.records import DataFacts, ModelFacts, Need, Surroundings, failed, passed, warned
from planner.run.records import Check

MOST_NAMED = 3


def inputs(need: Need, here: Surroundings) -> Iterator[Check]:
    """Every model, then every data set."""
    yield from (_model(each) for each in here.models)
    if here.data_problem is not None:
        yield failed("data", here.data_problem, "put the file back, or plan again")
    yield from (_data(each) for each in here.data)


def _model(facts: ModelFacts) -> Check:
    if facts.folder is not None:
        return _in_folder(facts)
    if facts.is_local:
        return failed(facts.role, f"{facts.name} does not exist", "put the model there, or plan again with --model")
    if facts.offline is not None:
        sentence = f"{facts.name} is not in the cache, and {facts.offline} forbids fetching it"
        return failed(facts.role, sentence, f"unset {facts.offline}, or fetch it first: hf download {facts.name}")
    return _at_hub(facts)


def _in_folder(facts: ModelFacts) -> Check:
    again = "copy it there again" if facts.is_local else f"fetch it again: hf download {facts.name}"
    if facts.problem is not None:
        return failed(facts.role, facts.problem, again)
    if facts.missing:
        more = f" and {len(facts.missing) - MOST_NAMED} more" if len(facts.missing) > MOST_NAMED else ""
        sentence = f"{facts.folder} lacks {', '.join(facts.missing[:MOST_NAMED])}{more}"
        return failed(facts.role, sentence, again)
    return passed(facts.role, f"{facts.name} is {'whole' if facts.is_local else 'whole in the cache'}")


def _at_hub(facts: ModelFacts) -> Check:
    name, token = facts.name, "a token is set" if facts.has_token else "no token is set"
    if facts.reach == "reachable":
        return passed(facts.role, f"{name} will be fetched from {facts.hub}")
    if facts.reach == "gated":
        remedy = "accept its terms on its page, and set HF_TOKEN or run `hf auth login`"
        return failed(facts.role, f"{name} is gated at {facts.hub}, and access is refused; {token}", remedy)
    if facts.reach in ("absent", "refused"):
        said = "does not have it" if facts.reach == "absent" else "does not give it"
        sentence = f"{facts.hub} {said}: {name} is misspelt, or private; {token}"
        return failed(facts.role, sentence, "correct the name, or set HF_TOKEN to a token that may read it")
    if facts.reach == "unreachable":
        sentence = f"{name} is not in the cache, and {facts.hub} is not reached ({facts.detail})"
        return failed(
            facts.role, sentence, "mend the network or HF_ENDPOINT, or copy the model here and name its folder"
        )
    return warned(facts.role, f"{name} will be fetched from {facts.hub}, which was not asked")


def _data(facts: DataFacts) -> Check:
    if facts.problem is not None:
        return failed(
            "data", f"{facts.name}: {facts.problem}", "put the file there and make it readable, or plan again"
        )
    if facts.remote is not None:
        return warned("data", f"{facts.name} comes from {facts.remote}, which was not asked")
    return passed("data", f"{facts.name}: {facts.path} is there")
