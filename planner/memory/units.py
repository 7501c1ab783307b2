"""A model under a regime as units of parameters: what is frozen and trained, in how many bytes, in which tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from planner.memory.layout import Unit
from planner.memory.optimizer import Tensor2D
from planner.memory.regime import Regime, bytes_of
from planner.model.count import count, count_block
from planner.model.modules import Linear, block_linears, embedding_and_head, lora_targets, outer_targets
from planner.model.spec import Block, ModelSpec
from planner.training import TrainingSetup


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """Everything about parameters that the timeline needs.

    ``units``: "embedding", "block0".. one a run (count = layers of the run; a run may be cut in two where only its
    last layers train), "head". ``tensors`` are the trained tensors grouped by shape, ``whole_tensors`` those of
    embedding and head trained whole beside adapters, in a dtype of their own. ``layers`` says what each block unit is.
    """

    units: tuple[Unit, ...]
    tensors: tuple[Tensor2D, ...]
    whole_tensors: tuple[Tensor2D, ...]
    layers: tuple[Layer, ...]
    trained: int
    total: int
    head_trained: bool
    embedding_trained: bool
    windowed: bool  # some layer's attention has a sliding window

    @property
    def held_bytes(self) -> int:
        """All weights as held on one unsharded GPU."""
        return sum(unit.count * unit.held_bytes for unit in self.units)


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A run of identical layers: ``trained`` whole, ``frozen`` below all that trains (no graph), or with adapters."""

    name: str
    count: int
    block: Block
    linears: tuple[Linear, ...]
    targets: frozenset[str]
    whole: frozenset[str]
    kind: Literal["trained", "frozen", "adapted"]


def build_parts(setup: TrainingSetup, spec: ModelSpec, regime: Regime) -> Parts:
    """Cut the model into units under this setup."""
    return _build(
        spec, regime, setup.method, setup.lora_rank, setup.lora_target, setup.additional_target,
        setup.freeze_trainable_layers, setup.double_quantization, setup.quantization_bit or 4,
    )  # fmt: skip


@lru_cache(maxsize=1024)
def _build(
    spec: ModelSpec,
    regime: Regime,
    method: str,
    rank: int,
    targets: Literal["all"] | tuple[str, ...],
    additional: tuple[str, ...],
    freeze_layers: int,
    double: bool,
    bits: int,
) -> Parts:
    return _Builder(spec, regime, method, rank, targets, additional, freeze_layers, double, bits).build()


