"""The loss as a script: which copies of the logits are born and freed in which order, by the code that makes them.

The counterpart of ``loss.py``, whose worst moments these scripts reach. Sources as there. ``shifted`` copies leave out
the last token of every sequence: they differ from the logits in size, and the allocator cannot exchange them freely.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.memory.loss import loss_bytes
from planner.memory.regime import bytes_of
from planner.memory.stretches import Step

Script = tuple[tuple[str, int | None], ...]
LAST = "outputs"  # what lives until the end of the step's backward pass


@dataclass(frozen=True)
class LossScript:
    """Lines of (name, bytes) for a birth and (name, None) for a death; ``gradient`` is that of the logits.

    ``gradients`` name weight gradients that stay.
    """

    forward: Script
    backward: Script
    gradients: tuple[str, ...] = ()


def loss_script(step: Step, tokens: int) -> LossScript:
    """The script of this step's loss path for ``tokens`` of one micro batch."""
    regime, setup = step.regime, step.setup
    if regime.loss == "fused_linear" and setup.stage in ("pt", "sft"):
        return _fused_linear(step, tokens)
    build = SCRIPTS.get(regime.loss)
    if build is None or (regime.compute == "fp32" and build is not _loop):
        return _by_curve(step, tokens)
    forward, backward = build(step, tokens)
    head = step.spec.vocab * step.spec.hidden * bytes_of(regime.gradient)
    if step.parts.head_trained:
        backward = (*backward, ("head", head))
    return LossScript(forward, backward, ("head",) if step.parts.head_trained else ())


def _sizes(step: Step, tokens: int) -> tuple[int, int, int, bool]:
    """Bytes of 16-bit logits, of fp32 ones, of fp32 ones without the last tokens, and whether that is a view."""
    setup, vocab = step.setup, step.spec.vocab
    sequences = setup.micro_batch_size * setup.sequences_per_sample
    return 2 * vocab * tokens, 4 * vocab * tokens, 4 * vocab * (tokens - sequences), sequences == 1


def _hf_4_49(step: Step, tokens: int) -> tuple[Script, Script]:
    half, full, _, _ = _sizes(step, tokens)
    forward = (("logits", half), ("float", full), ("softmax", full), ("float", None), ("logits", None))
    backward = (
        ("picked", full), ("wide", full), ("picked", None), ("softmax", None), ("gradient", half), ("wide", None),
    )  # fmt: skip
    return forward, backward


def _loop(step: Step, tokens: int) -> tuple[Script, Script]:
    """As transformers 4.49, but the loop's ``outputs`` hold the logits until the step is over (``LAST``)."""
    half, full, _, _ = _sizes(step, tokens)
    wide = step.regime.head == "fp32" or step.regime.compute == "fp32"  # then .float() copies nothing
    copied: Script = () if wide else (("float", full),)
    forward = (
        (LAST, full if wide else half), *copied, ("softmax", full), *((name, None) for name, _ in copied),
    )  # fmt: skip
    narrowed: Script = () if wide else (("gradient", half), ("wide", None))
    backward = (("picked", full), ("gradient" if wide else "wide", full), ("picked", None), ("softmax", None))
    return forward, (*backward, *narrowed)


def _hf_4_48(step: Step, tokens: int) -> tuple[Script, Script]:
    half, full, shifted, viewed = _sizes(step, tokens)
    copy: Script = () if viewed else (("shift", shifted),)
    forward = (
        ("logits", half), ("float", full), *copy, ("softmax", shifted),
        *((n, None) for n, _ in copy), ("float", None), ("logits", None),
    )  # fmt: skip
    return forward, _shifted_backward(half, full, shifted)


def _hf_4_45(step: Step, tokens: int) -> tuple[Script, Script]:
    half, full, shifted, viewed = _sizes(step, tokens)
    copy: Script = () if viewed else (("shift", shifted),)
    forward = (
        ("half", half), ("logits", full), ("half", None), *copy, ("softmax", shifted),
        *((n, None) for n, _ in copy), ("logits", None),
    )  # fmt: skip
    return forward, _shifted_backward(half, full, shifted)


