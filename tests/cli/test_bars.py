"""The stacked bar: cells sum to the width, parts never vanish, the legend adds up to the card."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from samples import GIB, an_estimate

from planner.cli.bars import cells_of, segments_of, stacked_bar


@given(st.lists(st.integers(0, 80 * GIB), min_size=1, max_size=12), st.integers(20, 120))
def test_cells_fill_the_width_and_no_part_vanishes(sizes: list[int], width: int) -> None:
    cells = cells_of(sizes, width)
    assert sum(cells) == (width if sum(sizes) else 0)
    assert all((count > 0) == (size > 0) for size, count in zip(sizes, cells, strict=True))


def test_cells_follow_the_sizes() -> None:
    assert cells_of([10, 30, 0, 60], 100) == [10, 30, 0, 60]


def test_segments_add_up_to_the_card() -> None:
    answer = an_estimate()
    sizes = {segment.part: segment.size_bytes for segment in segments_of(answer)}
    assert sum(sizes.values()) == answer.capacity_bytes
    assert sizes["context"] == answer.context_bytes
    assert sizes["margin"] == answer.required_bytes - answer.allocated_bytes - answer.context_bytes


def test_required_below_allocated_with_context_shows_no_margin() -> None:
    answer = an_estimate()
    tight = an_estimate(required_bytes=answer.allocated_bytes)
    parts = {segment.part for segment in segments_of(tight)}
    assert "margin" not in parts
    assert sum(segment.size_bytes for segment in segments_of(tight)) == tight.capacity_bytes


def _drawn(answer: object, width: int = 70) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(stacked_bar(answer, width=width))  # type: ignore[arg-type]
    return out.getvalue()


def test_a_card_that_is_too_small_is_marked_where_it_ends() -> None:
    answer = an_estimate(scale=4)
    assert answer.capacity_bytes is not None
    bar, mark = _drawn(answer).splitlines()[:2]
    length = sum(segment.size_bytes for segment in segments_of(answer))
    assert bar.index("|") == mark.index("^") == answer.capacity_bytes * 70 // length
    assert "the card ends here" in mark


@pytest.mark.parametrize("capacity_bytes", [20 * GIB, None])
def test_the_legend_names_every_part_in_full(capacity_bytes: int | None) -> None:
    text = _drawn(an_estimate(capacity_bytes=capacity_bytes))
    for part in ("weights", "gradients", "optimizer", "activations", "logits", "temporaries", "context", "margin"):
        assert part in text
    assert "…" not in text
    assert "5.00" in text
    assert ("free" in text) == (capacity_bytes is not None)
