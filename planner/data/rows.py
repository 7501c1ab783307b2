"""EDGE: the samples of a data file, all of them or an even choice, one at a time."""

from __future__ import annotations

import csv
import importlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planner.errors import InputError

MOST_ROWS = 20_000
WHOLE_BYTES = 64 << 20  # a text file up to this is read from end to end
_JSON_CHUNK = 1 << 20

Row = dict[str, Any]


@dataclass(frozen=True)
class Sampled:
    """``rows`` of a file; ``total`` how many it has; ``whole``: all of them are to be read, and ``total`` is counted.

    ``step``: every how manieth row to take for MOST_ROWS of them spread over the file.
    """

    rows: Iterator[Row]
    total: int | None
    whole: bool
    step: int = 1


def sampled(path: Path, samples: int | None) -> Sampled | None:
    """The rows of ``path``, all where it is small, else up to MOST_ROWS spread over it; ``samples`` where counted.

    None where reading them needs a library that is not installed. Raises InputError for a file that breaks off.
    """
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".arrow"):
        return _columnar(path, suffix)
    if suffix == ".json" and _is_array(path):
        rows = _array(path)
    elif suffix == ".csv":
        rows = _csv(path)
    else:
        lines = _text_lines if suffix == ".txt" else _json_lines
        if path.stat().st_size > WHOLE_BYTES:
            return Sampled(lines(path, spread=True), samples, whole=False)
        rows = lines(path)
    return Sampled(rows, samples, samples is not None and samples <= MOST_ROWS, -(-(samples or 1) // MOST_ROWS))


def _is_array(path: Path) -> bool:
    with path.open(encoding="utf-8-sig") as file:
        return file.read(4096).lstrip().startswith("[")


def _json_lines(path: Path, *, spread: bool = False) -> Iterator[Row]:
    for text in _lines(path, spread):
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(f"--data {str(path)!r}: a line is not JSON: {text[:60]!r}") from None
        if isinstance(row, dict):
            yield row


def _text_lines(path: Path, *, spread: bool = False) -> Iterator[Row]:
    for text in _lines(path, spread):
        yield {"text": text}


def _lines(path: Path, spread: bool) -> Iterator[str]:
    """Lines that are not empty. Spread: those that follow evenly spaced places, a random step into each stretch.

    A line is met with the chance that its predecessor's length gives it, which says nothing about its own.
    """
    with path.open("rb") as file:
        if not spread:
            for line in file:
                if line.strip():
                    yield line.decode("utf-8-sig").strip()
            return
        stretch = path.stat().st_size // MOST_ROWS
        chance = random.Random(0)  # noqa: S311 - a sample, the same every time
        for number in range(MOST_ROWS):
            file.seek(number * stretch + chance.randrange(max(1, stretch)))
            file.readline()
            line = file.readline()
            if line.strip():
                yield line.decode("utf-8").strip()


def _array(path: Path) -> Iterator[Row]:
    """Objects of one JSON array, read in pieces."""
    decoder, text = json.JSONDecoder(), ""
    with path.open(encoding="utf-8-sig") as file:
        text = file.read(_JSON_CHUNK).lstrip()[1:]
        while True:
            text = text.lstrip().removeprefix(",").lstrip()
            if text.startswith("]"):
                return
            try:
                row, end = decoder.raw_decode(text)
            except ValueError:
                more = file.read(_JSON_CHUNK)
                if not more:
                    raise InputError(f"--data {str(path)!r} is not JSON: the array breaks off") from None
                text += more
                continue
            text = text[end:]
            if isinstance(row, dict):
                yield row


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _columnar(path: Path, suffix: str) -> Sampled | None:
    """Parquet by row groups spread over the file, arrow by batches; None without pyarrow."""
    try:
        return _parquet(path) if suffix == ".parquet" else _arrow(path)
    except ImportError:
        return None
    except (ValueError, OSError) as problem:
        raise InputError(f"--data {str(path)!r} cannot be read: {problem}") from None


def _parquet(path: Path) -> Sampled:
    file = importlib.import_module("pyarrow.parquet").ParquetFile(path)
    total, groups = file.metadata.num_rows, file.num_row_groups
    each = -(-MOST_ROWS // max(1, groups))

    def rows() -> Iterator[Row]:
        for group in range(groups):
            for number, batch in enumerate(file.iter_batches(batch_size=256, row_groups=[group])):
                if number * 256 >= each and total > MOST_ROWS:
                    break
                yield from batch.to_pylist()

    return Sampled(rows(), total, whole=total <= MOST_ROWS)


def _arrow(path: Path) -> Sampled:
    ipc = importlib.import_module("pyarrow.ipc")

    def rows() -> Iterator[Row]:
        with path.open("rb") as file:
            try:
                batches: Any = ipc.open_stream(file)
            except ValueError:
                file.seek(0)
                whole = ipc.open_file(file)
                batches = (whole.get_batch(number) for number in range(whole.num_record_batches))
            for batch in batches:
                yield from batch.to_pylist()

    return Sampled(rows(), None, whole=False)
