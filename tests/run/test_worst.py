"""Which runs have a rehearsal of their longest batch."""

from __future__ import annotations

import pytest

from planner.run.worst import can_rehearse, rehearsal
from planner.training import TrainingSetup


@pytest.mark.parametrize(
    ("engine", "stage", "known"),
    [("llamafactory", "rm", True), ("trl", "dpo", True), ("trl", "rm", False), ("embedded", "sft", True),
     ("axolotl", "sft", False)],
)  # fmt: skip
def test_trls_reward_trainer_would_drop_every_long_sample(engine: str, stage: str, known: bool) -> None:
    setup = TrainingSetup(model="-", engine=engine, stage=stage)
    assert can_rehearse(setup) is known
    assert (rehearsal(setup, {}, ranks=1) is not None) is known
