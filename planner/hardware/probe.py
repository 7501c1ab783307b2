"""The machine that is here (an edge): asks the driver and the host, and leaves the reading to ``observed``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from planner.hardware.machine import Machine

ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


def probe(folder: Path | None = None) -> Machine:
    """What is here, as far as it tells: a Machine whose unknowns are None and named in ``warnings``.

    ``folder`` is where files will be written (its free disk counts); None is the current one. Without a
    driver there are no GPUs and a warning says so.
    """
    from planner.hardware.observed import machine_from_answer

    return machine_from_answer(raw_answer(folder))


def raw_answer(folder: Path | None = None) -> dict[str, Any]:
    """The same as plain JSON values, nothing interpreted: what a bug report should carry."""
    from planner.hardware.ask_host import ask_host, ask_software
    from planner.hardware.ask_nvml import ask_nvml

    return {
        "nvml": ask_nvml(),
        "host": ask_host(folder),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "software": ask_software(),
    }
