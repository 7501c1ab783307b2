"""What engines with code of their own hold beside what transformers would: litgpt and hand-written loops.

Sources: litgpt model.py, lora.py and finetune/lora.py; bitsandbytes autograd/_functions.py before 0.43.2; the published
peaks of litgpt's configurations.
"""

from __future__ import annotations

from typing import Any

import pytest

from planner.hardware.parse import parse_machine
from planner.memory.estimate import estimate
from planner.memory.result import Estimate
from planner.model.catalogue import resolve
from planner.training import TrainingSetup

MACHINE = parse_machine("1xA10G-24GB")


def priced(model: str, **fields: Any) -> Estimate:
    setup = TrainingSetup(model=model, engine="litgpt", **{"seq_len": 512, "gradient_checkpointing": False, **fields})
    return estimate(setup, resolve(model), MACHINE)


def test_litgpt_never_ties_the_head() -> None:
    spec = resolve("gemma-2b")
    assert spec.tied_embeddings
    assert priced("gemma-2b").total_parameters > spec.parameters + spec.vocab * spec.hidden


@pytest.mark.parametrize(
    ("versions", "elements"),
    [
        pytest.param({"litgpt": "0.4", "bitsandbytes": "0.43.2"}, 0, id="nothing kept"),
        pytest.param({"litgpt": "0.1", "bitsandbytes": "0.42"}, 1, id="this batch's"),
        pytest.param({"litgpt": "0.4", "bitsandbytes": "0.42"}, 2, id="and the last one's"),
    ],
)
def test_inputs_of_packed_products(versions: dict[str, str], elements: int) -> None:
    """Llama-2-7B reads h, h, h and 11,008 elements a token in every layer; one h of these a batch keeps anyway."""
    fields: dict[str, Any] = {"method": "qlora", "lora_target": ("q_proj", "v_proj"), "micro_batch_size": 2}
    none = priced("llama-2-7b", **fields, versions={"litgpt": "0.4", "bitsandbytes": "0.43.2"})
    some = priced("llama-2-7b", **fields, versions=versions)
    this, last = 32 * (2 * 4096 + 11_008) * 2 * 1024, 32 * (3 * 4096 + 11_008) * 2 * 1024
    expected = (0, this, this + last)[elements]
    assert some.allocated_bytes - none.allocated_bytes == pytest.approx(expected, rel=0.03)


def test_old_bitsandbytes_costs_a_trainer_its_inputs_too() -> None:
    setup = TrainingSetup(
        model="llama-2-7b", engine="transformers", method="qlora", lora_target=("q_proj",), gradient_checkpointing=False
    )
    spec = resolve("llama-2-7b")
    new, old = (
        estimate(setup.but(versions={"bitsandbytes": text}), spec, MACHINE).allocated_bytes
        for text in ("0.43.2", "0.43.1")
    )
    assert old > new
