"""The embedded engine's folder: read back, priced as emitted, and refusing what its loop cannot do."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import UnsupportedError
from planner.rulebook.paths import templates_dir
from planner.targets import TARGETS
from planner.targets.context import EmitContext
from planner.training import TrainingSetup
from tests.targets.promises import check_prices, check_round_trip
from tests.targets.strategies import contexts, setups

EMBEDDED = TARGETS["embedded"]
ONE_GPU = EmitContext(model_path="Qwen/Qwen2.5-7B", hidden=3584, has_bf16=True)


@settings(max_examples=300, deadline=None)
@given(setups, contexts, st.sets(st.sampled_from(list(TrainingSetup.__dataclass_fields__)), max_size=6))
def test_files_read_back_to_the_settled_setup(raw: TrainingSetup, context: EmitContext, kept: set[str]) -> None:
    check_round_trip(EMBEDDED, raw, context, kept)


@pytest.mark.parametrize("gpus", ["1x24GB", "3x20GB", "8xA100-80GB"])
def test_plans_are_emitted_at_their_price(gpus: str) -> None:
    check_prices(EMBEDDED, gpus, engine="embedded")


def test_whole_models_train_in_fp32_and_adapters_on_the_stored_dtype() -> None:
    def dtype(**changes: object) -> str:
        files = EMBEDDED.files(TrainingSetup(model="7B").but(**changes), replace(ONE_GPU, gpus_per_node=2))
        return json.loads(files["train.json"])["model"]["dtype"]

    assert dtype(method="full") == "float32"
    assert dtype(method="full", parallelism="zero3") == "bfloat16"
    assert dtype(method="lora") == "bfloat16"
    assert dtype(method="full", param_dtype="bf16") == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": "dpo"}, "LLaMA-Factory has the others"),
        ({"method": "freeze"}, "dora, full, lora, qlora"),
        ({"optim": "galore_adamw"}, "optim galore_adamw: it knows adamw_torch"),
        ({"gradient_checkpointing": "selective"}, "every layer, every n-th or none"),
        ({"parallelism": "fsdp"}, "choose fsdp2"),
        ({"parallelism": "fsdp2", "method": "qlora"}, "fsdp2 with quantization_bit 4"),
        ({"parallelism": "fsdp2", "offload": "all"}, "fsdp2 with offload all"),
        ({"parallelism": "fsdp2", "optim": "adamw_8bit"}, "fsdp2 with optim adamw_8bit"),
    ],
)
def test_what_the_loop_cannot_do_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        EMBEDDED.files(TrainingSetup(model="7B").but(**changes), replace(ONE_GPU, gpus_per_node=2))


def test_every_module_that_a_script_imports_lies_beside_it() -> None:
    context = replace(ONE_GPU, gpus_per_node=2)
    for name in ("embedded", "transformers", "trl"):
        files = TARGETS[name].files(TrainingSetup(model="7B"), context)
        ours = {path.stem for path in templates_dir().glob("*/*.py")}
        for text in (text for file, text in files.items() if file.endswith(".py")):
            tree = ast.parse(text)
            imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
            assert {f"{module}.py" for module in imported & ours} <= set(files)


def test_the_loop_reads_every_argument_that_is_written() -> None:
    files = EMBEDDED.files(TrainingSetup(model="7B", eval_micro_batch_size=1), ONE_GPU)
    code = "".join(text for name, text in files.items() if name.endswith(".py"))
    written = json.loads(files["train.json"])["arguments"]
    assert [key for key in written if not re.search(rf'"{key}"', code)] == []


def test_one_process_a_gpu() -> None:
    for context in (ONE_GPU, replace(ONE_GPU, gpus_per_node=3)):
        setup = EMBEDDED.settle(TrainingSetup(model="7B"), context)
        assert EMBEDDED.launch(setup, context).chosen.words[0] == "torchrun"


def test_faults_need_their_variable() -> None:
    """The injection of faults begins with the environment, and nothing else calls it."""
    text = (Path(templates_dir()) / "trainer" / "progress.py").read_text()
    assert text.count("VRAMPLAN_TEST_FAULT") == text.count("VRAMPLAN_TEST_FAULT", text.index("def inject_fault"))
