"""The GPUs: there, free enough, able to do what is asked, joined as the plan counts on. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from planner.hardware.machine import Gpu
from planner.hardware.observed import held_by
from planner.memory.result import judge
from planner.run.checks.records import Need, Surroundings, failed, passed, warned
from planner.run.records import Check
from planner.units import show_gib

# FlashAttention 2 needs Ampere or newer. Source: github.com/Dao-AILab/flash-attention, README, requirements.
FLASH_CAPABILITY = (8, 0)
SLOWER = 0.8  # links below this part of what was counted on show in the time of a step
AS_GIGA = 1e9


def cards(need: Need, here: Surroundings) -> Iterator[Check]:
    """Presence, memory, capabilities and links, as far as they can be asked."""
    if need.on_cpu:
        yield from _on_cpu(need)
        return
    if need.vendor != "nvidia":
        yield warned("GPUs", f"{need.vendor} cards are not asked: what is free on them is not known")
        return
    yield _presence(need, here)
    used = here.machine.gpus[: need.ranks]
    yield from (_memory(gpu, need, here) for gpu in used)
    yield from _capability(need, used)
    if need.ranks > 1 and len(used) == need.ranks:
        yield _links(need, here)


def _on_cpu(need: Need) -> Iterator[Check]:
    yield passed("GPUs", "not used: the settings say that it runs on the CPU")
    if need.setup.liger_kernel:
        yield warned("kernels", "Liger's kernels need a GPU, and this runs on the CPU", "turn liger_kernel off")


def _presence(need: Need, here: Surroundings) -> Check:
    gpus, ranks = here.machine.gpus, need.ranks
    if len(gpus) < ranks:
        return failed("GPUs", *_too_few(need, here))
    if ranks == 1 and len(gpus) > 1:
        several = f"CUDA_VISIBLE_DEVICES={here.visible} shows {len(gpus)} GPUs to a run on one, which trainers refuse"
        return failed("GPUs", several, f"set CUDA_VISIBLE_DEVICES={gpus[0].index}")
    planned = need.planned.gpus
    for gpu, plan in zip(gpus, planned, strict=False):
        if gpu.kind and plan.kind and gpu.kind.id != plan.kind.id:
            sentence = f"{_place(gpu)} is not the {plan.kind.name} that the figures are for"
            return warned("GPUs", sentence, "plan again on this machine, without --gpus")
    names = sorted({gpu.kind.name if gpu.kind else gpu.name for gpu in gpus[:ranks]})
    return passed("GPUs", f"{', '.join(str(gpu.index) for gpu in gpus[:ranks])}: {', '.join(names)}" + _chosen(here))


def _too_few(need: Need, here: Surroundings) -> tuple[str, str]:
    found, ranks = len(here.machine.gpus), need.ranks
    if here.machine.driver is None:
        return (
            f"no NVIDIA driver answers here, and the plan is for {_count(ranks)}",
            "run it on the machine with the GPUs",
        )
    if here.visible is not None:
        sentence = f"CUDA_VISIBLE_DEVICES={here.visible!r} leaves {_count(found)}, and {_processes(ranks)} will start"
        return sentence, f"name {_count(ranks)} in it, or leave it unset"
    sentence = f"the plan takes GPU {', '.join(need.devices)}, and of these {_count(found)} can be used here"
    return sentence, "plan again on this machine, without --gpus"


def _chosen(here: Surroundings) -> str:
    return "" if here.visible is None else f" (CUDA_VISIBLE_DEVICES={here.visible})"


def _memory(gpu: Gpu, need: Need, here: Surroundings) -> Check:
    """Free memory now against what the estimate requires."""
    name, required = f"gpu {gpu.index}", need.estimate.required_bytes
    if gpu.free_bytes is None:
        return warned(name, f"the driver does not tell how much is free; {show_gib(required)} are required")
    sentence = f"{show_gib(gpu.free_bytes)} free, {show_gib(required)} required"
    verdict = judge(
        allocated_bytes=need.estimate.allocated_bytes,
        context_bytes=need.estimate.context_bytes,
        required_bytes=required,
        capacity_bytes=gpu.free_bytes,
    )
    if verdict == "fits":
        return passed(name, sentence)
    used = (gpu.total_bytes or gpu.free_bytes) - gpu.free_bytes
    sentence += f"; {show_gib(used)} {held_by(gpu, used)}" if used else ""
    if verdict == "uncertain":
        return warned(name, f"{sentence}: it may run out", _make_room(gpu, need, here))
    return failed(name, sentence, _make_room(gpu, need, here))


def _make_room(gpu: Gpu, need: Need, here: Surroundings) -> str:
    """Other cards where enough of them are free, else whom to end, else a smaller plan."""
    required = need.estimate.required_bytes
    roomy = [each for each in (*here.machine.gpus, *here.others) if (each.free_bytes or 0) >= required]
    if here.visible is None and len(roomy) >= need.ranks:
        choice = ",".join(sorted(str(each.uuid if each.mig else each.index) for each in roomy[: need.ranks]))
        return f"take the GPUs that are free: CUDA_VISIBLE_DEVICES={choice}"
    if gpu.holders:
        who = ", ".join(str(holder.pid) for holder in gpu.holders)
        return f"end what holds it (process {who}) where it is yours, or plan again for the memory that is free"
    return "plan again on this machine, without --gpus: it then counts on the memory that is free"


def _capability(need: Need, gpus: tuple[Gpu, ...]) -> Iterator[Check]:
    """What the kernels ask of every card: bf16 arithmetic, FlashAttention 2."""
    setup = need.setup
    without = next((gpu for gpu in gpus if gpu.has_bf16 is False), None)
    if setup.compute_dtype == "bf16" and without is not None:
        yield failed("precision", f"{_place(without)} has no bf16", "plan again with --compute-dtype fp16")
    elif setup.compute_dtype == "bf16" and gpus:
        known = all(gpu.has_bf16 for gpu in gpus)
        yield (
            passed("precision", "bf16 in hardware")
            if known
            else warned("precision", "whether it has bf16 is not known")
        )
    if setup.attention == "flash_attention_2":
        old = next((gpu for gpu in gpus if gpu.compute_capability and gpu.compute_capability < FLASH_CAPABILITY), None)
        if old is not None:
            yield failed(
                "attention", f"{_place(old)} is too old for FlashAttention 2", "plan again with --attention sdpa"
            )


def _links(need: Need, here: Surroundings) -> Check:
    """Whether the GPUs reach each other as fast as the predicted speed counts on."""
    links, planned, found = here.machine.links, need.counted_link_bytes_per_s, here.link_bytes_per_s
    if here.links_off:
        said = f"{', '.join(here.links_off)} in the environment keeps NCCL off its fast paths"
        return warned("links", said, "unset it unless NCCL failed without it")
    if planned and found and found < SLOWER * planned:
        sentence = (
            f"the predicted speed counts on {planned / AS_GIGA:.0f} GB/s between the GPUs, and here are "
            f"{found / AS_GIGA:.0f} GB/s ({_path(links.nvlink, links.p2p)})"
        )
        return warned(
            "links", sentence, "expect longer steps, or plan again here so that the choice follows these links"
        )
    return passed("links", _path(links.nvlink, links.p2p))


def _path(nvlink: bool | None, p2p: bool | None) -> str:
    if nvlink:
        return "NVLink between the GPUs"
    if p2p is False:
        return "no peer-to-peer: NCCL goes through host memory"
    return "peer-to-peer over PCIe" if p2p else "how the GPUs reach each other is not told"


def _place(gpu: Gpu) -> str:
    version = f", compute capability {'.'.join(map(str, gpu.compute_capability))}" if gpu.compute_capability else ""
    return f"GPU {gpu.index} ({gpu.name}{version})"


def _count(number: int) -> str:
    return f"{number} GPU" if number == 1 else f"{number} GPUs"


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"
