"""Tokens per second of a setup: a roofline of arithmetic, memory traffic, launches and collectives.

Its constants are in rules/speed.toml. How far it is off against published throughputs, also against those left out
when the constants were fitted, is what tools/calibrate_speed.py prints. Other cards are read off datasheets, untested.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.hardware.machine import Gpu, Machine
from planner.memory.kernels import sdpa_in_tiles
from planner.model.spec import ModelSpec
from planner.plan.plan import Speed
from planner.speed.exchange import expert_traffic_s, ring_traffic_s, tensor_traffic_s
from planner.speed.links import Paths, paths
from planner.speed.rates import Rates, shipped
from planner.speed.work import TokenWork, recomputed, token_work
from planner.training import OPTIMIZER_OFFLOADS, PARAM_OFFLOADS, TrainingSetup

GENERATING = frozenset({"ppo", "grpo"})
# DeepSpeed swaps fp32 master and both moments in and out of NVMe at a step, and the fp32 gradient out and in:
# runtime/swap_tensor/partitioned_optimizer_swapper.py.
SWAPPED_BYTES = 32.0
WITH_REFERENCE = frozenset({"dpo", "kto"})  # a second forward pass: the reference model's, or without adapters


@dataclass(eq=False, repr=False)
class _Card:
    """``flops_per_s`` as matrix products of its generation reach them relative to Ampere's; ``attention`` likewise of
    fused attention, relative to that.
    """

    flops_per_s: float
    bytes_per_s: float
    attention: float
    assumed: bool


def predict_speed(setup: TrainingSetup, spec: ModelSpec, machine: Machine, rates: Rates | None = None) -> Speed | None:
    """Predicted training throughput over all GPUs, in tokens (padding included) per second.

    None where the card is known and its throughput in the setup's dtype is not, and for stages that generate text
    (ppo, grpo), most of whose time no figure here describes. For an unnamed card the interval spans what cards of
    its kind differ by.
    """
    rates = rates or shipped()
    card = _card(setup, machine, rates)
    if card is None or setup.stage in GENERATING:
        return None
    if setup.attention == "sdpa" and not sdpa_in_tiles(setup, spec, machine):
        setup = setup.but(attention="eager")  # its math path stores and reads every score as eager attention does
    way = paths(machine, rates)
    work = token_work(setup, spec, rates)
    parts = _step_parts(setup, spec, machine, card, way, work, rates)
    seconds = sum(parts.values())
    ranks = data_ranks(setup, machine)
    tokens = setup.seq_len * setup.micro_batch_size * setup.gradient_accumulation_steps * ranks
    rate = tokens * setup.sequences_per_sample / seconds
    worst = max(parts, key=lambda name: parts[name])
    spread = rates.spread["unnamed" if card.assumed else "known"]
    if way.assumed and worst == "links between GPUs":
        spread = max(spread, rates.spread["assumed_links"])
    if parts["kernel launches"] > 0.25 * seconds:
        spread = max(spread, rates.spread["launches"])
    return Speed(
        tokens_per_s=rate,
        low_tokens_per_s=rate / spread,
        high_tokens_per_s=rate * spread,
        step_seconds=seconds,
        bound_by=worst + (" (the card is unnamed: its speed is assumed)" if card.assumed else ""),
    )


def assumptions(machine: Machine) -> str:
    """One sentence: how far the predicted speed is to be believed, and what it takes for granted."""
    rates = shipped()
    assumed = paths(machine, rates).assumed if machine.world_size > 1 else ()
    said = f", assuming {' and '.join(assumed)}" if assumed else ""
    if machine.smallest.kind is None:
        assumed_tflops = rates.unnamed["flops_per_s"] / 1e12
        return f"speeds are of a card with {assumed_tflops:.0f} TFLOP/s, because this one is unnamed{said}"
    return f"speeds are predicted from datasheets, to about {rates.spread['known'] - 1:.0%}{said}"


def data_ranks(setup: TrainingSetup, machine: Machine) -> int:
    """Ranks that read different data."""
    shared = setup.tensor_parallel * setup.pipeline_parallel * setup.context_parallel
    return max(1, machine.world_size // shared)


def _card(setup: TrainingSetup, machine: Machine, rates: Rates) -> _Card | None:
    """The slowest card: ranks wait for each other. None if any is known and its throughput is not."""
    kinds = {gpu.kind.id: gpu for gpu in machine.gpus if gpu.kind is not None}
    if len(kinds) == 0 or any(gpu.kind is None for gpu in machine.gpus):
        part = rates.unnamed["fp32_part"] if setup.compute_dtype == "fp32" else 1.0
        return _Card(rates.unnamed["flops_per_s"] * part, rates.unnamed["bytes_per_s"], 1.0, assumed=True)
    cards = [_named(setup, gpu, rates) for gpu in kinds.values()]
    known = [card for card in cards if card is not None]
    if len(known) < len(cards):
        return None
    slowest = min(known, key=lambda card: card.flops_per_s)
    return _Card(slowest.flops_per_s, min(card.bytes_per_s for card in known), slowest.attention, assumed=False)


def _named(setup: TrainingSetup, gpu: Gpu, rates: Rates) -> _Card | None:
    kind = gpu.kind
    if kind is None or kind.bandwidth_bytes_per_s is None:
        return None
    dtype = setup.compute_dtype or ("bf16" if "bf16" in kind.dense_tflops else "fp16")
    rate = kind.dense_tflops.get("tf32" if dtype == "fp32" else dtype) or kind.dense_tflops.get("fp32")
    if rate is None:
        return None
    named = kind.architecture or "other"
    generation = named if named in rates.generation else "other"
    reached = rates.generation[generation]
    attention = rates.attention_generation[generation] / reached
    return _Card(rate * 1e12 * reached, kind.bandwidth_bytes_per_s, attention, assumed=False)


def _step_parts(
    setup: TrainingSetup, spec: ModelSpec, machine: Machine, card: _Card, way: Paths, work: TokenWork, rates: Rates
) -> dict[str, float]:
    """Seconds of one optimizer step by what they are spent on."""
    steps = setup.gradient_accumulation_steps
    micro = _micro_parts(setup, spec.layers, card, work, rates)
    arithmetic = micro["arithmetic"] + micro["memory traffic"]
    launches = max(0.0, micro["kernel launches"] - arithmetic)
    hidden = rates.overlap * (arithmetic + launches)
    beside = _micro_traffic_s(setup, spec, machine, way, work) + ring_traffic_s(setup, spec, machine, rates)
    links = _exposed_s(beside, hidden, rates) + _collectives_s(setup, spec, machine, rates)
    links += tensor_traffic_s(setup, spec, machine, rates) + expert_traffic_s(setup, spec, machine, rates)
    filled = steps + setup.pipeline_parallel - 1  # a stage idles while the others fill and drain (GPipe, 1F1B)
    once = _step_traffic_s(setup, machine, way, work)
    if _parallelism(setup, machine) == "ddp":  # reduced during the last backward pass; ZeRO gathers when all is done
        once = _exposed_s(once, hidden, rates)
    return {
        "arithmetic": filled * micro["arithmetic"],
        "memory traffic": filled * micro["memory traffic"],
        "kernel launches": filled * launches,
        "links between GPUs": filled * links + once,
        "the optimizer step": _optimizer_s(setup, machine, card, way, work, rates),
        "offload to host memory": steps * _offload_s(setup, spec, machine, way),
    }


def _exposed_s(traffic_s: float, hidden_s: float, rates: Rates) -> float:
    """What a step waits for: what backward cannot hide, and never less than a part (contention, the first layer)."""
    return max(rates.exposed * traffic_s, traffic_s - hidden_s)


def _micro_parts(setup: TrainingSetup, layers: int, card: _Card, work: TokenWork, rates: Rates) -> dict[str, float]:
    """Seconds of one forward and backward pass of a micro batch, apart from links."""
    shared = setup.tensor_parallel * setup.pipeline_parallel * setup.context_parallel
    tokens = setup.seq_len * setup.micro_batch_size * setup.sequences_per_sample / shared
    again = recomputed(setup, layers)
    reference = 1.0 if setup.stage in WITH_REFERENCE else 0.0
    flops = work.matmul_flops * (2 + work.weight_share + reference) + again * (
        work.matmul_flops - work.head_flops - work.last_flops
    )
    share = rates.eager_share if setup.attention == "eager" else rates.attention_share * card.attention
    attention = work.attention_flops * (3.5 + again) * rates.matmul_share / share
    busy = tokens / (tokens + rates.matmul["half_full_factor"] * card.flops_per_s / card.bytes_per_s)
    passes = 3 + again + reference
    moved = (work.moved_bytes * passes + work.logit_bytes) * tokens
    moved += _dequantized_bytes(setup, work) * (2 + again)
    return {
        "arithmetic": tokens * (flops + attention) / (card.flops_per_s * rates.matmul_share * busy),
        "memory traffic": moved / (card.bytes_per_s * rates.bandwidth_share),
        "kernel launches": work.kernels * (2.2 + again + reference) * rates.launch["seconds"],
    }


def _dequantized_bytes(setup: TrainingSetup, work: TokenWork) -> float:
    """Bytes moved to restore the 16-bit weights once: read packed, write and read 16 bits."""
    if setup.quantization_bit is None:
        return 0.0
    return work.linear_elements * (setup.quantization_bit / 8 + 4.0)


def _parallelism(setup: TrainingSetup, machine: Machine) -> str:
    return setup.parallelism or ("ddp" if machine.world_size > 1 else "none")


def _micro_traffic_s(setup: TrainingSetup, spec: ModelSpec, machine: Machine, way: Paths, work: TokenWork) -> float:
    """Seconds of collectives of every micro batch: gathered weights, and ZeRO's gradient reduction."""
    ranks = data_ranks(setup, machine)
    kind = _parallelism(setup, machine)
    if ranks == 1 or kind in ("none", "ddp"):
        return 0.0
    gradient = 2.0 * work.trained * (2 if kind == "zero1" else 1) / _cut(setup)
    weights = 0.0
    if kind in ("zero3", "fsdp", "fsdp2"):
        held = setup.quantization_bit / 8 if setup.quantization_bit else 2.0
        weights = 2 * held * spec.parameters / _cut(setup)
    return (weights + gradient) * (ranks - 1) / ranks / way.between_gpus


