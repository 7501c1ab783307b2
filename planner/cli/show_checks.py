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
    from rich.table import Table
    from rich.text import Text

    title = Text.assemble(("Preflight", "bold"), f": {counted(checks)}")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.title, table.title_justify, table.title_style = title, "left", ""
    table.add_column("", width=1)
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    for check in checks:
        sign, style = _SIGNS[check.status]
        text = Text.assemble(check.sentence, (f"\n▸ {check.remedy}" if check.remedy else "", "dim"))
        table.add_row(Text(sign, style=style), Text(check.name), text)
    return table


def counted(checks: Sequence[Check]) -> str:
    """``"2 failed, 1 warned, 12 passed"``: the worst first, without what there is none of."""
    counts = {status: sum(1 for check in checks if check.status == status) for status in ("failed", "warned", "passed")}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)
