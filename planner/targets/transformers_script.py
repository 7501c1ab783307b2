"""Plain transformers: a script around its Trainer, and ``train_args.json``, whose arguments are its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from planner.targets import script
from planner.targets.context import EmitContext, Reading
from planner.targets.launchers import Launch
from planner.targets.script import Script
from planner.training import TrainingSetup

SCRIPT = Script(
    id="transformers",
    name="the transformers script",
    file_name="train_args.json",
    modules=("transformers/train.py",),
    trains_in_fp32=False,
    check=lambda setup: None,
)


def settle(setup: TrainingSetup, context: EmitContext) -> TrainingSetup:
    """The setup as transformers' Trainer would run it."""
    return script.settle(SCRIPT, setup, context)


def files(setup: TrainingSetup, context: EmitContext) -> dict[str, str]:
    """Name to text of the folder's files."""
    return script.files(SCRIPT, setup, context)


def launch(setup: TrainingSetup, context: EmitContext) -> Launch:
    """How a settled setup is started."""
    return script.launch(setup, context)


def read(
    texts: Mapping[str, str], *, hidden_of: Callable[[str], int | None] | None = None, name: str = SCRIPT.file_name
) -> Reading:
    """The setup that the files state. Raises InputError for a file that is not one of ours."""
    return script.read(SCRIPT, texts, hidden_of=hidden_of, name=name)
