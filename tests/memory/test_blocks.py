"""What one decoder layer keeps for backward, against formulas read off traces of the real modelling code.

Source of formulas and family figures: traces of transformers 5.23 / peft 0.21.2 on fake tensors (torch 2.13).
Symbols: h hidden, i intermediate, a heads, A = heads x head_dim, K = kv_heads x head_dim, r LoRA rank; bytes per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.memory.curves import BlockCurve, block_curve
from planner.memory.ops import Mode
from planner.model.catalogue import resolve
from planner.model.interpret import interpret
from planner.model.modules import Linear, block_linears
from planner.model.spec import Block, ModelSpec

FROZEN = Mode(stream=2, compute=2, autocast=False, base=2, norm_weight=2, trained=False)
FULL = replace(FROZEN, trained=True)
FULL_FP32 = replace(FULL, autocast=True, stream=4, base=4, norm_weight=4, trained_itemsize=4)


@dataclass(frozen=True)
class Shape:
    """A Llama-type layer; the letters of the formulas."""

    h: int
    i: int
    a: int
    kv: int
    d: int
    r: int

    @property
    def A(self) -> int:  # noqa: N802 - the formulas' own letters
        return self.a * self.d

    @property
    def K(self) -> int:  # noqa: N802
        return self.kv * self.d

    @property
    def layer_parameters(self) -> int:
        """Matrices alone: autocast casts no norm weight."""
        return 2 * self.h * self.A + 2 * self.h * self.K + 3 * self.h * self.i

    @property
    def adapter_parameters(self) -> int:
        h, i = self.h, self.i
        sides = [(h, self.A), (h, self.K), (h, self.K), (self.A, h), (h, i), (h, i), (i, h)]
        return sum(self.r * (inputs + outputs) for inputs, outputs in sides)

    def spec(self) -> ModelSpec:
        return interpret(
            {
                "model_type": "llama", "hidden_size": self.h, "intermediate_size": self.i, "num_hidden_layers": 1,
                "num_attention_heads": self.a, "num_key_value_heads": self.kv, "head_dim": self.d, "vocab_size": 1000,
            }
        )  # fmt: skip


LLAMA_3_8B = Shape(h=4096, i=14336, a=32, kv=8, d=128, r=16)
ALL = frozenset({"q", "k", "v", "o", "gate", "up", "down"})


def lora(mode: Mode = FROZEN, **changes: Any) -> Callable[[Shape], Mode]:
    """A mode with adapters of the shape's rank."""
    return lambda s: replace(mode, **{"targets": ALL, "rank": s.r, "adapter": 4, "autocast": True, **changes})


def plain(mode: Mode) -> Callable[[Shape], Mode]:
    return lambda s: mode


@dataclass(frozen=True)
class Row:
    """``token`` bytes per token, ``llama`` the same for Llama-3-8B at rank 16 as published, ``const`` weight copies,
    ``square`` bytes per token and position."""

    name: str
    mode: Callable[[Shape], Mode]
    token: Callable[[Shape], int]
    llama: int
    const: Callable[[Shape], int] = lambda s: 0
    square: Callable[[Shape], int] = lambda s: 0


def casts(s: Shape) -> int:
    """Autocast's 16-bit copies of fp32 adapters."""
    return 2 * s.adapter_parameters


def of(h: int, i: int, A: int, K: int, r: int = 0) -> Callable[[Shape], int]:  # noqa: N803
    """h*h + i*i + A*A + K*K + 4a + r*r + 8 with these coefficients."""
    return lambda s: h * s.h + i * s.i + A * s.A + K * s.K + 4 * s.a + r * s.r + 8


