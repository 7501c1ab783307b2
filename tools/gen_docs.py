"""docs/cli.md from the table of flags that the commands are built from. Run by `make docs`; a test checks for drift."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "cli.md"

OPENING = """# The commands

<!-- Written by `make docs` from the commands themselves; edit planner/cli instead. -->

`plan` alone is the main job; the other verbs are its companions. Every command takes `--json` (one document on stdout
and nothing else there) and `--help`. The result goes to stdout; warnings and errors go to stderr.

| exit code | means |
| --- | --- |
| 0 | done, and it fits |
| 1 | does not fit, or no plan fits |
| 2 | bad input: one sentence on stderr says what, where, and the nearest valid choice |
| 3 | a bug of ours; `VRAMPLAN_DEBUG=1` shows the traceback |
| 4 | the job that `plan run` started has failed |
| 5 | uncertain: it may fit |
| 6 | preflight failed: nothing was started |
| 130 | interrupted |

So `plan ... && train` is a guard. `plan estimate --from` returns the worst of its rows: 2, then 1, then 5, then 0.
"""


def page() -> str:
    from typer.main import get_command

    from planner.cli.app import EXAMPLES, build_app

    group = get_command(build_app())
    commands = {"plan": group} | {f"plan {name}": command for name, command in group.commands.items()}
    sections = [section(name, command, EXAMPLES[name.split()[-1]]) for name, command in commands.items()]
    return OPENING + "".join(sections)


def section(name: str, command: Any, example: str) -> str:
    """One command: its example, its words, its flags by panel."""
    from planner.cli.help import panel_of, spelling

    paragraphs = [textwrap.fill(each, 120) for each in (command.help or "").split("\n\n")]
    lines = [f"\n## {name}\n", f"```console\n$ {example}\n```\n", "\n\n".join(paragraphs)]
    found: dict[str, list[str]] = {}
    for each in command.params:
        found.setdefault(panel_of(each), []).append(f"| `{spelling(each)}` | {cell(each.help or '')} |")
    for heading, rows in found.items():
        lines += ["", f"| {heading} | |", "| --- | --- |", *rows]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    if "--check" in sys.argv:
        sys.exit(0 if TARGET.read_text(encoding="utf-8") == page() else "docs/cli.md is not current: run `make docs`")
    TARGET.write_text(page(), encoding="utf-8")
    print(TARGET.relative_to(ROOT))


if __name__ == "__main__":
    main()