def _in_model(step: Step, tokens: int) -> tuple[Script, Script]:
    """16-bit copies; under autocast the likelihood reads an fp32 one, and the outputs are converted before they go."""
    half, full, shifted, viewed = _sizes(step, tokens)
    copy: Script = () if viewed else (("shift", shifted // 2),)
    gone: Script = tuple((name, None) for name, _ in copy)
    forward: Script = (("logits", half), *copy, ("softmax", shifted // 2))
    if step.regime.autocast is None:
        backward: Script = (("picked", shifted // 2), ("narrow", shifted // 2), ("picked", None))
        forward = (*forward, *gone, ("logits", None))
    else:
        forward = (*forward, ("wide", shifted), *gone, ("converted", full), ("logits", None), ("converted", None))
        backward = (("picked", shifted), ("wide", None), ("half", shifted // 2), ("picked", None))
        backward = (*backward, ("narrow", shifted // 2), ("half", None))
    return forward, (*backward, ("softmax", None), ("gradient", half), ("narrow", None))


def _shifted_backward(half: int, full: int, shifted: int) -> Script:
    return (
        ("picked", shifted), ("wide", shifted), ("picked", None), ("softmax", None),
        ("unshifted", full), ("wide", None), ("gradient", half), ("unshifted", None),
    )  # fmt: skip


def _fused(step: Step, tokens: int) -> tuple[Script, Script]:
    """The kernel writes the gradient over the shifted logits."""
    half, full, shifted, _ = _sizes(step, tokens)
    held = loss_bytes(step.setup, step.spec, step.regime, tokens, head_trained=False).forward > 2 * full
    kept: Script = (("logits", None),) if held else ()
    early: Script = () if held else (("logits", None),)
    forward = (("logits", half), ("float", full), *early, ("shift", shifted), ("float", None), *kept)
    backward = (("unshifted", full), ("shift", None), ("gradient", half), ("unshifted", None))
    return forward, backward


def _fused_linear(step: Step, tokens: int) -> LossScript:
    spec, regime = step.spec, step.regime
    chunks = -(-spec.vocab // spec.hidden)
    wanted = -(-tokens // chunks)
    chunk = min(tokens, 1 << (wanted - 1).bit_length())
    width = bytes_of(regime.compute)
    trained = step.parts.head_trained
    lines: list[tuple[str, int | None]] = [("gradient", tokens * spec.hidden * width)]
    if trained:
        lines.append(("head", spec.vocab * spec.hidden * bytes_of(regime.head)))
    for _ in range(-(-tokens // chunk)):
        lines += [("chunk", chunk * spec.vocab * width), ("copy", chunk * spec.vocab * width)]
        if trained and bytes_of(regime.head) != width:
            lines += [("product", spec.vocab * spec.hidden * width), ("product", None)]
        lines += [("copy", None), ("chunk", None)]
    return LossScript(tuple(lines), (), ("head",) if trained else ())


def _by_curve(step: Step, tokens: int) -> LossScript:
    """Paths without a script of their own: pieces of at most 4 bytes a logit up to the path's worst moments."""
    loss = loss_bytes(step.setup, step.spec, step.regime, tokens, head_trained=step.parts.head_trained)
    piece = 4 * step.spec.vocab * tokens
    forward = _pieces("f", loss.forward, piece)
    held = forward[-1:]
    backward = _pieces("b", max(0, loss.backward - sum(size for _, size in held)), piece)
    ends: Script = (*((n, None) for n, _ in backward), *((n, None) for n, _ in held))
    gradient: Script = (("gradient", loss.head),) if loss.head else ()
    names = ("head",) if step.parts.head_trained else ()
    head = tuple((n, step.spec.vocab * step.spec.hidden * bytes_of(step.regime.gradient)) for n in names)
    return LossScript((*forward, *((n, None) for n, _ in forward[:-1])), (*backward, *ends, *gradient, *head), names)


def _pieces(name: str, total: int, piece: int) -> tuple[tuple[str, int], ...]:
    sizes = [piece] * (total // piece) if piece else []
    if not piece or total % piece:
        sizes.insert(0, total % piece if piece else total)
    return tuple((f"{name}{number}", size) for number, size in enumerate(sizes))


SCRIPTS: dict[str, Callable[[Step, int], tuple[Script, Script]]] = {
    "hf_4_49": _hf_4_49,
    "hf_4_48": _hf_4_48,
    "hf_4_45": _hf_4_45,
    "in_model": _in_model,
    "loop": _loop,
    "fused": _fused,
}
