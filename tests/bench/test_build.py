"""Models as the bench builds them: transformers' own modules and dtypes, every parameter filled, tied ones tied."""

from __future__ import annotations

from typing import Any

import pytest

from bench import shapes
from bench.build import build, skeleton
from bench.grid import read_grid
from bench.steps import _liger
from planner.training import TrainingSetup
from tests.bench.shapes_of_tests import TINY

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")
pytestmark = [pytest.mark.transformers, pytest.mark.filterwarnings("ignore")]
SHAPES = {
    (run.config["model_type"], run.fields.get("attention", "sdpa")): run
    for run in [*read_grid()[0], *read_grid()[1]]
    if run.fields.get("attention") != "flash_attention_2"  # its package is asked for when a model is made
}


def made(config: dict[str, Any], **fields: Any) -> Any:
    setup = TrainingSetup(model="-", engine="transformers", compute_dtype="bf16", **fields)
    return build(config, setup.to_dict(), "cpu")


@pytest.mark.parametrize("shape", sorted(SHAPES), ids="-".join)
def test_every_family_takes_its_attention_and_has_the_planners_count(shape: tuple[str, str]) -> None:
    """On the meta device: the shapes of the grid as they are."""
    run = SHAPES[shape]
    with torch.device("meta"):
        model = skeleton(run.config, {"param_dtype": "bf16", "attention": shape[1]})
    assert sum(each.numel() for each in model.parameters()) == run.spec.parameters


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_filled_and_tied(tied: bool) -> None:
    model = made({**TINY, "tie_word_embeddings": tied}, method="full", param_dtype="fp32")
    assert all(each.dtype == torch.float32 and bool(torch.isfinite(each).all()) for each in model.parameters())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert (
        sum(each.numel() for each in model.parameters())
        == shapes.spec_of({**TINY, "tie_word_embeddings": tied}, "-").parameters
    )
    assert model.model.norm.weight.eq(1).all()
    plain = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**TINY))
    assert torch.equal(model.model.rotary_emb.inv_freq, plain.model.rotary_emb.inv_freq)


@pytest.mark.parametrize(("adapter", "held"), [(None, torch.float32), ("bf16", torch.bfloat16)])
def test_adapters_are_held_as_stated(adapter: str | None, held: Any) -> None:
    model = made(TINY, method="lora", param_dtype="bf16", adapter_dtype=adapter, lora_rank=4)
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    assert len(trained) == 2 * 7 * 3 and {each.dtype for each in trained.values()} == {held}
    assert model.get_base_model().model.embed_tokens.weight.dtype == torch.bfloat16


def test_the_same_weights_every_time() -> None:
    one, two = (made(TINY, method="full", param_dtype="fp32") for _ in range(2))
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)


def test_ligers_switches() -> None:
    assert _liger(None) == _liger("fused_linear") == {}
    assert _liger("fused")["liger_kernel_config"] == {"fused_linear_cross_entropy": False, "cross_entropy": True}
    assert _liger("torch")["liger_kernel_config"] == {"fused_linear_cross_entropy": False, "cross_entropy": False}
