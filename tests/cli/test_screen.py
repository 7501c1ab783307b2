"""The screens: readable at 80 columns, without colour, piped, and where the terminal has no Unicode."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from samples import GIB, a_configuration, a_machine, a_plan, a_spec, an_estimate

import planner
from planner.cli import io as screen_io
from planner.cli.show import batch_shape, plan_screen
from planner.cli.show_estimate import estimate_screen, machine_line, rows_screen, verdict_line
from planner.emit.write import Written
from planner.errors import InputError


def drawn(renderable: object, *, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(renderable)
    return out.getvalue()


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_main_screen_says_everything_at_80_columns() -> None:
    text = drawn(plan_screen(a_plan(), Written(folder=Path("plans/x"), files=("train.yaml",), unchanged=False)))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text
    assert "…" not in text
    for words in (
        "3 × 20GB card",
        "121.0 → 18.0",
        "flash-attention-2",
        "QLoRA",
        "3×7×3",
        "3,457",
        "plans/x",
        "63 are used",
    ):
        assert words in text, words
    assert "capability 8.0 or newer" in flat(text)


def test_unsafe_and_unfit_rows_are_labelled() -> None:
    lines = drawn(plan_screen(a_plan())).splitlines()
    by_name = {name: next(line for line in lines if name in line) for name in ("full zero3", "QLoRA", "LoRA  ")}
    assert by_name["full zero3"].rstrip().endswith("does not fit")
    assert by_name["QLoRA"].rstrip().endswith("not safe")
    assert by_name["LoRA  "].startswith("▸")


def test_nothing_fits_shows_the_nearest_miss_and_what_would_do() -> None:
    miss = a_configuration(estimate=an_estimate(scale=4))
    plan = a_plan(
        verdict="does_not_fit",
        chosen=None,
        nearest_miss=miss,
        configurations=(),
        remedies=("2 cards of 40 GB would do",),
    )
    text = drawn(plan_screen(plan))
    assert "Nothing fits; the nearest miss" in text
    assert "does not fit" in text
    assert "try: 2 cards of 40 GB would do" in text


def test_the_estimate_screen_shows_every_phase_and_meter() -> None:
    text = drawn(estimate_screen(a_configuration().setup, a_spec(), a_machine(), an_estimate()))
    assert max(len(line) for line in text.splitlines()) <= 80
    for words in ("▸ loss", "load", "allocated", "reserved", "device", "host", "disk", "assumed:", "warning:"):
        assert words in text, words


def test_the_verdict_line_tells_what_is_left_or_missing() -> None:
    assert "fits  needs" in verdict_line(an_estimate()).plain
    assert "to spare" in verdict_line(an_estimate()).plain
    assert "too much" in verdict_line(an_estimate(scale=4)).plain
    assert "no capacity is known" in verdict_line(an_estimate(capacity_bytes=None)).plain


def test_unknown_hardware_is_called_unknown() -> None:
    line = machine_line(a_machine(ram_bytes=None))
    assert "links unknown" in line
    assert "host RAM unknown" in line
    assert "links" not in machine_line(a_machine(count=1, ram_bytes=8 * GIB))


def test_batch_shape_counts_data_parallel_ranks_only() -> None:
    row = a_configuration(setup=a_configuration().setup.but(tensor_parallel=2))
    assert batch_shape(row, 8) == "3×7×4"


def test_rows_with_and_without_an_answer() -> None:
    text = drawn(rows_screen([(1, an_estimate()), (3, InputError("rows.jsonl line 3: model is missing"))]))
    assert "fits" in text
    assert "bad" in text
    assert "model is missing" in flat(text)


class _Stream(io.StringIO):
    encoding = "ascii"


def test_a_terminal_without_unicode_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    screen_io.screen(plan_screen(a_plan()))
    text = stream.getvalue()
    assert text.isascii()
    assert "121.0 -> 18.0" in text
    assert "WWWW" in text


def test_a_gone_reader_is_not_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    closed: list[object] = []
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(screen_io, "_forget_stdout", lambda: closed.append(True))
    screen_io.write_out("x")
    assert closed == [True]


@pytest.mark.parametrize(
    "command", [("--model", "7B", "--gpus", "3x20GB", "--json"), ("gpus",), ("models", "--json"), ("--help",)]
)
def test_stdout_that_is_gone_full_or_closed_has_its_own_ending(command: tuple[str, ...], tmp_path: Path) -> None:
    """Never 1, which says "does not fit", and never a traceback."""
    line = shlex.join((sys.executable, str(Path(planner.__file__).parents[1] / "cli.py"), *command))
    codes = {}
    for name, shell in (
        ("gone", f"{line} | true; exit ${{PIPESTATUS[0]}}"), ("full", f"{line} > /dev/full"), ("closed", f"{line} >&-")
    ):  # fmt: skip
        ended = subprocess.run(("bash", "-c", shell), cwd=tmp_path, capture_output=True, text=True, check=False)
        codes[name] = ended.returncode
        assert "Traceback" not in ended.stderr
        assert ended.stderr == ("" if name != "full" else _FULL)
    assert codes == {"gone": 0, "full": 2, "closed": 0}


_FULL = "error: the result cannot be written to stdout: no space left on device\n"