def _collectives_s(setup: TrainingSetup, spec: ModelSpec, machine: Machine, rates: Rates) -> float:
    """Seconds that collectives of a micro batch take whatever they carry: a layer has one in forward, two in backward.

    Each waits for the host to issue it and for a signal to go round the ring of all ranks.
    """
    ranks = data_ranks(setup, machine)
    if ranks == 1 or _parallelism(setup, machine) not in ("zero3", "fsdp", "fsdp2"):
        return 0.0
    return 3 * spec.layers * (rates.collective_seconds + (ranks - 1) * rates.hop_seconds)


def _cut(setup: TrainingSetup) -> int:
    """GPUs that hold different parts of the weights, apart from sharding."""
    return setup.tensor_parallel * setup.pipeline_parallel


def _step_traffic_s(setup: TrainingSetup, machine: Machine, way: Paths, work: TokenWork) -> float:
    """Seconds of collectives once per optimizer step: DDP's all-reduce, ZeRO-1/2's gather of new weights."""
    ranks = data_ranks(setup, machine)
    kind = _parallelism(setup, machine)
    if ranks == 1 or kind in ("none", "zero3", "fsdp", "fsdp2"):
        return 0.0
    held = 4.0 if setup.param_dtype != "bf16" else 2.0
    once = 2 * held if kind == "ddp" else 2.0
    return once * work.trained / _cut(setup) * (ranks - 1) / ranks / way.between_gpus


