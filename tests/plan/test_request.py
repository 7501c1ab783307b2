"""A request asked from Python: wrong values are one sentence, as they are on the command line."""

from __future__ import annotations

from typing import Any

import pytest

import planner
from planner.errors import InputError
from planner.plan.plan import Request
from planner.plan.serialize import plan_to_dict


def test_rungs_may_be_any_collection_or_a_comma_list() -> None:
    for given in (["lora", "liger"], ("lora", "liger"), {"lora", "liger"}, "lora, liger"):
        assert Request(model="7B", allow=given).allow == frozenset({"lora", "liger"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [("objective", "fast"), ("objective", None), ("global_batch", "64"), ("global_batch", 0), ("global_batch", True),
     ("forbid", 3), ("require", [1]), ("allow", None)],
)  # fmt: skip
def test_wrong_values_name_their_field(field: str, value: Any) -> None:
    fields: dict[str, Any] = {field: value}
    with pytest.raises(InputError, match=field):
        Request(model="7B", **fields)


def test_a_plan_has_every_field_of_its_document() -> None:
    answer = planner.plan(Request(model="7B", gpus="3x20GB"))
    absent = [name for name in plan_to_dict(answer) if not hasattr(answer, name)]
    assert absent == []
    assert (answer.version, answer.folder, answer.files) == (planner.__version__, None, ())