class _Builder:
    def __init__(
        self, spec: ModelSpec, regime: Regime, method: str, rank: int, targets: Literal["all"] | tuple[str, ...],
        additional: tuple[str, ...], freeze_layers: int, double: bool, bits: int,
    ) -> None:  # fmt: skip
        self.spec, self.regime, self.method, self.rank, self.targets = spec, regime, method, rank, targets
        self.adapters = method in ("lora", "dora", "qlora", "oft")
        # modules_to_save is peft's: without adapters nothing is copied
        self.additional = frozenset(name.rpartition(".")[2] for name in additional if self.adapters)
        self.freeze_layers, self.double, self.bits = freeze_layers, double, bits
        self.tensors: dict[tuple[int, int, str, int], int] = {}

    def build(self) -> Parts:
        """Units from bottom to top."""
        spec = self.spec
        embedding_name, head_name = embedding_and_head(spec)
        whole = self.method in ("full", "galore", "apollo")
        embedding = self._outer("embedding", whole, embedding_name in self.additional)
        layers, blocks = self._blocks()
        head = self._head(whole, head_name in self.additional)
        units = (embedding, *blocks, head)
        trained = sum(unit.count * unit.trained for unit in units)
        return Parts(
            units=units,
            tensors=self._grouped(apart=False),
            whole_tensors=self._grouped(apart=True),
            layers=layers,
            trained=trained,
            total=sum(unit.count * (unit.frozen + unit.trained) for unit in units),
            head_trained=whole or head_name in self.additional,
            windowed=any(run.block.attention.sliding_window for run in spec.runs),
            embedding_trained=whole or embedding_name in self.additional,
        )

    def _grouped(self, *, apart: bool) -> tuple[Tensor2D, ...]:
        """Trained tensors by shape; ``apart`` those of embedding and head beside adapters, else all others."""
        return tuple(
            Tensor2D(rows, cols, copies, kind, stack)  # type: ignore[arg-type]
            for (rows, cols, kind, stack), copies in self.tensors.items()
            if (self.adapters and kind in ("embedding", "head")) is apart
        )

    def _adapter(self, lin: Linear) -> int:
        extra = lin.outputs if self.method == "dora" else 0
        return lin.copies * (self.rank * (lin.inputs + lin.outputs) + extra)

    def _outer_adapters(self) -> int:
        if self.targets == "all" and not self.regime.all_reaches_head:
            return 0
        wanted = sum(outer_targets(self.spec, self.targets))
        magnitudes = self.spec.vocab if self.method == "dora" else 0
        return wanted * (self.rank * (self.spec.vocab + (self.spec.embedding_width or self.spec.hidden)) + magnitudes)

    def _note(self, rows: int, cols: int, kind: str, copies: int, stack: int = 1) -> None:
        if rows and cols and copies:
            key = (rows, cols, kind, stack)
            self.tensors[key] = self.tensors.get(key, 0) + copies

    # -- embedding and head ---------------------------------------------------------------------------

    def _outer(self, name: str, whole: bool, additional: bool) -> Unit:
        counted = count(self.spec)
        elements = counted.embedding + counted.positions
        vision = counted.vision + counted.projector
        regime, width = self.regime, self.spec.embedding_width or self.spec.hidden
        trained = elements if whole or additional else 0
        if trained:
            self._note(self.spec.vocab, width, "embedding", 1)
            self._note(elements - self.spec.vocab * width, 1, "vector", 1)
        frozen_copy = elements if additional and not whole else 0  # peft keeps the original beside the trained copy
        frozen = (0 if trained else elements) + frozen_copy
        low = self._outer_adapters() if self.adapters else 0
        self._note(low, 1, "adapter", 1)
        return Unit(
            name=name, count=1, frozen=frozen + vision,
            frozen_bytes=frozen * bytes_of(regime.embedding) + self._vision_bytes(vision),
            trained=trained + low, trained_bytes_each=self._outer_bytes(trained),
            gradient_bytes_each=self._own(trained),
            largest_trained=(self.spec.vocab + self.spec.embedding_extra_rows) * width if trained else low, tensors=1,
            small_elements=0,
        )  # fmt: skip

    def _vision_bytes(self, elements: int) -> int:
        """The frozen image side as stored: bitsandbytes packs its Linear modules too, all but the text model's head.

        Source: transformers quantizers/base.py, get_keys_to_not_convert; GPTQ and AWQ checkpoints leave it as it was.
        """
        tower, form = self.spec.vision, self.regime.quantized
        if tower is None or form not in ("nf4", "int8"):
            return elements * bytes_of(self.regime.frozen)
        packed = self._packed_bytes(tower.matrices) if form == "nf4" else tower.matrices
        return packed + (elements - tower.matrices) * bytes_of(self.regime.frozen)

    def _outer_bytes(self, whole: int) -> int:
        """Bytes of an element trained in embedding or head, where ``whole`` of them are not adapters."""
        return self._trained_bytes() if not self.adapters or not whole else bytes_of(self.regime.whole)

    def _own(self, whole: int) -> int | None:
        return bytes_of(self.regime.whole) if self.adapters and whole and not self.regime.master else None

    def _trained_bytes(self) -> int:
        return bytes_of(self.regime.adapter if self.adapters else self.regime.trained)

    def _head(self, whole: bool, additional: bool) -> Unit:
        counted, regime, width = count(self.spec), self.regime, self.spec.embedding_width or self.spec.hidden
        head, norm = counted.head, counted.final_norm
        if additional and not head:
            head = self.spec.vocab * width  # a tied head becomes a copy of its own
        trained_head = head if whole or additional else 0
        trained = trained_head + (norm if whole else 0)
        if trained_head:
            self._note(self.spec.vocab, width, "head", 1)
        self._note(norm if whole else 0, 1, "vector", 1)
        kept = counted.head if additional and not whole else 0
        frozen_head = (counted.head if not trained_head else 0) + kept
        return Unit(
            name="head", count=1, frozen=frozen_head + (0 if whole else norm),
            frozen_bytes=self._head_bytes(frozen_head) + (0 if whole else norm * bytes_of(regime.norms)),
            trained=trained, trained_bytes_each=self._outer_bytes(trained_head),
            gradient_bytes_each=self._own(trained_head), largest_trained=trained_head,
            tensors=2, small_elements=norm,
        )  # fmt: skip

    def _head_bytes(self, elements: int) -> int:
        return self._packed_bytes(elements) if self.regime.head_packed else elements * bytes_of(self.regime.head)

    # -- blocks ---------------------------------------------------------------------------------------

    def _blocks(self) -> tuple[tuple[Layer, ...], tuple[Unit, ...]]:
        layers: list[Layer] = []
        units: list[Unit] = []
        below = self.spec.layers
        for run in self.spec.runs:
            below -= run.count
            for number, kind in self._cut(run.count, below):
                layer = self._layer(f"block{len(layers)}", number, run.block, kind)
                layers.append(layer)
                units.append(self._unit(layer))
        return tuple(layers), tuple(units)

    def _cut(self, number: int, above: int) -> list[tuple[int, Literal["trained", "frozen", "adapted"]]]:
        """Freeze trains the last layers only: a run is cut where they begin; ``above`` layers follow it."""
        if self.adapters:
            return [(number, "adapted")]
        if self.method == "badam":  # one block at a time trains; the lowest is the worst, all others are in its graph
            first = 1 if number + above == self.spec.layers else 0
            return [(n, kind) for n, kind in ((first, "trained"), (number - first, "adapted")) if n]  # type: ignore[misc]
        if self.method != "freeze":
            return [(number, "trained")]
        trained = max(0, min(number, self.freeze_layers - above))
        cut: list[tuple[int, Literal["trained", "frozen", "adapted"]]] = [
            (number - trained, "frozen"),
            (trained, "trained"),
        ]
        return [(n, kind) for n, kind in cut if n]

    def _layer(self, name: str, number: int, block: Block, kind: Literal["trained", "frozen", "adapted"]) -> Layer:
        linears = block_linears(self.spec, block, stacked_experts=self.regime.stacked_experts)
        reached: frozenset[str] = frozenset()
        if self.adapters:
            found = lora_targets(self.spec, block, self.targets, stacked_experts=self.regime.stacked_experts)
            reached = frozenset(lin.role for lin in found)
        whole = frozenset(lin.role for lin in linears if lin.name in self.additional)
        return Layer(
            name=name, count=number, block=block, linears=linears, targets=reached - whole, whole=whole, kind=kind
        )

    def _unit(self, layer: Layer) -> Unit:
        spec, _regime = self.spec, self.regime
        counted = count_block(spec, layer.block)
        matrices = sum(lin.parameters for lin in layer.linears)
        small = counted.total - matrices
        if layer.kind == "trained":
            trained, frozen, frozen_bytes = counted.total, 0, 0
            self._note_block(layer, small)
        else:
            trained, frozen, frozen_bytes = self._adapted(layer, small)
        experts = sum(lin.parameters for lin in layer.linears if lin.role.startswith("expert_"))
        largest = matrix = max((lin.parameters // lin.copies for lin in layer.linears), default=0)
        if layer.kind != "trained" and self.adapters:
            sides = [self.rank * max(lin.inputs, lin.outputs) for lin in layer.linears if lin.role in layer.targets]
            copied = [lin.parameters for lin in layer.linears if lin.role in layer.whole]
            largest = max([*sides, *copied], default=0)
        return Unit(
            name=layer.name, count=layer.count, frozen=frozen, frozen_bytes=frozen_bytes, trained=trained,
            trained_bytes_each=self._trained_bytes(), largest_trained=largest if trained else 0,
            tensors=len(layer.linears) + layer.block.norms, small_elements=small, expert_elements=experts,
            largest_frozen=matrix if frozen else 0,
            buffer_bytes=sum(self._gptq_buffers(lin) for lin in layer.linears) if frozen else 0,
        )  # fmt: skip

    def _note_block(self, layer: Layer, small: int) -> None:
        for lin in layer.linears:
            stacked = lin.stacked and lin.copies > 1
            kind = "experts" if stacked else "linear"
            copies = layer.count * (1 if stacked else lin.copies)
            self._note(lin.outputs, lin.inputs, kind, copies, lin.copies if stacked else 1)
            self._note(lin.outputs if lin.bias else 0, 1, "vector", layer.count * lin.copies)
        self._note(small, 1, "vector", layer.count)

    def _adapted(self, layer: Layer, small: int) -> tuple[int, int, int]:
        """(trained elements, frozen elements, bytes of the frozen ones) of one layer with a frozen base."""
        regime = self.regime
        trained = 0
        frozen_bytes = small * bytes_of(regime.norms)
        for lin in layer.linears:
            if lin.role in layer.targets:
                trained += self._adapter(lin)
                self._note(self.rank, lin.inputs, "adapter", layer.count * lin.copies)
                self._note(lin.outputs, self.rank, "adapter", layer.count * lin.copies)
            if lin.role in layer.whole:
                trained += lin.parameters
                self._note(lin.outputs, lin.inputs, "linear", layer.count * lin.copies)
            frozen_bytes += self._frozen_bytes(lin)
        frozen = small + sum(lin.parameters for lin in layer.linears)
        return trained, frozen, frozen_bytes

    def _frozen_bytes(self, lin: Linear) -> int:
        """A frozen Linear as stored. Sources: bitsandbytes nf4 (one scale per 64 elements, int8 scales in groups of 256
        under double quantization), int8 rows, GPTQ (fp16 scales and packed zeros per group of 128, g_idx).
        """
        weights = lin.inputs * lin.outputs * lin.copies
        bias = lin.outputs * lin.copies * bytes_of(self.regime.frozen) if lin.bias else 0
        form = self._form(lin)
        if form == "nf4":
            return self._packed_bytes(weights) + bias
        if form == "int8":
            return weights + 4 * lin.outputs * lin.copies + bias
        if form == "gptq":
            return self._gptq_bytes(lin, weights) + bias
        return weights * bytes_of(self.regime.frozen) + bias

    def _packed_bytes(self, weights: int) -> int:
        scales = weights // 64
        return weights // 2 + (scales + 4 * -(-scales // 256) if self.double else 4 * scales)

    def _form(self, lin: Linear) -> str:
        return "dense" if lin.stacked or lin.role == "router" else self.regime.quantized

    def _gptq_bytes(self, lin: Linear, weights: int) -> int:
        stored = self.spec.quantized
        bits = stored.bits if stored else self.bits
        zeros = self._gptq_cells(lin) * bits // 8
        return weights * bits // 8 + zeros + self._gptq_buffers(lin)

    def _gptq_buffers(self, lin: Linear) -> int:
        """fp16 scales and the int32 group of every input; codes and zeros become parameters where they are sharded
        (fms-acceleration autogptq_utils.py, PATCH_FOR_FSDP_TRITON_V2).
        """
        if self._form(lin) != "gptq":
            return 0
        return 2 * self._gptq_cells(lin) + 4 * lin.inputs * lin.copies

    def _gptq_cells(self, lin: Linear) -> int:
        stored = self.spec.quantized
        group = stored.group_size if stored and stored.group_size and stored.group_size > 0 else None
        return (-(-lin.inputs // group) if group else 1) * lin.outputs * lin.copies