def _optimizer_s(
    setup: TrainingSetup, machine: Machine, card: _Card, way: Paths, work: TokenWork, rates: Rates
) -> float:
    """Seconds to clip and step: weights, gradients and two states are read and all but gradients written."""
    kind = _parallelism(setup, machine)
    ranks = data_ranks(setup, machine) if kind not in ("none", "ddp") else 1
    mine = work.trained / ranks / _cut(setup)
    if setup.offload in OPTIMIZER_OFFLOADS:
        on_node = mine * machine.gpus_per_node
        swapped = SWAPPED_BYTES * on_node / way.drive if setup.offload == "nvme" else 0.0
        return 28.0 * on_node / way.host_memory + 4.0 * mine / way.to_host + swapped
    held = 2.0 if setup.param_dtype == "bf16" else 4.0
    passes = 7 if setup.optimizer_in_backward else 8  # the eighth clips or scales gradients that all wait for the step
    return passes * held * _optimizer_factor(setup, rates) * mine / (card.bytes_per_s * rates.bandwidth_share)


def _optimizer_factor(setup: TrainingSetup, rates: Rates) -> float:
    """The time of a step over that of a fused one; quantized states cost more than they save (rules/speed.toml)."""
    if setup.optim.startswith("adamw_torch_") and "bit" in setup.optim:
        return float(rates.optimizer["torchao"])
    if "8bit" in setup.optim:
        return float(rates.optimizer["bitsandbytes_8bit"])
    return 1.0 if "fused" in setup.optim else rates.foreach_factor


def _offload_s(setup: TrainingSetup, spec: ModelSpec, machine: Machine, way: Paths) -> float:
    """Seconds of a micro batch that weights spend on PCIe or the drive: once in forward, once or twice back."""
    if setup.offload not in PARAM_OFFLOADS:
        return 0.0
    held = (setup.quantization_bit or 16) / 8
    mine = held * spec.parameters / data_ranks(setup, machine)
    rate = min(way.to_host, way.drive / machine.gpus_per_node) if setup.offload == "nvme" else way.to_host
    return mine * (2 + recomputed(setup, spec.layers)) / rate
