"""How LLaMA-Factory is started on a folder's files: its own command, accelerate, deepspeed or torchrun.

Forms checked by running them: LLaMA-Factory 0.9.5 (``launcher.py``), deepspeed 0.19, accelerate 1.11.
"""

from __future__ import annotations

from planner.targets.context import EmitContext
from planner.targets.launchers import (
    NODE_WORDS,
    Launch,
    Launcher,
    Ref,
    Variable,
    Word,
    accelerate_words,
    place_environment,
    torchrun_words,
)
from planner.targets.llamafactory_settle import FILE_NAME
from planner.training import FSDP, ZERO, TrainingSetup

MODULE = ("-m", "llamafactory.launcher", FILE_NAME)


def launch(setup: TrainingSetup, context: EmitContext) -> Launch:
    """The launch of a settled setup: accelerate for FSDP, LLaMA-Factory's own command for the rest."""
    return Launch(
        chosen=_chosen(setup, context),
        others=_others(setup, context),
        environment=(*place_environment(context), *_own_environment(setup, context)),
        remedy="install LLaMA-Factory: pip install llamafactory==0.9.5",
        alone="No other launcher passes FSDP's settings on to LLaMA-Factory.",
        override="max_steps=10",
    )


def _chosen(setup: TrainingSetup, context: EmitContext) -> Launcher:
    if setup.parallelism in FSDP:
        note = "FSDP's settings reach the trainer through accelerate's launcher only"
        return Launcher(name="accelerate", words=accelerate_words(setup, context, MODULE), note=note)
    if context.world_size > 1 or setup.parallelism in ZERO:
        note = "it starts torchrun with one process a GPU, and sets the allocator for them"
    else:
        note = "one GPU needs no launcher beside LLaMA-Factory's own command"
    return Launcher(name="llamafactory-cli", words=("llamafactory-cli", "train", FILE_NAME), note=note)


def _others(setup: TrainingSetup, context: EmitContext) -> tuple[Launcher, ...]:
    """The remaining launchers that run the same files, each in the form that works."""
    if setup.parallelism in FSDP:
        return ()
    note = "where torchrun is started by hand or by Slurm"
    torchrun = Launcher(name="torchrun", words=torchrun_words(context, MODULE), note=note)
    note = "--no_local_rank keeps the YAML the first argument; the GPUs are those of CUDA_VISIBLE_DEVICES"
    if context.nodes > 1:
        note = f"hostfile has a line `<address> slots={context.gpus_per_node}` for every machine, the first one first"
    deepspeed = Launcher(name="deepspeed", words=_deepspeed(context), note=note)
    if context.world_size == 1:
        return (torchrun, deepspeed) if setup.parallelism in ZERO else (torchrun,)
    note = "where accelerate is the house's launcher"
    words = accelerate_words(setup, context, MODULE)
    return (Launcher(name="accelerate", words=words, note=note), deepspeed, torchrun)


def _deepspeed(context: EmitContext) -> tuple[Word, ...]:
    node: tuple[Word, ...] = ()
    if context.nodes > 1:
        node = ("--hostfile", "hostfile", "--no_ssh", "--node_rank", Ref("NODE_RANK"), *NODE_WORDS)
    return ("deepspeed", "--no_local_rank", *node, "--module", "llamafactory.launcher", FILE_NAME)


def _own_environment(setup: TrainingSetup, context: EmitContext) -> tuple[Variable, ...]:
    found = []
    if context.vendor != "ascend":
        found.append(Variable(name="RECORD_VRAM", value="1", reason="the log then states the memory that was used"))
    if not context.expandable_segments:
        found.append(Variable(name="OPTIM_TORCH", value="0", reason="the plan leaves the allocator as it is"))
    if setup.parallelism in FSDP:
        return tuple(found)
    found.append(Variable(name="NNODES", value=str(context.nodes), reason="machines in the run"))
    found.append(Variable(name="NPROC_PER_NODE", value=str(context.gpus_per_node), reason="one process a GPU"))
    if context.world_size > 1 or setup.parallelism in ZERO:
        why = "DeepSpeed needs a launcher even on one GPU" if context.world_size == 1 else "start through torchrun"
        found.append(Variable(name="FORCE_TORCHRUN", value="1", reason=why))
    return tuple(found)
