"""docs/screen.svg: the real screen of the main job, as rich draws it. Run by `make screenshot`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console

TARGET = Path(__file__).resolve().parents[1] / "docs" / "screen.svg"
COMMAND = "plan --gpus 3x20GB --model 7B"


def main() -> None:
    import planner.cli.io as screen_io
    from planner.cli.app import run

    recorder = Console(record=True, width=88, highlight=False, force_terminal=True, file=io.StringIO())
    screen_io._console = lambda stream: recorder  # the one place where screens get their console
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        code = run(COMMAND.split()[1:])
    if code != 0:
        sys.exit(f"error: `{COMMAND}` ended with {code}")
    TARGET.parent.mkdir(exist_ok=True)
    recorder.save_svg(str(TARGET), title=COMMAND, unique_id="plan")
    print(os.path.relpath(TARGET))


if __name__ == "__main__":
    main()