ROWS = [
    Row("full, bf16", plain(FULL), of(16, 8, 4, 4), 200_840),
    Row("full, bf16, Liger", plain(replace(FULL, liger=True)), of(8, 6, 4, 4), 139_400),
    Row("LoRA, bf16 adapters", lora(autocast=False, adapter=2), of(12, 8, 4, 4, 14), 184_680),
    Row("QLoRA, autocast, bf16 norms", lora(quantized="nf4"), of(12, 8, 4, 4, 14), 184_680, casts),
    Row("LoRA, autocast", lora(), of(18, 8, 6, 4, 14), 217_448, casts),
    Row("LoRA, autocast, dropout", lora(dropout=True), of(23, 9, 7, 4, 14), 256_360, casts),
    Row("LoRA, fp32 adapters, no autocast", lora(autocast=False), of(28, 10, 8, 4, 28), 295_496),
    Row(
        "LoRA on q and v, autocast", lora(targets=frozenset({"q", "v"})), of(12, 6, 4, 4, 4), 155_848,
        lambda s: 2 * s.r * (2 * s.h + s.A + s.K),
    ),
    Row("LoRA, autocast, Liger", lora(liger=True), of(14, 6, 6, 4, 14), 172_392, casts),
    Row(
        "QLoRA, autocast, fp32 norms and stream", lora(quantized="nf4", stream=4, norm_weight=4), of(18, 14, 4, 4, 14),
        295_272, casts,
    ),
    Row("full, fp32, autocast", plain(FULL_FP32), of(26, 8, 4, 4), 241_800, lambda s: 2 * s.layer_parameters),
    # eager keeps repeated keys and values, as the padded path does: 4(A - K) more, which is nothing without groups
    Row(
        "full, bf16, eager", plain(replace(FULL, kernel="eager")),
        lambda s: of(16, 8, 8, 0)(s) - 4 * s.a, 213_000, square=lambda s: 6 * s.a,
    ),
    Row(
        "full, bf16, padded", plain(replace(FULL, kernel="masked")), of(16, 8, 8, 0), 213_128,
        square=lambda s: 2,
    ),
]  # fmt: skip
BY_NAME = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    kv = draw(st.integers(1, 8))
    groups = draw(st.integers(1, 8))
    d = 2 * draw(st.integers(4, 80))
    return Shape(
        h=8 * draw(st.integers(1, 1024)), i=8 * draw(st.integers(1, 4096)), a=kv * groups, kv=kv, d=d,
        r=draw(st.integers(1, 256)),
    )  # fmt: skip


def curve_of(spec: ModelSpec, mode: Mode, *, checkpointed: bool = False, reentrant: bool = False) -> BlockCurve:
    block, linears = block_of(spec)
    return block_curve(
        block, linears, mode, model_type=spec.model_type, hidden=spec.hidden,
        checkpointed=checkpointed, reentrant=reentrant,
    )  # fmt: skip


def block_of(spec: ModelSpec) -> tuple[Block, tuple[Linear, ...]]:
    block = spec.runs[-1].block
    return block, block_linears(spec, block)


@BY_NAME
def test_llama_3_8b_keeps_the_published_figure(row: Row) -> None:
    kept = curve_of(LLAMA_3_8B.spec(), row.mode(LLAMA_3_8B)).kept
    assert kept.token == row.llama == row.token(LLAMA_3_8B)


@BY_NAME
@given(shape=shapes())
@settings(max_examples=12)
def test_any_shape_keeps_the_formula(row: Row, shape: Shape) -> None:
    kept = curve_of(shape.spec(), row.mode(shape)).kept
    assert (kept.const, kept.token, kept.square) == (row.const(shape), row.token(shape), row.square(shape))
    assert kept.temporary == kept.const  # weight copies are temporaries, no activations
    assert kept.gradient == 0


@BY_NAME
@given(shape=shapes())
@settings(max_examples=6)
def test_a_layer_alone_needs_at_least_what_it_keeps_and_leaves_its_gradients(row: Row, shape: Shape) -> None:
    mode = row.mode(shape)
    curve = curve_of(shape.spec(), mode)
    tokens, squares = 4096, 4096 * 4096
    assert max(m.at(tokens, squares) for m in curve.backward) >= curve.kept.at(tokens, squares)
    norms = 2 * shape.h * mode.trained_itemsize if mode.trained else 0
    if mode.trained:
        assert curve.weight_gradients == shape.layer_parameters * mode.trained_itemsize + norms
    elif mode.targets == ALL:
        assert curve.weight_gradients == shape.adapter_parameters * mode.adapter


# -- windows --------------------------------------------------------------------------------------------------


LLAMA_2_7B = Shape(4096, 11008, 32, 32, 128, 8)


