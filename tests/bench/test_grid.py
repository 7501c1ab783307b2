"""bench/grid.toml: every run is a valid setup, is priced, and there are enough families, methods and sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench import shapes
from bench.grid import Run, read_grid
from bench.predict import predicted, seconds_of
from planner.errors import InputError
from planner.model.catalogue import resolve
from tests.bench.shapes_of_tests import write_grid, write_tiny

RUNS, CASES = read_grid()
ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_run_is_priced_with_its_speed() -> None:
    for run in RUNS:
        setup = run.setup("H200")
        answer = predicted(setup, run.spec, shapes.machine_of(str(setup.gpus)))
        assert "error" not in answer, (run.name, answer)
        assert answer["tokens_per_s"] > 0
        assert answer["allocated_bytes"] == max(answer["phases"].values())
        assert 8 < seconds_of(answer, run.spec, 6) < 120


def test_the_grid_is_wide_enough() -> None:
    fields = [{"optim": "adamw_torch_fused", "attention": "sdpa", **run.fields} for run in RUNS]
    assert len({run.config["model_type"] for run in RUNS}) >= 12
    assert {one["method"] for one in fields} == {"full", "lora", "dora", "qlora"}
    assert {one["attention"] for one in fields} == {"sdpa", "eager", "flash_attention_2"}
    assert {one.get("loss") for one in fields} >= {None, "fused_linear", "fused", "torch"}
    assert len({one["optim"] for one in fields}) >= 6
    assert {one.get("seq_len") for one in fields} >= {512, 1024, 2048, 4096, 8192}
    assert {run.ranks for run in RUNS} == {1, 2, 4, 8}
    assert len(RUNS) >= 200


def test_names_are_one_run_each() -> None:
    for runs in (RUNS, CASES):
        assert len({run.name for run in runs}) == len(runs)


def test_weights_and_compute_are_stated_in_16_bit_or_wider() -> None:
    assert all(run.fields.get("param_dtype") in ("bf16", "fp32") for run in RUNS + CASES)


@pytest.mark.parametrize("model", sorted({str(run.fields["model"]) for run in RUNS}))
def test_cut_models_are_the_first_layers_of_whole_ones(model: str) -> None:
    whole = shapes.spec_of(shapes.config_for(model), model)
    assert whole.parameters == resolve(model).parameters
    cut = shapes.spec_of(shapes.config_for(model, 2), model)
    assert cut.layers == 2
    assert cut.runs[0].block == whole.runs[0].block
    assert (cut.hidden, cut.vocab) == (whole.hidden, whole.vocab)


def test_lists_by_layer_are_cut_too(tmp_path: Path) -> None:
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    path = write_tiny(tmp_path, layer_types=kinds, eos_token_id=[1, 2])
    assert shapes.config_for(str(path), 2)["layer_types"] == kinds[:2]
    assert shapes.config_for(str(path), 2)["eos_token_id"] == [1, 2]


@pytest.mark.parametrize("layers", [0, 4])
def test_more_layers_than_there_are_is_a_sentence(tmp_path: Path, layers: int) -> None:
    with pytest.raises(InputError, match="it has 3"):
        shapes.config_for(str(write_tiny(tmp_path)), layers)


@pytest.mark.parametrize(
    ("model", "words"), [("Qwen2.5-7C", "did you mean"), ("Qwen/Qwen2-VL-7B-Instruct", "nested text side")]
)
def test_a_model_that_cannot_be_cut_is_a_sentence(model: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        shapes.config_for(model, 2)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ('[[runs]]\nmodel = "7B"\nmethod = "lorra"', "did you mean lora"),
        ('[[runs]]\nmodel = "7B"\nseqlen = 5', "seq_len"),
        ('[[rums]]\nmodel = "7B"', "rums"),
        ("[[runs]\n", "grid.toml"),
        ('[[runs]]\nmodel = "7B"\nranks = 2', "fsdp2 only"),
        ('[[runs]]\nmodel = "7B"\nparallelism = "fsdp2"', "fsdp2 only"),
        ('[[runs]]\nmodel = "7B"\npacking = true', "runs no packing"),
        ('[[runs]]\nmodel = "7B"\nmethod = "galore"', "runs no method galore"),
        ('[[runs]]\nmodel = "7B"\ngradient_checkpointing = 2', "every layer or none"),
        ('[[runs]]\nmodel = "7B"\nloss = "fused"', "goes with liger_kernel"),
        ('[[runs]]\nmodel = "7B"\nparallelism = "zero3"', "none or fsdp2"),
    ],
)
def test_a_wrong_grid_is_one_sentence(tmp_path: Path, block: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_grid(write_grid(tmp_path, block))


def test_lists_are_axes_and_module_lists_are_not(tmp_path: Path) -> None:
    block = '[[runs]]\nmodel = "7B"\nseq_len = [512, 1024]\nlora_target = ["q_proj", "v_proj"]\nranks = [1]'
    runs, cases = read_grid(write_grid(tmp_path, block, block + '\nmethod = "lora"'))
    assert [run.fields["seq_len"] for run in runs] == [512, 1024]
    assert runs[0].setup("80GB").lora_target == ("q_proj", "v_proj")
    assert cases == []


def test_what_a_run_needs_beside_the_basics() -> None:
    assert Run({"model": "7B", "method": "qlora", "liger_kernel": True}).needs() == ("liger-kernel", "bitsandbytes")
    assert Run({"model": "7B", "optim": "paged_adamw_8bit"}).needs() == ("bitsandbytes",)
    assert Run({"model": "7B", "attention": "flash_attention_2"}).needs() == ("flash-attn",)
    assert Run({"model": "7B", "optim": "adafactor"}).needs() == ()


def test_cards_by_the_drivers_words() -> None:
    assert shapes.card_word("NVIDIA H200", 143771 * 2**20) == "H200"
    assert shapes.card_word("NVIDIA Unheard Of", 30 * 2**30 - 5) == "30GB"
    capped = shapes.machine_of("1xH200", 24)
    assert 23 * 2**30 < capped.smallest.capacity_bytes < 24 * 2**30
    assert capped.smallest.kind is not None and capped.smallest.kind.id.startswith("h200")


def test_the_bench_needs_none_of_the_planners_dependencies() -> None:
    """The machine with the GPU has torch and transformers, and maybe nothing else."""
    code = (
        "import sys; sys.argv[1:] = ['--list', '--card', 'H200']\n"
        "from bench import outcome\nfrom bench.gpu_peaks import main\n"
        "main(); main(['--list', '--card', 'H200', '--cap', '24'])\n"
        "heavy = {'pydantic', 'yaml', 'rich', 'typer', 'psutil', 'jinja2', 'torch'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "runs, about" in done.stdout
