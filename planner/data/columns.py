"""The columns of a data file, and how LLaMA-Factory is told what they mean (its data/README.md)."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.errors import InputError
from planner.training import PAIR_STAGES

# Names in use for each meaning, the most telling first.
PROMPTS = ("instruction", "prompt", "question", "problem", "query", "input")
ANSWERS = ("output", "response", "completion", "answer", "target", "solution")
TEXTS = ("text", "content", "document")
MESSAGES = ("messages", "conversations", "conversation")
KTO_TAGS = ("kto_tag", "label", "desirable")
SYSTEMS = ("system", "system_prompt")
_OPENAI_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
_WHOLE_FILE_BYTES = 64 << 20
_TOO_DEEP = "its lists or objects lie too deep in each other"
_COUNTED_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Table:
    """Column names in file order; ``first`` the first row where it was read, ``inner`` the names inside a column."""

    columns: tuple[str, ...]
    samples: int | None
    first: dict[str, Any] = field(default_factory=dict)
    inner: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def pick(self, names: tuple[str, ...]) -> str | None:
        """The first of ``names`` that is a column."""
        return next((name for name in names if name in self.columns), None)


def describe_table(path: Path) -> Table:
    """Columns and row count of a data file by its ending. Raises InputError where it cannot be read."""
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".arrow": _arrow, ".txt": _txt}
    try:
        return readers[path.suffix.lower()](path)
    except UnicodeDecodeError:
        raise InputError(f"--data {str(path)!r} is not text in UTF-8") from None
    except OSError as problem:
        raise InputError(f"--data {str(path)!r} cannot be read: {problem.strerror or problem}") from None


def _object(row: Any, path: Path) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise InputError(f"--data {str(path)!r}: a sample is {type(row).__name__}, not an object with named columns")
    return row


def _jsonl(path: Path) -> Table:
    with path.open(encoding="utf-8-sig") as file:
        line = next((line for line in file if line.strip()), None)
        if line is None:
            raise InputError(f"--data {str(path)!r} is empty")
        first = _parse(line, path)
        count = 1 + sum(1 for line in file if line.strip()) if path.stat().st_size <= _COUNTED_BYTES else None
    return Table(columns=tuple(_object(first, path)), samples=count, first=first)


def _json(path: Path) -> Table:
    if path.stat().st_size > _WHOLE_FILE_BYTES:
        return _json_head(path)
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return _jsonl(path)
    rows = _parse(text, path)
    if not rows:
        raise InputError(f"--data {str(path)!r} is empty")
    return Table(columns=tuple(_object(rows[0], path)), samples=len(rows), first=rows[0])


def _json_head(path: Path) -> Table:
    """The first sample of a large array, its samples uncounted."""
    with path.open(encoding="utf-8-sig") as file:
        text = file.read(1 << 22).lstrip()
    if not text.startswith("["):
        return _jsonl(path)
    try:
        first, _ = json.JSONDecoder().raw_decode(text[1:].lstrip())
    except ValueError as problem:
        raise InputError(f"--data {str(path)!r} is not JSON: {problem}") from None
    except RecursionError:
        raise InputError(f"--data {str(path)!r} is not read: {_TOO_DEEP}") from None
    return Table(columns=tuple(_object(first, path)), samples=None, first=first)


def _parse(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as problem:
        raise InputError(f"--data {str(path)!r} is not JSON: {problem}") from None
    except RecursionError:
        raise InputError(f"--data {str(path)!r} is not read: {_TOO_DEEP}") from None


def _csv(path: Path) -> Table:
    import csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        columns = tuple(rows.fieldnames or ())
        first = next(rows, None)
        if first is None:
            raise InputError(f"--data {str(path)!r} has no rows")
        count = 1 + sum(1 for _ in rows) if path.stat().st_size <= _COUNTED_BYTES else None
    return Table(columns=columns, samples=count, first=dict(first))


def _txt(path: Path) -> Table:
    with path.open(encoding="utf-8-sig") as file:
        return Table(columns=("text",), samples=sum(1 for _ in file))


def _parquet(path: Path) -> Table:
    from planner.data.parquet import read_footer

    footer = read_footer(path)
    return Table(columns=tuple(footer.columns), samples=footer.rows, inner=footer.columns)


def _arrow(path: Path) -> Table:
    try:
        ipc = importlib.import_module("pyarrow.ipc")
    except ImportError:
        raise InputError(
            f"--data {str(path)!r}: reading arrow columns needs pyarrow; install it or convert to parquet"
        ) from None
    with path.open("rb") as file:
        try:
            schema = ipc.open_stream(file).schema
        except ValueError:
            file.seek(0)
            schema = ipc.open_file(file).schema
    return Table(
        columns=tuple(schema.names), samples=None, inner={each.name: _arrow_names(each.type) for each in schema}
    )


def _arrow_names(kind: Any) -> tuple[str, ...]:
    inner = getattr(kind, "value_type", kind)
    return tuple(each.name for each in inner) if getattr(inner, "num_fields", 0) else ()


def registration(table: Table, stage: str, *, place: str) -> dict[str, Any]:
    """The entry of dataset_info.json (without the file) that lets ``stage`` read these columns.

    Raises InputError naming the columns that are there and those that the stage needs.
    """
    if stage == "pt":
        return _text(table, place)
    if stage in PAIR_STAGES:
        return _pairs(table, stage, place)
    if stage == "kto":
        tag = table.pick(KTO_TAGS)
        if tag is None:
            raise _missing(table, stage, "a true/false column kto_tag or label", place)
        entry = _dialogue(table, stage, place)
        entry["columns"]["kto_tag"] = tag
        return entry
    return _dialogue(table, stage, place)


def _text(table: Table, place: str) -> dict[str, Any]:
    column = table.pick(TEXTS)
    if column is None:
        raise _missing(table, "pt", "a column text", place)
    return {"columns": {"prompt": column}}


def _dialogue(table: Table, stage: str, place: str) -> dict[str, Any]:
    messages = table.pick(MESSAGES)
    if messages is not None:
        return _messages(table, messages)
    prompt, answer = table.pick(PROMPTS), table.pick(ANSWERS)
    if prompt is None or answer is None:
        raise _missing(table, stage, "instruction and output, input and target, or messages", place)
    return {"columns": _prompt_columns(table, prompt) | {"response": answer}}


def _prompt_columns(table: Table, prompt: str) -> dict[str, str]:
    columns = {"prompt": prompt}
    if prompt != "input" and "input" in table.columns:
        columns["query"] = "input"
    system = table.pick(SYSTEMS)
    if system:
        columns["system"] = system
    if "history" in table.columns:
        columns["history"] = "history"
    return columns


def _messages(table: Table, column: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"formatting": "sharegpt", "columns": {"messages": column}}
    system = table.pick(SYSTEMS)
    if system:
        entry["columns"]["system"] = system
    if "role" in _inner_names(table, column):
        entry["tags"] = dict(_OPENAI_TAGS)
    return entry


def _inner_names(table: Table, column: str) -> tuple[str, ...]:
    if column in table.inner:
        return table.inner[column]
    value = table.first.get(column)
    one = value[0] if isinstance(value, list) and value else value
    return tuple(one) if isinstance(one, dict) else ()


def _pairs(table: Table, stage: str, place: str) -> dict[str, Any]:
    if not {"chosen", "rejected"} <= set(table.columns):
        raise _missing(table, stage, "chosen and rejected", place)
    answers = {"chosen": "chosen", "rejected": "rejected"}
    messages = table.pick(MESSAGES)
    if messages is not None:
        entry = _messages(table, messages)
        return {"ranking": True, **entry, "columns": entry["columns"] | answers}
    if isinstance(table.first.get("chosen"), list) or len(table.inner.get("chosen", ())) > 1:
        raise InputError(
            f"{place}: chosen holds a whole dialogue; LLaMA-Factory wants the prompt in a column of its own"
        )
    prompt = table.pick(PROMPTS)
    if prompt is None:
        raise _missing(table, stage, "prompt beside chosen and rejected", place)
    return {"ranking": True, "columns": _prompt_columns(table, prompt) | answers}


def _missing(table: Table, stage: str, needs: str, place: str) -> InputError:
    has = ", ".join(table.columns[:8]) or "none"
    return InputError(f"{place} has the columns {has}; stage {stage} needs {needs}")
