"""plan.json beside a trainer's files: what of a setup no trainer has an argument for.

The hardware, the versions priced for and whether batches carry padding describe the surroundings of a run, not
its arguments; the trainer's files stay the authority on everything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from planner.errors import InputError

FILE_NAME = "plan.json"
FIELDS = ("gpus", "versions", "padded")


def sidecar_fields(files: Mapping[str, str]) -> dict[str, Any]:
    """The surroundings stated by ``plan.json`` among ``files``; empty where there is none.

    A plan's folder without a file that says how the GPUs work together is a run on one of them.
    """
    if FILE_NAME not in files:
        return {}
    try:
        setup = (json.loads(files[FILE_NAME]).get("chosen") or {}).get("setup", {})
        fields = {field: setup[field] for field in FIELDS if setup.get(field) is not None}
        return {"parallelism": "none"} | fields
    except (ValueError, AttributeError):
        raise InputError(f"{FILE_NAME}: is not the JSON of a plan") from None
