"""The distribution of token lengths in a data set, and what it says about the length to train with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planner.data.mixing import Mixing
from planner.data.rows import MOST_ROWS, Sampled, sampled
from planner.data.source import DataSource, data_source
from planner.data.tokens import Counter, counter_for
from planner.model.spec import ModelSpec

# What a chat template adds: at most this many tokens for each message and, with its default system prompt, each sample.
# Source: LLaMA-Factory 0.9.5, src/llamafactory/data/template.py (qwen: 5 a message and 20 of system prompt; llama3: 6).
TOKENS_PER_MESSAGE = 8
TOKENS_PER_SAMPLE = 32
LENGTH_MULTIPLE = 8  # collators pad to a multiple of eight
SHARES = (0.5, 0.9, 0.95, 0.99, 1.0)
PACKING_BELOW = 0.5  # packing pays where samples fill less than this part of the length on average
ROLES = ("prompt", "query", "response", "system", "history")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One data set of several: its name, its file, its samples where they are counted, its share of an epoch."""

    name: str
    path: str
    samples: int | None
    share: float


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens per sample. ``lengths`` are sorted, of the ``len(lengths)`` samples that were read of ``samples``.

    Of a ``mixture`` they are drawn in its shares, each set by its own distribution.
    ``whole``: every sample was read. ``exact``: with the model's own tokenizer, ``counted_by``; the marks of the chat
    template are then an upper bound.
    """

    path: str
    samples: int | None
    whole: bool
    exact: bool
    counted_by: str
    lengths: tuple[int, ...]
    mixture: tuple[Part, ...] = ()

    def quantile(self, share: float) -> int:
        """The length that this share of samples does not exceed."""
        place = max(0, -(-int(share * 10_000) * len(self.lengths) // 10_000) - 1)
        return self.lengths[min(place, len(self.lengths) - 1)]

    @property
    def mean(self) -> float:
        """Tokens of an average sample."""
        return sum(self.lengths) / len(self.lengths)

    def share_cut(self, seq_len: int) -> float:
        """Part of the samples that ``seq_len`` would cut."""
        return sum(length > seq_len for length in self.lengths) / len(self.lengths)

    @property
    def recommended(self) -> int:
        """The 99th percentile, rounded up to a multiple of eight."""
        return padded(self.quantile(0.99))

    @property
    def longest(self) -> int | None:
        """The length that cuts nothing; None unless every sample was counted by the model's own tokenizer."""
        return padded(self.lengths[-1]) if self.whole and self.exact else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready figures; ``quantiles`` maps a share to tokens."""
        return {
            "path": self.path,
            "samples": self.samples,
            "measured_samples": len(self.lengths),
            "counted_by": self.counted_by,
            "exact": self.exact,
            "mean_tokens": round(self.mean, 1),
            "quantiles": {f"{share:g}": self.quantile(share) for share in SHARES},
            "recommended_seq_len": self.recommended,
            **({"mixture": [asdict(part) for part in self.mixture]} if self.mixture else {}),
        }


def padded(tokens: int) -> int:
    """Rounded up to what a collator pads to."""
    return max(LENGTH_MULTIPLE, -(-tokens // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)


def measure(path: str, stage: str, spec: ModelSpec, mix: Mixing | None = None) -> Lengths | None:
    """The lengths of the training files that ``--data`` names, several mixed by ``mix``; None where reading one needs
    pyarrow, which is not there.

    Raises InputError as the registration of the data does, and for rows that cannot be read.
    """
    source = data_source(path, stage, mix)
    counter = counter_for(spec)
    parts = [_measured(source, name, counter) for name in source.names]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        return None
    return found[0] if source.mixing is None else mixed(source, found, source.mixing)


def _measured(source: DataSource, name: str, counter: Counter) -> Lengths | None:
    entry: Mapping[str, Any] = source.info[name]
    samples = source.samples if source.mixing is None else source.counts[source.names.index(name)]
    found = sampled(Path(entry["file_name"]), samples)
    shown = source.shown if source.mixing is None else entry["file_name"]
    return None if found is None else count(found, entry, counter, shown=shown)


def mixed(source: DataSource, found: Sequence[Lengths], mix: Mixing) -> Lengths:
    """One distribution of several: each set gives as many of its quantiles as its share of an epoch, the longest
    always. Sets that nobody counted weigh by the size of their files.
    """
    known = [each.samples for each in found if each.samples is not None]
    sizes = known if len(known) == len(found) else [Path(each.path).stat().st_size for each in found]
    shares = mix.shares(sizes)
    whole = mix.strategy == "concat" and all(each.whole for each in found)
    drawn = [each.lengths if whole else _drawn(each, share) for each, share in zip(found, shares, strict=True)]
    return Lengths(
        path=source.shown,
        samples=source.samples,
        whole=all(each.whole for each in found),
        exact=all(each.exact for each in found),
        counted_by=found[0].counted_by,
        lengths=tuple(sorted(itertools.chain.from_iterable(drawn))),
        mixture=tuple(
            Part(name=name, path=each.path, samples=each.samples, share=round(share, 4))
            for name, each, share in zip(source.names, found, shares, strict=True)
        ),
    )


def _drawn(found: Lengths, share: float) -> tuple[int, ...]:
    """``share`` of MOST_ROWS quantiles, evenly spaced and up to the longest."""
    number, have = max(1, round(share * MOST_ROWS)), len(found.lengths)
    return tuple(found.lengths[-(-(place + 1) * have // number) - 1] for place in range(number))


def count(found: Sampled, entry: Mapping[str, Any], counter: Counter, *, shown: str) -> Lengths | None:
    """The lengths of rows read by a registration; None where no row holds text."""
    rows = itertools.islice(found.rows, 0, MOST_ROWS * found.step, found.step)
    lengths = sorted(tokens for row in rows for tokens in tokens_of(row, entry, counter) if tokens)
    if not lengths:
        return None
    return Lengths(
        path=shown,
        samples=found.total,
        whole=found.whole,
        exact=counter.exact,
        counted_by=counter.name,
        lengths=tuple(lengths),
    )


def tokens_of(row: Mapping[str, Any], entry: Mapping[str, Any], counter: Counter) -> Iterator[int]:
    """Tokens of each sequence that a row becomes: one, or the chosen and the rejected answer of a pair."""
    columns: Mapping[str, str] = entry["columns"]
    shared = [*_messages(row, columns, entry), *(row.get(columns[role]) for role in ROLES if role in columns)]
    answers = [[row.get(columns[side])] for side in ("chosen", "rejected") if side in columns]
    for answer in answers or [[]]:
        parts = [*texts_in(shared), *texts_in(answer)]
        marks = TOKENS_PER_SAMPLE + TOKENS_PER_MESSAGE * len(parts)
        yield sum(map(counter.count, parts)) + marks if parts else 0


def _messages(row: Mapping[str, Any], columns: Mapping[str, str], entry: Mapping[str, Any]) -> list[Any]:
    """The contents of a dialogue's turns."""
    turns = row.get(columns["messages"]) if "messages" in columns else None
    key = entry.get("tags", {}).get("content_tag", "value")
    return [turn.get(key) for turn in turns or () if isinstance(turn, Mapping)]


def texts_in(values: Iterable[Any]) -> Iterator[str]:
    """Every text in nested lists and mappings, empty ones left out."""
    for value in values:
        if isinstance(value, str):
            if value:
                yield value
        elif isinstance(value, Mapping):
            yield from texts_in(value.values())
        elif isinstance(value, list | tuple):
            yield from texts_in(value)


def advice(found: Lengths, seq_len: int, *, packing: bool) -> tuple[str, ...]:
    """What the lengths say about ``seq_len``: sentences for the reader."""
    cut = found.share_cut(seq_len)
    said = []
    if cut:
        said.append(f"{cut:.1%} of the samples are longer than {seq_len} tokens and would be cut")
    elif found.recommended < seq_len // 2:
        said.append(
            f"99 % of the samples have at most {found.recommended} tokens: --seq-len {found.recommended} is enough"
        )
    if not packing and found.mean < PACKING_BELOW * min(seq_len, found.lengths[-1]):
        said.append(f"an average sample has {found.mean:.0f} tokens: --packing would fill the length with several")
    return tuple(said)
