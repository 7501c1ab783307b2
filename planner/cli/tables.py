"""How tables look on every screen: tight, no frame, headings over a rule, nothing cut off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def plain_table(title: str, *, expand: bool = False) -> Table:
    """An empty table with a bold heading line."""
    from rich.box import Box
    from rich.table import Table

    rule_only = Box("    \n    \n ── \n    \n    \n    \n    \n    \n")
    return Table(
        box=rule_only,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        collapse_padding=True,
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        expand=expand,
    )


def notes(label: str, sentences: Iterable[str], *, style: str = "dim") -> list[RenderableType]:
    """Sentences under a label, hanging so that long ones stay readable."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    for sentence in sentences:
        grid.add_row(Text(f"{label}:", style=style, no_wrap=True), Text(sentence, overflow="fold"))
    return [Text(), grid] if grid.row_count else []
