"""Trainers that a plan can be written for: one module each, all of them in ``TARGETS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.targets import llamafactory, llamafactory_launch, transformers_script
from planner.targets.context import EmitContext, Reading
from planner.targets.launchers import Launch
from planner.training import TrainingSetup


@dataclass(frozen=True, kw_only=True)
class Target:
    """One trainer. ``read(files(setup, context))`` gives ``settle(setup, context)`` back.

    ``settle`` fills in what the trainer does by itself; it and ``files`` raise UnsupportedError for what the trainer
    cannot be told. ``files`` and ``read`` work on name-to-text mappings. ``launch`` takes a settled setup.
    """

    file_name: str
    settle: Callable[[TrainingSetup, EmitContext], TrainingSetup]
    files: Callable[[TrainingSetup, EmitContext], dict[str, str]]
    read: Callable[..., Reading]
    launch: Callable[[TrainingSetup, EmitContext], Launch]


TARGETS: dict[str, Target] = {
    "llamafactory": Target(
        file_name=llamafactory.FILE_NAME,
        settle=llamafactory.settle,
        files=llamafactory.files,
        read=llamafactory.read,
        launch=llamafactory_launch.launch,
    ),
    "transformers": Target(
        file_name=transformers_script.FILE_NAME,
        settle=transformers_script.settle,
        files=transformers_script.files,
        read=transformers_script.read,
        launch=transformers_script.launch,
    ),
}