@pytest.mark.parametrize("shape", [LLAMA_2_7B, LLAMA_3_8B], ids=["llama-2-7b", "llama-3-8b"])
@pytest.mark.parametrize(
    ("liger", "reentrant", "of_h"),
    [
        (False, False, 10),
        (False, True, 12),  # the recomputed output is held by the call into backward
        (True, False, 6),
        (True, True, 8),
    ],
)
def test_a_checkpointed_layer_needs_what_it_saves_and_a_spill(
    shape: Shape, liger: bool, reentrant: bool, of_h: int
) -> None:
    """LoRA on all linears under autocast: saved + 6i + 10h, the incoming gradient of 2h included."""
    mode = lora(liger=liger)(shape)
    saved = curve_of(shape.spec(), mode).kept
    curve = curve_of(shape.spec(), mode, checkpointed=True, reentrant=reentrant)
    assert max(m.token for m in curve.backward) == saved.token + 6 * shape.i + of_h * shape.h
    assert curve.kept.token == 0  # its caller keeps the input
    assert curve.casts == 2 * shape.adapter_parameters  # cached for all layers in forward all the same


@BY_NAME
def test_kinds_of_checkpointing_differ_by_hidden_states_alone(row: Row) -> None:
    """Reentry holds the recomputed output; without it, the last adapter's gradient is alive while it recomputes."""
    mode = row.mode(LLAMA_3_8B)
    windows = []
    for reentrant in (False, True):
        curve = curve_of(LLAMA_3_8B.spec(), mode, checkpointed=True, reentrant=reentrant)
        windows.append(max(m.at(8192, 8192 * 2048) for m in curve.backward))
    assert abs(windows[1] - windows[0]) <= 2 * 4 * 4096 * 8192


@BY_NAME
def test_checkpointing_recomputes_the_whole_layer(row: Row) -> None:
    """In backward a checkpointed layer holds all that a plain one keeps, and its input."""
    mode = row.mode(LLAMA_3_8B)
    plain_curve = curve_of(LLAMA_3_8B.spec(), mode)
    curve = curve_of(LLAMA_3_8B.spec(), mode, checkpointed=True, reentrant=True)
    for tokens in (512, 8192):
        squares = tokens * 2048
        window = max(m.at(tokens, squares) for m in curve.backward)
        assert window >= plain_curve.kept.at(tokens, squares)
        assert window >= max(m.at(tokens, squares) for m in plain_curve.backward) - 2 * 2 * 2 * 4096 * tokens
    assert curve.weight_gradients == plain_curve.weight_gradients


def test_a_layer_whose_input_needs_no_gradient_keeps_less() -> None:
    """The first layer over a frozen embedding: its norm in front of the adapters records nothing."""
    shape, spec = LLAMA_3_8B, LLAMA_3_8B.spec()
    block, linears = block_of(spec)
    mode = lora()(shape)
    leaf = block_curve(
        block, linears, mode, model_type="llama", hidden=shape.h, checkpointed=False, reentrant=False, leaf=True
    )
    whole = curve_of(spec, mode)
    assert whole.kept.token - leaf.kept.token >= 4 * shape.h
    assert leaf.weight_gradients == whole.weight_gradients


# -- other families, full bf16, flash attention ------------------------------------------------------------------

FAMILIES = [
    ("Qwen3-8B", 215_336),
    ("Qwen2.5-7B", 225_400),
    ("Meta-Llama-3-8B", 200_840),
    ("Phi-3-mini-4k-instruct", 157_832),
    pytest.param(
        "gemma-2-9b", 268_396,
        marks=pytest.mark.xfail(strict=True, reason="28 B a token less: fp32 numbers a row of Gemma's four norms"),
    ),
    pytest.param(
        "Mixtral-8x7B-v0.1", 348_412,
        marks=pytest.mark.xfail(strict=True, reason="32 B a token less: indices and weights of the router's sorting"),
    ),
    pytest.param(
        "Qwen3-30B-A3B", 194_636,
        marks=pytest.mark.xfail(strict=True, reason="100 B a token less: indices and weights of the router's sorting"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "token"), FAMILIES)
def test_other_families_keep_their_traced_figure(name: str, token: int) -> None:
    assert curve_of(resolve(name), FULL).kept.token == token


@pytest.mark.parametrize(("name", "token"), [(*each.values,) if hasattr(each, "values") else each for each in FAMILIES])
def test_other_families_are_within_a_thousandth(name: str, token: int) -> None:
    assert curve_of(resolve(name), FULL).kept.token == pytest.approx(token, rel=1e-3)
