"""The preflight list on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from planner.run.records import Check

if TYPE_CHECKING:
    from rich.table import Table

_SIGNS = {"passed": ("✓", "green"), "warned": ("!", "yellow"), "failed": ("✗", "bold red")}


def checks_table(checks: Sequence[Check]) -> Table:
    """Every check with its outcome; what helps stands under what did not pass."""
    from rich.text import Text

    from planner.cli.tables import plain_table

    table = plain_table("Preflight")
    table.add_column("", width=1)
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    for check in checks:
        sign, style = _SIGNS[check.status]
        remedy = f"\n{check.remedy}" if check.remedy and check.status != "passed" else ""
        table.add_row(Text(sign, style=style), check.name, Text.assemble(check.sentence, (remedy, "dim")))
    return table
