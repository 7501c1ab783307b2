"""The live screen, the plain lines, the report and its page."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from planner.cli.live import PlainLines
from planner.cli.show_run import duration, plain_line, report_screen, run_view, sparkline
from planner.run.page import charts, page, rows_of
from planner.run.records import Diagnosis, GpuUse, HostUse, Progress
from planner.run.report import points_of, report_of
from planner.svg import Level, Line, chart, thinned, ticks
from planner.units import GIB
from tests.run.states import attempt, running


def shown(renderable: Any, width: int = 80) -> str:
    console = Console(width=width, file=StringIO(), force_terminal=False)
    console.print(renderable)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_the_screen_says_it_all_in_80_columns() -> None:
    text = shown(run_view(running(), now=1000 + 4521))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for words in ("training · 1:15:21", "resumed from checkpoint-100", "412 of 1,200, 34%, 2:06:04 left", "0.6876",
                  "2,312 tokens/s", "predicted 2,346", "14.2 now, 15.6 peak, 15.1 predicted", "checkpoint-400",
                  "7.0 GiB peak, of 12.0 GiB", "micro_batch_size 4 becomes 2"):  # fmt: skip
        assert words in " ".join(text.split()), words
    assert len([line for line in lines if line.startswith("gpu ")]) == 3


def test_what_is_not_known_is_said() -> None:
    bare = running(status="preparing", gpus=(), progress=Progress(), host=HostUse(), healed=(), checkpoint=None)
    text = shown(run_view(bare, now=1003.0))
    for words in ("not begun", "none logged yet", "not known yet", "none is seen here", "not measured yet"):
        assert words in text
    silent = GpuUse(index=0, name=None, now_bytes=None, peak_bytes=None, before_bytes=None, capacity_bytes=None)
    assert "? now, ? peak" in shown(run_view(running(gpus=(silent,)), now=1003.0))


@given(st.lists(st.floats(-1e6, 1e6), max_size=200))
def test_a_sparkline_is_as_long_as_its_values(values: list[float]) -> None:
    assert len(sparkline(tuple(values), cells=24)) == min(24, len(values))


@pytest.mark.parametrize(("seconds", "words"), [(3, "0:03"), (3723, "1:02:03"), (90000, "1 d 1:00:00"), (None, "?")])
def test_durations(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


def test_plain_lines_say_what_is_new_once() -> None:
    said: list[str] = []
    show = PlainLines(said.append)
    for _ in range(3):
        show(running())
    assert len(said) == 2
    assert said[0].startswith("healed: GPU 1")
    assert "step 412 of 1200, loss 0.6876, 2,312 tokens/s" in said[1]
    assert plain_line(running(status="failed")).startswith("failed")


SAMPLES = [
    {"at": 1000.0 + second, "attempt": 1 + second // 30, "step": second, "loss": 2.0 / (1 + second),
     "gpus": {"0": GIB * 2, "1": None}, "host_bytes": GIB}
    for second in range(90)
]  # fmt: skip


def report() -> dict[str, Any]:
    ended = running(status="finished", exit_code=0, ended_at=6000.0, message="the training <has> finished")
    return report_of(ended, {"method": "qlora"}, points_of([*SAMPLES, {"odd": 1}], 1000.0))


def test_the_report_compares_what_was_promised_with_what_came() -> None:
    found = report()
    assert found["measured"]["device_bytes"] == int(16.6 * GIB) - GIB // 4
    assert found["measured"]["attempts"] == {"rehearsal": int(1.75 * GIB), "training": int(1.75 * GIB)}
    assert found["error"]["tokens_per_s"] == pytest.approx(2312.4 / 2346.0 - 1, abs=1e-4)
    assert found["error"]["allocated_bytes"] is None
    assert found["seconds"] == 5000.0
    rows = {row[0]: row[1:] for row in rows_of(found)}
    assert rows["allocated by torch, a GPU"] == ("13.00 GiB", "not measured", "")
    text = " ".join(shown(report_screen(found, "report.html"), width=120).split())
    assert "finished: the training <has> finished" in text
    assert "the longest batch" in text
    assert "micro_batch_size 4 becomes 2" in text
    assert "checkpoint-100;" in text


def test_what_a_log_says_in_brackets_stays_on_the_screen() -> None:
    cause = "the engine ended with status 1: [rank1]: RuntimeError: [/bold] of :smile:"
    broken = attempt(1, ended_at=1900.0, exit_status=1, diagnosis=Diagnosis(kind="unknown", cause=cause, next_step=""))
    found = report_of(running(status="failed", message=cause, attempts=(broken,)), {}, [])
    for text in (shown(report_screen(found, None), width=200), shown(run_view(running(message=cause)), width=200)):
        assert cause in text


def test_on_the_cpu_nothing_is_compared_with_a_gpu() -> None:
    ended = running(status="finished", exit_code=0, ended_at=6000.0, on_cpu=True, gpus=())
    found = report_of(ended, {"method": "full"}, [])
    assert set(found["error"].values()) == {None}
    assert {row[1] for row in rows_of(found)} == {"not for a CPU"}
    text = shown(run_view(ended, now=6000.0))
    assert "not used: this run is on the CPU" in text
    assert "predicted" not in text


def test_the_page_is_whole_and_escapes_what_it_shows() -> None:
    text = page(report(), points_of(SAMPLES, 1000.0))
    assert "the training &lt;has&gt; finished" in text
    assert text.count("<svg") == 3
    for part in text.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>")
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_loss_of_the_longest_batch_is_not_plotted() -> None:
    """Its samples are made up: on the page loss begins with the training."""
    samples = [{"at": 1000.0 + at, "attempt": 1 if at < 60 else 2, "loss": 99.0 if at < 60 else 2.0 - at / 1000}
               for at in range(0, 600, 10)]  # fmt: skip
    points = points_of(samples, 1000.0)
    drawn = dict(charts(report(), points))["Loss"]
    assert len(drawn.partition('points="')[2].partition('"')[0].split()) == 54
    assert ">99<" not in drawn


def test_a_page_without_samples_has_no_plots() -> None:
    assert "<svg" not in page(report(), [])


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e6, 1e6)), min_size=1, max_size=50), st.floats(-1e6, 1e6))
def test_a_chart_is_xml_whatever_the_numbers(points: list[tuple[float, float]], level: float) -> None:
    text = chart([Line(name="<a&b>", points=sorted(points))], [Level(name='"x"', y=level)], y_unit="GiB", x_unit="s")
    ElementTree.fromstring(text)


def test_thinning_keeps_the_peaks() -> None:
    points = [(float(n), 100.0 if n == 777 else 1.0) for n in range(10_000)]
    kept = thinned(points, most=100)
    assert len(kept) <= 100
    assert (777.0, 100.0) in kept


def test_ticks_are_round() -> None:
    assert ticks(0.0, 23.3) == [0.0, 5.0, 10.0, 15.0, 20.0]
