"""Trainers that a plan can be written for: one module each, all of them in ``TARGETS``."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.targets.context import EmitContext, Reading
    from planner.targets.launchers import Launch
    from planner.training import TrainingSetup


@dataclass(frozen=True, kw_only=True)
class Target:
    """One trainer: ``module`` with ``settle``, ``files`` and ``launch``, ``reader`` with ``read``; loaded when used.

    ``read(files(setup, context))`` gives ``settle(setup, context)`` back.
    """

    file_name: str
    module: str
    reader: str

    def settle(self, setup: TrainingSetup, context: EmitContext) -> TrainingSetup:
        """The setup as the trainer would run it. Raises UnsupportedError for what it cannot be told."""
        settled: TrainingSetup = self._call(self.module, "settle", setup, context)
        return settled

    def files(self, setup: TrainingSetup, context: EmitContext) -> dict[str, str]:
        """Name to text of the trainer's files. Raises UnsupportedError for what it cannot be told."""
        texts: dict[str, str] = self._call(self.module, "files", setup, context)
        return texts

    def launch(self, setup: TrainingSetup, context: EmitContext) -> Launch:
        """How a settled setup is started."""
        launch: Launch = self._call(self.module, "launch", setup, context)
        return launch

    def read(
        self,
        texts: Mapping[str, str],
        *,
        hidden_of: Callable[[str], int | None] | None = None,
        name: str | None = None,
    ) -> Reading:
        """The setup that files (name to text) state; ``hidden_of`` gives a model's width. Raises InputError."""
        reading: Reading = self._call(self.reader, "read", texts, hidden_of=hidden_of, name=name or self.file_name)
        return reading

    def _call(self, module: str, function: str, /, *given: Any, **named: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*given, **named)


TARGETS: dict[str, Target] = {
    "llamafactory": Target(
        file_name="train.yaml",
        module="planner.targets.llamafactory",
        reader="planner.targets.llamafactory_read",
    ),
    "megatron": Target(
        file_name="train.yaml",
        module="planner.targets.megatron",
        reader="planner.targets.megatron_read",
    ),
    "transformers": Target(
        file_name="train_args.json",
        module="planner.targets.transformers_script",
        reader="planner.targets.transformers_script",
    ),
    "trl": Target(
        file_name="train.yaml",
        module="planner.targets.trl",
        reader="planner.targets.trl_read",
    ),
    "embedded": Target(
        file_name="train.json",
        module="planner.targets.embedded",
        reader="planner.targets.embedded",
    ),
}
