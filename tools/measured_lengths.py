"""Lengths of consecutive micro batches, for rows whose source says how long the samples of its data are.

What the source says are mean and standard deviation; the samples are drawn from the lognormal distribution that has
both, always with the same seed. Other seeds move the reserved memory by a tenth with one sequence a batch and by up to
a third with four: what the cache ends up with depends on the order.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

from statements import Row

FUDAN_NEWS = (3234.4, 2547.5)  # tokens of Qwen's tokenizer; ms-swift's Benchmark.md
LEAST = 91
MICRO_BATCHES = 32


def lengths_of(row: Row) -> tuple[int, ...]:
    """The lengths of a row's micro batches; empty where they are all alike, or nothing is known.

    ms-swift's benchmark of December 2023 cuts samples at ``max_length`` (``truncation_left`` in its run_single.py);
    from January 2024 on the script leaves the default, which drops them (argument.py, ``truncation_strategy``).
    """
    name = row["id"]
    if name.startswith("swift-bench-"):
        return drawn(*FUDAN_NEWS, row["micro_batch"], row["seq_len"], cut=False)
    if name.startswith("added-swift23-"):
        return drawn(*FUDAN_NEWS, row["micro_batch"], row["seq_len"], cut=True)
    return ()


@lru_cache(maxsize=64)
def drawn(mean: float, deviation: float, sequences: int, longest: int, *, cut: bool) -> tuple[int, ...]:
    """Each micro batch's longest of ``sequences`` samples; those above ``longest`` are cut or dropped.

    The last one is ``longest``: a run sees it at some point, and others before it.
    """
    spread = math.sqrt(math.log(1 + (deviation / mean) ** 2))
    centre = math.log(mean) - spread**2 / 2
    source = random.Random(0)  # noqa: S311
    found: list[int] = []
    while len(found) < (MICRO_BATCHES - 1) * sequences:
        length = max(LEAST, round(source.lognormvariate(centre, spread)))
        if cut or length <= longest:
            found.append(min(length, longest))
    batches = [max(found[start : start + sequences]) for start in range(0, len(found), sequences)]
    return (*batches, longest)
