"""Linear modules as they really run: plain, quantized, with adapters (peft), fused adapters.

Sources: peft/tuners/lora/layer.py and bnb.py, bitsandbytes' MatMul4Bit and MatMul8bitLt, the Unsloth-derived fused
LoRA functions of fms-acceleration.
"""

from __future__ import annotations

from planner.memory.ops import FP32, Program
from planner.memory.tape import TEMPORARY, Elems, Param, Tensor
from planner.model.modules import Linear


class LinearModule:
    """One nn.Linear of a block under a mode, with its weights as tape parameters."""

    __slots__ = ("adapter_a", "adapter_b", "adapter_rank", "bias", "linear", "quantized", "trained", "weight")

    def __init__(self, p: Program, linear: Linear, *, trained: bool) -> None:
        mode = p.mode
        self.linear = linear
        self.adapter_rank = mode.rank
        self.trained = trained
        self.quantized = mode.quantized != "dense" and not linear.stacked and not trained
        size = linear.inputs * linear.outputs * linear.copies
        itemsize = FP32 if trained and mode.trained_itemsize == FP32 else mode.base
        self.weight = p.weight(size, mode.compute if self.quantized else itemsize, trained=trained)
        self.bias = p.weight(linear.outputs * linear.copies, itemsize, trained=trained) if linear.bias else None
        adapted = linear.role in mode.targets and not linear.stacked and not trained
        self.adapter_a = self.adapter_b = None
        if adapted:
            self.adapter_a = p.weight(mode.rank * linear.inputs * linear.copies, mode.adapter, trained=True)
            self.adapter_b = p.weight(mode.rank * linear.outputs * linear.copies, mode.adapter, trained=True)

    def __call__(self, p: Program, x: Tensor) -> Tensor:
        """Output of one row a token."""
        return self.on_rows(p, x, self.linear.outputs)

    def on_rows(self, p: Program, x: Tensor, width: int) -> Tensor:
        """Output of ``width`` elements per token, where x has other than one row a token (routed experts)."""
        if self.adapter_a is None or self.adapter_b is None:
            return self.base(p, x, width)
        if p.mode.fused and self.quantized:
            return self._fused_adapter(p, x, width, self.adapter_a, self.adapter_b)
        if p.mode.dora:
            return self._dora(p, x, width, self.adapter_a, self.adapter_b)
        return self._adapter(p, x, width, self.adapter_a, self.adapter_b)

    def base(self, p: Program, x: Tensor, width: int) -> Tensor:
        """The product with the base weight, without adapters."""
        if self.linear.stacked and self.linear.copies > 1:
            return p.grouped_matmul(x, self.weight, width)
        if not self.quantized:
            return p.matmul(x, self.weight, width, bias=self.bias)
        given = x.itemsize
        if p.mode.quantized == "nf4" and p.mode.packed_follows_input and given == FP32 != p.mode.compute:
            return p.cast(self._packed_in_fp32(p, x, width), given)
        if p.mode.quantized == "int8":
            return self._eight_bit(p, x, width)
        x = p.cast(x, p.mode.compute)
        return p.cast(self._packed(p, x, width), given)

    def _packed(self, p: Program, x: Tensor, width: int) -> Tensor:
        """MatMul4Bit: one dequantized weight lives during each product, forward and backward; nothing else is kept.

        Before bitsandbytes 0.43.2 the input was kept as well ("fix QLoRA mem bug", pull request 1270).
        """
        elems = (self.weight.count // self.linear.copies, 0, 0)
        temps = [] if p.mode.quantized == "gptq" else _dequantized(elems, p.mode.compute)
        alive = [p.new(*temp) for temp in temps]
        out = p.new((0, width, 0), p.mode.compute)
        kept = (x,) if p.mode.packed_keeps_input else ()
        p.link(out, (x,), ((x.elems, x.itemsize),), saved=kept, temps=temps)
        del alive
        return out

    def _packed_in_fp32(self, p: Program, x: Tensor, width: int) -> Tensor:
        """The same before bitsandbytes 0.47 where the input is fp32: forward converts the dequantized weight to fp32.

        Autocast then brings weight and input back to 16 bit, and both weights live during the product. Without it the
        product is fp32, and backward converts the weight again. Source: nn/modules.py, Linear4bit.set_compute_type.
        """
        mode, elems = p.mode, (self.weight.count // self.linear.copies, 0, 0)
        alive = [p.new(*temp) for temp in _dequantized(elems, mode.compute)[:1]]
        wide = p.new(elems, FP32, TEMPORARY)
        if not mode.autocast:
            alive.clear()
            out = p.new((0, width, 0), FP32)
            temps = [*_dequantized(elems, mode.compute)[:1], (elems, FP32, TEMPORARY)]
            p.link(out, (x,), ((x.elems, FP32),), temps=temps)
            return out
        narrow = p.cast(x, mode.compute)
        out = p.new((0, width, 0), mode.compute)
        p.link(out, (narrow,), ((x.elems, mode.compute),), temps=_dequantized(elems, mode.compute))
        del alive, wide
        return out

    def _eight_bit(self, p: Program, x: Tensor, width: int) -> Tensor:
        """MatMul8bitLt, in the input's dtype: keeps its input; forward makes an int8 copy, backward a whole weight."""
        quantized = p.new(x.elems, 1)
        out = p.new((0, width, 0), x.itemsize)
        weight = ((self.weight.count // self.linear.copies, 0, 0), x.itemsize, TEMPORARY)
        kept = () if p.mode.inputs_held_apart else (x,)
        p.link(out, (x,), ((x.elems, x.itemsize),), saved=kept, temps=(weight,))
        del quantized
        return out

    def _adapter(self, p: Program, x: Tensor, width: int, a: Param, b: Param) -> Tensor:
        """peft: result = base(x) + B(A(dropout(x.to(A.dtype)))) * scaling, cast back to the result's dtype."""
        mode = p.mode
        result = self.base(p, x, width)
        if mode.quantized in ("nf4", "int8"):
            result = p.clone(result) if mode.quantized == "nf4" else result
            casts = not mode.autocast
        else:
            casts = True
        kept = result.itemsize
        if casts:
            x = p.cast(x, mode.adapter)
        dropped = p.drop(x) if mode.dropout else x
        low = p.matmul(dropped, a, self._low_width(width))
        del dropped
        delta = p.scale(p.matmul(low, b, width))
        del low
        result = p.add(result, delta)
        del delta
        return p.cast(result, kept)

    def _low_width(self, width: int) -> int:
        """Elements per token between A and B: the rank for every row."""
        return -(-self.adapter_rank * width // self.linear.outputs)

    def _dora(self, p: Program, x: Tensor, width: int, a: Param, b: Param) -> Tensor:
        """DoRA: the norm of W + BA needs weight-sized temporaries; both results are kept for the magnitude."""
        mode = p.mode
        result = self.base(p, x, width)
        kept = result.itemsize
        x = p.cast(x, mode.adapter)
        dropped = p.drop(x) if mode.dropout else x
        inputs, outputs = self.linear.inputs, self.linear.outputs
        eye = p.new((inputs * inputs, 0, 0), mode.adapter, TEMPORARY)
        merged = [p.new((inputs * outputs, 0, 0), mode.adapter, TEMPORARY) for _ in range(3)]
        del eye, merged
        magnitude = p.weight(outputs, mode.adapter, trained=True)
        low = p.matmul(dropped, a, self._low_width(width))
        delta = p.scale(p.mul_weight(p.matmul(low, b, width), magnitude))
        del low, dropped
        based = p.mul_weight(result, magnitude)
        return p.cast(p.add(p.add(result, based), delta), kept)

    def _fused_adapter(self, p: Program, x: Tensor, width: int, a: Param, b: Param) -> Tensor:
        """Fused LoRA on a quantized weight: keeps x, with dropout its dropped copy (no mask); A(x) is made again."""
        kept = x
        if p.mode.dropout:
            kept = p.new(x.elems, p.mode.compute)
        elems: Elems = (self.weight.count, 0, 0)
        temps = _dequantized(elems, p.mode.compute)
        out = p.new((0, width, 0), p.mode.compute)
        grads = tuple(((w.count, 0, 0), w.itemsize) for w in (a, b))
        p.link(out, (x, a, b), ((x.elems, x.itemsize), *grads), saved=(x, kept), temps=temps)
        return out


def _dequantized(elems: Elems, itemsize: int) -> list[tuple[Elems, int, str]]:
    """The 16-bit weight and the fp32 scales (one per 64 elements) that double quantization restores."""
    return [(elems, itemsize, TEMPORARY), ((elems[0] // 64, 0, 0), FP32, TEMPORARY)]
