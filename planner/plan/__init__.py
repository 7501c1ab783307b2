"""Request in, Plan out. The room itself can be called: ``planner.plan(Request(model="7B"), machine)``."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableRoom(ModuleType):
    """The contract names this room and the function alike; calling the one is calling the other."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        from planner.api import plan

        return plan(*arguments, **named)


sys.modules[__name__].__class__ = _CallableRoom
