"""What an estimate takes for granted, and what its reader should know: plain sentences."""

from __future__ import annotations

from planner.hardware.machine import Machine
from planner.memory.generation import MAX_COMPLETION_TOKENS, NUM_GENERATIONS, generations, rollout_of
from planner.memory.megatron import is_megatron
from planner.memory.models import named
from planner.memory.overhead import Overheads
from planner.memory.regime import Regime
from planner.model.modules import block_linears
from planner.model.spec import ModelSpec
from planner.training import TrainingSetup
from planner.units import show_gib


def assumptions_of(setup: TrainingSetup, spec: ModelSpec, machine: Machine, regime: Regime) -> tuple[str, ...]:
    """Facts that the setup leaves open and that were filled in."""
    held = regime.adapter if setup.is_adapter else regime.trained
    loops = "under autocast" if regime.autocast else "without autocast"
    said = [f"{setup.engine} holds trained weights in {held}, computes in {regime.compute} {loops}"]
    said += machine.assumptions
    if setup.engine == "trl" and setup.is_adapter and setup.param_dtype is None and regime.frozen == "fp32":
        said.append("trl loads the frozen base in fp32 by itself: --param-dtype bf16 with --method lora halves it")
    if spec.is_moe:
        said.append("experts are used evenly: each sees tokens x experts per token / experts")
    if any(run.block.attention.kind == "linear" for run in spec.runs):
        said.append(
            "the gated delta rule is priced in torch operations, as transformers runs it without "
            "flash-linear-attention, whose kernels need less"
        )
    if not machine.gpus:
        said.append("no GPU is known, so there is no capacity to compare with")
    if setup.stage == "ppo":
        said.append("generation is priced without its key-value cache")
    if setup.stage == "grpo":
        said += _generation(setup, machine)
    return tuple(dict.fromkeys(said))


def _generation(setup: TrainingSetup, machine: Machine) -> tuple[str, ...]:
    """What GRPO needs beyond a setup's fields: TRL's own defaults, said."""
    rollout = rollout_of(setup)
    several = setup.tensor_parallel * setup.pipeline_parallel * setup.context_parallel
    number = generations(rollout.sequences * max(1, machine.world_size // several))
    group = "no whole group of completions" if number is None else f"num_generations {number}"
    why = "" if number == NUM_GENERATIONS else f"TRL's default of {NUM_GENERATIONS} does not divide the batch; "
    return (
        f"grpo: {group}, max_completion_length {rollout.completion_tokens} of the {setup.seq_len} tokens of a sample, "
        f"{rollout.prompt_tokens} for its prompt ({why}TRL's defaults are {NUM_GENERATIONS} and "
        f"{MAX_COMPLETION_TOKENS}, here at most half of the length)",
        f"grpo: transformers generates for the {rollout.sequences} sequences of a GPU's step at once (TRL's "
        "steps_per_generation is the accumulation), and that counts as the forward phase; rewards are functions and "
        "beta is 0: no reward model, no reference",
    )


CLASSES = {
    "traced": "one GPU or DDP under transformers",
    "moe": "mixtures of experts on one GPU",
    "rare": "settings that no published run covers",
    "generating": "GRPO, which no published run covers",
    "sharded": "FSDP1 under transformers",
    "rare_sharded": "sharded settings that no published run covers",
    "moe_sharded": "mixtures of experts under FSDP1",
    "remote_code": "models with modelling code of their own",
    "loop": "engines with a training loop of their own on one GPU",
    "litgpt": "litgpt on one GPU",
    "loop_sharded": "engines with a training loop of their own on several GPUs",
    "foreign": "engines without rules or measured runs here",
    "foreign_sharded": "engines without rules or measured runs here, on several GPUs",
    "assumed": "architectures without rules here",
    "assumed_sharded": "architectures without rules here, on several GPUs",
}


def width_of(over: Overheads, coverage: float) -> str:
    """Why ``required_bytes`` lies where it does: the class of the residuals, how many there are, and what is added."""
    tested = f"{over.rows} published runs of {over.models} models" if over.rows else "no published run, a floor alone"
    lost = show_gib(over.fragmented_bytes, digits=2)
    outside = show_gib(over.context_bytes + over.nccl_bytes, digits=2)
    return (
        f"required at {coverage:.0%} holds {over.margin:.1%} above allocated memory ({CLASSES[over.trust]}: {tested}), "
        f"{lost} lost to fragments beside activations, and {outside} of context and NCCL"
    )


def warnings_of(setup: TrainingSetup, spec: ModelSpec, machine: Machine, regime: Regime) -> tuple[str, ...]:
    """What may make the run differ from the estimate."""
    said = list(machine.warnings)
    if not regime.known_engine:
        said.append(f"engine {setup.engine!r} has no rules of its own here and is priced as plain transformers")
    if setup.torch_compile:
        said.append("torch.compile is priced as fused norms and products; what else it fuses makes the step smaller")
    if spec.is_moe and regime.stacked_experts and regime.quantized in ("nf4", "int8"):
        said.append(
            "transformers 5 holds experts as stacked parameters, which bitsandbytes leaves alone: they stay in 16 bit"
        )
    if setup.is_adapter and setup.lora_target == "all" and _has_stacked_experts(spec, regime):
        said.append(
            "experts are stacked parameters here, which adapters do not reach: lora_target all trains attention and "
            "what else is a Linear module (transformers 4 has experts as modules where the engine accepts it)"
        )
    if spec.remote_code:
        said.append(f"{spec.id} runs its own modelling code, which was not traced; a Llama-like block is priced")
    if spec.assumed_blocks:
        said.append(
            f"the architecture of {spec.id} has no rules here and is priced with Llama's blocks: recurrent or "
            "state-space layers need up to twice as much without gradient checkpointing, and experts are not told apart"
        )
    if spec.verified is None and not spec.local_path:
        said.append(f"the parameter count of {spec.id} could not be verified")
    if setup.stage in ("kto", "ppo", "grpo"):
        said.append(f"stage {setup.stage} is priced from its source code; no published peak was available to test it")
    if setup.stage == "grpo":
        said.append(
            "the key-value cache grows into new blocks token by token: where there is room, the caching allocator may "
            "reserve several times its size, which it gives back when memory runs short"
        )
    for name in ("ref_model", "reward_model"):
        other = getattr(setup, name)
        if other and named(other) is None:
            said.append(f"{name} {other} is not known here: it is priced as if it were as large as the model")
    if is_megatron(setup):
        said.append(
            "the Megatron adapter was not run here: its states are Megatron-core's own accounting, its layers are "
            "priced as transformers', and what sequence parallelism divides within them is counted whole"
        )
    for name in ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel"):
        if getattr(setup, name) > 1:
            said.append(f"{name} is priced by dividing the model; no published peak was available to test it")
    return tuple(dict.fromkeys(said))


def _has_stacked_experts(spec: ModelSpec, regime: Regime) -> bool:
    blocks = (run.block for run in spec.runs if run.block.moe is not None)
    linears = (each for block in blocks for each in block_linears(spec, block, stacked_experts=regime.stacked_experts))
    return any(each.stacked and each.role.startswith("expert_") for each in linears)
