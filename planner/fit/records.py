"""The answers of ``plan fit`` as plain JSON-ready values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from planner.fit.job import Course
from planner.fit.largest import Cell, Largest
from planner.fit.offers import Offer
from planner.memory.result import Estimate
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup


def largest_json(
    setup: TrainingSetup, answer: Estimate, found: Sequence[Largest], cells: Sequence[Sequence[Cell]]
) -> dict[str, Any]:
    """The setup as stated with its estimate, the largest value of each field, and the map as a flat list."""
    return {
        "setup": setup.to_dict(),
        "estimate": answer.to_dict(),
        "largest": {
            each.field: {key: value for key, value in asdict(each).items() if key != "field"} for each in found
        },
        "grid": [asdict(cell) for row in cells for cell in row],
    }


def course_json(run: Course) -> dict[str, Any]:
    """Steps, tokens and hours of the job."""
    return asdict(run)


def model_json(name: str, spec: ModelSpec, offer: Offer | None) -> dict[str, Any]:
    """One model of ``plan fit --gpus``; ``plan`` is null where nothing fits."""
    plan = offer_json(offer) if offer else None
    return {"size": name, "model": spec.id, "parameters": spec.parameters, "plan": plan}


def offer_json(offer: Offer) -> dict[str, Any]:
    """One piece of hardware with the plan on it."""
    return {
        "gpus": offer.gpus,
        "count": offer.count,
        "class": offer.method_class,
        "setup": offer.setup.to_dict(),
        "required_bytes": offer.price.required_bytes,
        "capacity_bytes": offer.capacity_bytes,
        "tokens_per_s": offer.speed.tokens_per_s if offer.speed else None,
        "job": course_json(offer.course) if offer.course else None,
        "price_per_hour": offer.price_per_hour,
        "cost": offer.cost,
    }
