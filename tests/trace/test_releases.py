"""Which release's code a trace runs. No torch is needed."""

from __future__ import annotations

import pytest

from planner.errors import UnsupportedError
from planner.trace import releases
from planner.trace.job import Job
from tests.trace.test_job import job


def asking_for(version: str) -> Job:
    return job(engine="transformers", versions={"transformers": version})


@pytest.mark.parametrize(
    ("installed", "asked", "own"),
    [((4, 48), "4.48", True), ((4, 48), "4.48.1", True), ((5, 23), "4.48", False), ((5, 23), "5.23.0", True)],
)
def test_own_code_runs_where_the_release_asked_for_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[int, ...], asked: str, own: bool
) -> None:
    monkeypatch.setattr(releases, "installed", lambda: installed)
    assert releases.runs_own_code(asking_for(asked)) is own
    releases.refuse_other_release(asking_for(asked))


def test_an_old_transformers_traces_no_other_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "installed", lambda: (4, 48))
    with pytest.raises(UnsupportedError, match=r"4\.48 is installed here and the setup asks for 5\.23") as found:
        releases.refuse_other_release(asking_for("5.23.0"))
    assert "--versions transformers=4.48" in (found.value.hint or "")


def test_only_old_checkpointed_gpt_bigcode_names_its_cache() -> None:
    def names(version: str, model: str = "bigcode/gpt_bigcode-santacoder") -> bool:
        return job(model=model, engine="transformers", method="full", versions={"transformers": version}).names_cache

    assert (names("4.48"), names("4.53"), names("4.48", "EleutherAI/pythia-6.9b")) == (True, False, False)
