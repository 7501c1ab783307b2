"""The operations that block programs are made of: what each allocates, saves and frees.

Widths are elements per token; ``rows`` multiplies tokens where a tensor has several rows a token (routed experts).
Each method names the code whose behaviour it states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.memory.tape import ACTIVATION, PASS, TEMPORARY, Elems, Out, Param, Tape, Tensor

# "flash": flash-attn's function, "sdpa": torch's flash kernel, "efficient": its memory-efficient one, "masked": the
# same with a mask and keys repeated for every query head, "math": torch's path of last resort, "grouped": the same with
# fewer key heads than heads, "eager": the model's own matmuls and softmax, "sinks": gpt-oss's variant of them
Kernel = Literal["flash", "sdpa", "efficient", "masked", "math", "grouped", "eager", "sinks"]
Base = Literal["dense", "nf4", "int8", "gptq"]
FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Mode:
    """The part of a regime that a block's program depends on; hashable, so that curves can be cached.

    ``compute``, ``base``, ``norm_weight``, ``stream``, ``adapter`` are item sizes in bytes. ``quantized`` is the form
    of the frozen linear weights. ``targets`` are the roles of linear modules with adapters. ``gradients_stay``: trained
    weights keep their gradient on this GPU (False where a sharding engine takes it away).
    """

    stream: int
    compute: int
    autocast: bool
    base: int
    norm_weight: int
    trained: bool
    quantized: Base = "dense"
    targets: frozenset[str] = frozenset()
    rank: int = 0
    adapter: int = FP32
    dropout: bool = False
    dora: bool = False
    peft_casts_input: bool = True
    kernel: Kernel = "flash"
    repeat_kv: bool = False
    liger: bool = False
    fused: bool = False
    trained_itemsize: int = 2
    trained_modules: frozenset[str] = frozenset()
    gradients_stay: bool = True
    residual_dropout: bool = False
    litgpt: bool = False  # litgpt's own blocks: see BlockModule._fused_projection, activate
    half: bool = False  # 16-bit means float16
    packed_keeps_input: bool = False  # see LinearModule._packed
    packed_follows_input: bool = False  # see LinearModule._packed
    inputs_held_apart: bool = False  # 8-bit products' inputs are counted beside the block, see unchecked_inputs
    looped_delta: bool = False  # the gated delta rule inverts its system in a loop: see delta.looped_delta
    compiled: bool = False  # torch.compile: fused as by Liger, but rotation writes new tensors
    cache: bool = False  # keys and values go through a key-value cache, see habits.makes_cache


class Program(Tape):
    """A tape with the vocabulary of decoder blocks."""

    def __init__(self, mode: Mode) -> None:
        super().__init__()
        self.mode = mode
        self.params: list[Param] = []

    # -- pieces ---------------------------------------------------------------------------------------

    def weight(self, count: int, itemsize: int, *, trained: bool) -> Param:
        """A parameter of ``count`` elements."""
        param = Param(count, itemsize, trained=trained, keeps_grad=self.mode.gradients_stay)
        self.params.append(param)
        return param

    def cast(self, x: Tensor, itemsize: int) -> Tensor:
        """``x.to(dtype)``: the tensor itself where the dtype is right, else a copy; nothing is saved."""
        if x.itemsize == itemsize:
            return x
        out = self.new(x.elems, itemsize)
        self.link(out, (x,), ((x.elems, x.itemsize),))
        return out

    def cast_weight(self, param: Param) -> Tensor | None:
        """Autocast's copy of a weight (cached for trained fp32 leaves); None where the weight is used as it is."""
        if not self.mode.autocast or param.itemsize == self.mode.compute:
            return None
        if param.cast is not None:
            return param.cast
        elems = (param.count, 0, 0)
        copy = self.new(elems, self.mode.compute, TEMPORARY)
        self.link(copy, (param,), ((elems, param.itemsize),))
        if param.trained:
            param.cast = copy
        return copy

    def matmul(self, x: Tensor, param: Param, width: int, *, bias: Param | None = None) -> Tensor:
        """``F.linear``: keeps its input if the weight trains, and the weight's cast if the input needs a gradient."""
        if self.mode.autocast:
            x = self.cast(x, self.mode.compute)
        itemsize = self.mode.compute if self.mode.autocast else max(x.itemsize, param.itemsize)
        cast = self.cast_weight(param)
        out = self.new((0, width, 0), itemsize)
        grad_w: Out = ((param.count, 0, 0), itemsize) if param.trained else None
        grad_b: Out = ((bias.count, 0, 0), bias.itemsize) if bias is not None else None
        self.link(
            out,
            (x, cast if cast is not None else param, bias),
            ((x.elems, itemsize), grad_w, grad_b),
            saved=(x if param.trained else None, cast if x.needs_grad else None),
            views=True,
        )
        return out

    def grouped_matmul(self, x: Tensor, param: Param, width: int) -> Tensor:
        """``grouped_mm`` over stacked experts: autocast leaves it alone, the input is cast to the weight's dtype.

        Source: transformers integrations/moe.py, _grouped_mm.
        """
        x = self.cast(x, param.itemsize)
        out = self.new((0, width, 0), param.itemsize)
        grad_w: Out = ((param.count, 0, 0), param.itemsize) if param.trained else None
        self.link(out, (x, param), ((x.elems, x.itemsize), grad_w), saved=(x if param.trained else None,))
        return out

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """``a + b``: saves nothing, hands the same gradient to both."""
        itemsize = max(a.itemsize, b.itemsize)
        out = self.new(a.elems, itemsize)
        outs = tuple(PASS if t.itemsize == itemsize else (t.elems, t.itemsize) for t in (a, b))
        self.link(out, (a, b), outs)
        return out

    def scale(self, x: Tensor) -> Tensor:
        """``x * constant`` (or a constant tensor without gradient): saves nothing of the size of x."""
        out = self.new(x.elems, x.itemsize)
        self.link(out, (x,), ((x.elems, x.itemsize),))
        return out

    def mul(self, a: Tensor, b: Tensor) -> Tensor:
        """``a * b``: each side is saved for the other's gradient."""
        out = self.new(a.elems, max(a.itemsize, b.itemsize))
        self.link(
            out,
            (a, b),
            ((a.elems, a.itemsize), (b.elems, b.itemsize)),
            saved=(b if a.needs_grad else None, a if b.needs_grad else None),
        )
        return out

    def mul_weight(self, x: Tensor, weight: Param) -> Tensor:
        """``weight * x`` of a norm: keeps x only if the weight trains."""
        out = self.new(x.elems, max(x.itemsize, weight.itemsize))
        grad_w: Out = ((weight.count, 0, 0), weight.itemsize) if weight.trained else None
        # the product before its reduction over tokens is a temporary of the backward
        temps = ((x.elems, out.itemsize, ACTIVATION),) if weight.trained else ()
        self.link(
            out, (x, weight), ((x.elems, x.itemsize), grad_w), saved=(x if weight.trained else None,), temps=temps
        )
        return out

    def unary(self, x: Tensor, *, saves: Literal["input", "output", "none"]) -> Tensor:
        """A pointwise kernel such as silu (saves its input) or relu and tanh (save their output)."""
        out = self.new(x.elems, x.itemsize)
        kept = {"input": x, "output": out, "none": None}[saves]
        self.link(out, (x,), ((x.elems, x.itemsize),), saved=(kept,))
        return out

    def softmax(self, x: Tensor, itemsize: int = 0) -> Tensor:
        """Keeps its output (``itemsize`` bytes an element, x's own by default); on CUDA the backward first makes
        grad * output (aten native/cuda/SoftMax.cu).
        """
        out = self.new(x.elems, itemsize or x.itemsize)
        self.link(out, (x,), ((x.elems, x.itemsize),), saved=(out,), temps=((x.elems, out.itemsize, ACTIVATION),))
        return out

    def drop(self, x: Tensor) -> Tensor:
        """``nn.Dropout`` in training: a mask of one byte an element is kept."""
        out = self.new(x.elems, x.itemsize)
        mask = self.new(x.elems, 1)
        self.link(out, (x,), ((x.elems, x.itemsize),), saved=(mask,))
        return out

    # -- norms ----------------------------------------------------------------------------------------

    def rms_norm(self, x: Tensor, weight: Param, *, rows: int = 1, wide: bool = False) -> Tensor:
        """LlamaRMSNorm and its kin: an fp32 copy, rsqrt of the mean square, the product with the weight.

        ``wide``: the product with the weight is made in fp32 before the cast back (Gemma, OLMo 2).
        """
        if self.mode.liger or self.mode.fused:
            return self._fused_norm(x, weight, rows)
        source = x
        full = self.cast(source, FP32)
        square = self._square(full)
        variance = self._reduce(square, rows)
        del square
        inverse = self.unary(variance, saves="output")
        del variance
        normed = self.new(full.elems, FP32)
        self.link(
            normed,
            (full, inverse),
            ((full.elems, FP32), (inverse.elems, FP32)),
            saved=(inverse, full),
            temps=((full.elems, FP32, ACTIVATION),),  # grad * x before its sum over the row
        )
        del full, inverse
        if wide:
            wide_out = self.mul_weight(normed, weight)
            del normed
            return self.cast(wide_out, source.itemsize)
        return self.mul_weight(self.cast(normed, source.itemsize), weight)  # the fp32 name lives until the return

    def _square(self, x: Tensor) -> Tensor:
        """``x.pow(2)``; its backward grad * (2 * x.pow(1)) holds two temporaries."""
        out = self.new(x.elems, x.itemsize)
        temp = (x.elems, x.itemsize, ACTIVATION)
        self.link(out, (x,), ((x.elems, x.itemsize),), saved=(x,), temps=(temp, temp))
        return out

    def _reduce(self, x: Tensor, rows: int) -> Tensor:
        out = self.new((0, rows, 0), FP32)
        self.link(out, (x,), ((x.elems, FP32),))  # the expanded gradient becomes real in pow's backward
        return out

    def _fused_norm(self, x: Tensor, weight: Param, rows: int) -> Tensor:
        """Liger's (and the Unsloth-derived) RMSNorm: keeps its input and one fp32 number a row; dX overwrites dY."""
        out = self.new(x.elems, x.itemsize)
        inverse = self.new((0, rows, 0), FP32)
        grad_w: Out = ((weight.count, 0, 0), weight.itemsize) if weight.trained else None
        self.link(out, (x, weight), (PASS, grad_w), saved=(x, inverse))
        return out

    def layer_norm(self, x: Tensor, weight: Param | None, bias: Param | None) -> Tensor:
        """``F.layer_norm``: keeps its input, mean and rstd; autocast runs it in fp32 and returns fp32."""
        if self.mode.autocast:
            x = self.cast(x, FP32)
        out = self.new(x.elems, x.itemsize)
        stats = self.new((0, 2, 0), FP32)
        grads = [((p.count, 0, 0), p.itemsize) if p is not None and p.trained else None for p in (weight, bias)]
        self.link(out, (x, weight, bias), ((x.elems, x.itemsize), *grads), saved=(x, stats))
        return out

    def written_out_norm(self, x: Tensor, weight: Param) -> Tensor:
        """CohereLayerNorm: in fp32, centred once for the variance and once more for the result; both stay."""
        full = self.cast(x, FP32)
        centred = self.scale(full)
        square = self._square(centred)
        del centred
        inverse = self.unary(self._reduce(square, 1), saves="output")
        del square
        centred = self.scale(full)
        normed = self.new(full.elems, FP32)
        self.link(
            normed, (centred, inverse), ((full.elems, FP32), (inverse.elems, FP32)), saved=(inverse, centred),
            temps=((full.elems, FP32, ACTIVATION),),
        )  # fmt: skip
        del centred, inverse, full
        return self.cast(self.mul_weight(normed, weight), x.itemsize)

    def clone(self, x: Tensor) -> Tensor:
        """A copy of the same dtype; its gradient passes through."""
        out = self.new(x.elems, x.itemsize)
        self.link(out, (x,), (PASS,))
        return out

    def remember(self, x: Tensor) -> Tensor:
        """A copy into the key-value cache, which the model's outputs keep alive; its gradient passes through."""
        out = self.new(x.elems, x.itemsize)
        self.link(out, (x,), (PASS,), saved=(out,))
        return out

    # -- positions ------------------------------------------------------------------------------------

    def rotate(self, x: Tensor, *, rotated: Elems | None = None, table: int = 0) -> Tensor:
        """``apply_rotary_pos_emb`` for one of q and k: x*cos + rotate_half(x)*sin; cos and sin carry no gradient.

        ``table`` is the item size of cos and sin (that of the residual stream). ``rotated`` is given where only
        part of each head turns: the rest is cut off and concatenated again.
        """
        if self.mode.compiled:
            return self.scale(x)
        if self.mode.liger or self.mode.fused:
            return self._rotate_in_place(x)
        part = x
        if rotated is not None and rotated != x.elems:
            part = self._narrow(x, rotated)
        turned = self._rotate_all(part, max(part.itemsize, table))
        if part is x:
            return turned
        out = self.new(x.elems, turned.itemsize)
        self.link(out, (turned, x), (PASS, PASS))
        return out

    def _rotate_all(self, x: Tensor, itemsize: int) -> Tensor:
        straight = self.new(x.elems, itemsize)
        self.link(straight, (x,), ((x.elems, x.itemsize),))
        half = self.new(_half(x.elems), x.itemsize)  # -x2
        crossed = self.new(x.elems, x.itemsize)  # cat((-x2, x1))
        del half
        self.link(crossed, (x,), ((x.elems, x.itemsize),), temps=((x.elems, x.itemsize, ACTIVATION),))
        turned = self.new(x.elems, itemsize)
        self.link(turned, (crossed,), ((x.elems, x.itemsize),))
        del crossed
        return self.add(straight, turned)

    def _rotate_in_place(self, x: Tensor) -> Tensor:
        out = self.view(x)
        self.link(out, (x,), (PASS,))
        return out

    def _narrow(self, x: Tensor, elems: Elems) -> Tensor:
        """A view of part of x; its backward fills a whole tensor of zeros."""
        part = self.view(x, elems)
        self.link(part, (x,), ((x.elems, x.itemsize),))
        return part

    def split(self, x: Tensor, widths: tuple[int, ...]) -> list[Tensor]:
        """``x.split``/``chunk``: views; backward concatenates all gradients once."""
        parts = [self.view(x, (0, width, 0)) for width in widths]
        self.link(parts, (x,), ((x.elems, x.itemsize),))
        return parts

    def slices(self, x: Tensor, widths: tuple[int, ...]) -> list[Tensor]:
        """``x[..., a:b]``: views; the backward of each one fills a whole tensor of zeros."""
        return [self._narrow(x, (0, width, 0)) for width in widths]


def _half(elems: Elems) -> Elems:
    return (elems[0] // 2, elems[1] // 2, elems[2] // 2)
