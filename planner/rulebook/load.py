"""rules/*.toml -> rows. An edge: the only place that reads the rule files.

Files that ship are validated by the tests, so a run reads them as plain mappings; a user's own file is
validated here, and every bad row is reported at once.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.errors import InputError, nearest
from planner.rulebook.paths import rules_dir

if TYPE_CHECKING:
    from pydantic import BaseModel


@cache
def read_rules(name: str) -> dict[str, Any]:
    """The parsed file ``rules/<name>.toml`` that ships with the package."""
    return read_toml(rules_dir() / f"{name}.toml")


@cache
def read_rows(name: str, table: str, *, with_text: str | None = None, without_text: str | None = None) -> list[Any]:
    """Rows ``[[table]]`` of a shipped file whose text has, or has not, a piece: the others are not even parsed.

    TOML is parsed at a few megabytes a second, so a file of hundreds of rows would cost more than the plan.
    """
    text = (rules_dir() / f"{name}.toml").read_text(encoding="utf-8")
    head = f"[[{table}]]\n"
    chunks = text.split(head)[1:]
    kept = [chunk for chunk in chunks if with_text is None or with_text in chunk]
    kept = [chunk for chunk in kept if without_text is None or without_text not in chunk]
    rows: list[Any] = tomllib.loads("".join(head + chunk for chunk in kept)).get(table, [])
    return rows


def read_toml(path: Path) -> dict[str, Any]:
    """Parse one TOML file. Raises InputError if it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror or problem}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise InputError(f"{path} is not valid TOML: {problem}") from None


def problems_in(
    rows: Iterable[Mapping[str, Any]],
    schema: type[BaseModel],
    *,
    place: str,
    known_fields: Iterable[str] | None = None,
) -> list[str]:
    """Every problem of every row as ``place, row 3 (liger), field: what is wrong``; empty if all are good.

    ``known_fields``: the names conditions may read; a name that starts with ``config.`` is always allowed.
    """
    found: list[str] = []
    seen: set[str] = set()
    fields = None if known_fields is None else frozenset(known_fields)
    for number, row in enumerate(rows, start=1):
        label = f"{place}, row {number} ({row.get('id', 'no id')})"
        found += [f"{label}, {text}" for text in _row_problems(row, schema)]
        found += [f"{label}, {text}" for text in _field_problems(row, fields)]
        if str(row.get("id")) in seen and "id" in row:
            found.append(f"{label}, id: used twice")
        seen.add(str(row.get("id")))
    return found


def validated(
    rows: Iterable[Mapping[str, Any]],
    schema: type[BaseModel],
    *,
    place: str,
    known_fields: Iterable[str] | None = None,
) -> list[Mapping[str, Any]]:
    """The rows if all are good; otherwise one InputError that lists every bad one."""
    kept = list(rows)
    found = problems_in(kept, schema, place=place, known_fields=known_fields)
    if found:
        raise InputError("; ".join(found))
    return kept


def _row_problems(row: Mapping[str, Any], schema: type[BaseModel]) -> list[str]:
    from pydantic import ValidationError

    try:
        schema.model_validate(dict(row))
    except ValidationError as problem:
        return [_one(error, schema) for error in problem.errors()]
    return []


def _one(error: Any, schema: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "row"
    if error["type"] == "extra_forbidden":
        close = nearest(str(error["loc"][-1]), schema.model_fields)
        return f"{where}: unknown key" + (f"; did you mean {close[0]}?" if close else "")
    return f"{where}: {error['msg'][0].lower()}{error['msg'][1:]}"


def _field_problems(row: Mapping[str, Any], fields: frozenset[str] | None) -> list[str]:
    if fields is None:
        return []
    named = [str(condition.get(key)) for condition in row.get("when", []) for key in ("field", "other")]
    return [_unknown(name, fields) for name in named if name != "None" and not _is_known(name, fields)]


def _is_known(name: str, fields: frozenset[str]) -> bool:
    return name in fields or name.startswith(("config.", "versions."))


def _unknown(name: str, fields: frozenset[str]) -> str:
    close = nearest(name, fields)
    return f"when: field {name!r} is not known" + (f"; did you mean {close[0]}?" if close else "")


@cache
def engine_rows() -> dict[str, Mapping[str, Any]]:
    """rules/engines.toml by id."""
    return {row["id"]: row for row in read_rules("engines")["engine"]}
