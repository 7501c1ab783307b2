"""What a row of rules/models.toml may say; every bad row is reported at once, by row and field."""

from __future__ import annotations

import datetime
import difflib
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")]
VERIFIED = {
    "transformers meta-device count",
    "known total",
    "transformers meta-device count, known total",
}


class ModelRow(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: Id
    siblings: list[Id] = []
    aliases: list[Annotated[str, Field(min_length=2)]] = []
    parameters: Annotated[int, Field(ge=10**6)]
    template: str | None = None
    config: dict[str, Any] | None = None
    same_as: Id | None = None
    source: Annotated[str, Field(min_length=8)]
    checked: datetime.date
    verified: str | None = None
    note: str | None = None

    @model_validator(mode="after")
    def has_one_config_and_an_honest_check(self) -> ModelRow:
        if (self.config is None) == (self.same_as is None):
            raise ValueError("needs config or same_as, and not both")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("config has no model_type")
        if self.verified is not None and self.verified not in VERIFIED:
            raise ValueError(f"verified {self.verified!r} is none of {sorted(VERIFIED)}")
        return self


class SizeRow(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=r"^(\d+x)?\d+(\.\d+)?[MB]$")]
    model: Id
    reason: Annotated[str, Field(min_length=20)]


SCHEMAS: dict[str, type[BaseModel]] = {"model": ModelRow, "size": SizeRow}


def problems(data: dict[str, Any], *, file: str) -> list[str]:
    """One line for each bad field: file, row, field, what is wrong, and the nearest valid key."""
    found = [f"{file}: unknown table {name!r}" for name in data if name not in SCHEMAS]
    for kind, schema in SCHEMAS.items():
        for number, row in enumerate(data.get(kind, []), 1):
            try:
                schema.model_validate(row)
            except ValidationError as error:
                place = f"{file}: {kind} {number} ({row.get('id', 'no id')})"
                found += [f"{place}: {_sentence(each, schema)}" for each in error.errors()]
    return found


def _sentence(error: Any, schema: type[BaseModel]) -> str:
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, schema.model_fields, n=1)
        return f"{name} is no key" + (f"; did you mean {close[0]}?" if close else "")
    return f"{name or 'row'}: {error['msg']}"
