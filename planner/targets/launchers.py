"""The commands that start LLaMA-Factory on a folder's files, and the environment they need.

Forms checked by running them: README of each launcher, LLaMA-Factory 0.9.5 ``launcher.py``, deepspeed 0.19,
accelerate 1.11. Every word is an argument, never a piece of shell text; ``Ref`` names a shell variable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from planner.targets import accelerate, llamafactory
from planner.targets.context import EmitContext
from planner.targets.llamafactory_settle import ZERO
from planner.training import TrainingSetup


@dataclass(frozen=True)
class Ref:
    """A shell variable as one word of a command."""

    name: str


Word = str | Ref


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """One way to start the run: the words of its command, and when to take it."""

    name: str
    words: tuple[Word, ...]
    note: str


@dataclass(frozen=True, kw_only=True)
class Variable:
    """An environment variable. ``kind``: always this value, a value unless the caller set one, or the caller's duty."""

    name: str
    value: str
    reason: str
    kind: Literal["fixed", "default", "required"] = "fixed"


_NODE_WORDS: tuple[Word, ...] = (
    "--master_addr", Ref("MASTER_ADDR"),
    "--master_port", Ref("MASTER_PORT"),
)  # fmt: skip
_MODULE = ("-m", "llamafactory.launcher", llamafactory.FILE_NAME)


def chosen_launcher(setup: TrainingSetup, context: EmitContext) -> Launcher:
    """The launcher that the script runs: accelerate for FSDP, LLaMA-Factory's own command for the rest."""
    if setup.parallelism in ("fsdp", "fsdp2"):
        note = "FSDP's settings reach the trainer through accelerate's launcher only"
        return Launcher(name="accelerate", words=_accelerate(setup, context), note=note)
    if context.world_size > 1 or setup.parallelism in ZERO:
        note = "it starts torchrun with one process a GPU, and sets the allocator for them"
    else:
        note = "one GPU needs no launcher beside LLaMA-Factory's own command"
    return Launcher(name="llamafactory-cli", words=("llamafactory-cli", "train", llamafactory.FILE_NAME), note=note)


def other_launchers(setup: TrainingSetup, context: EmitContext) -> tuple[Launcher, ...]:
    """The remaining launchers that run the same files, each in the form that works."""
    if setup.parallelism in ("fsdp", "fsdp2"):
        return ()
    torchrun = Launcher(name="torchrun", words=_torchrun(context), note="where torchrun is started by hand or by Slurm")
    note = "--no_local_rank keeps the YAML the first argument; the GPUs are those of CUDA_VISIBLE_DEVICES"
    if context.nodes > 1:
        note = f"hostfile has a line `<address> slots={context.gpus_per_node}` for every machine, the first one first"
    deepspeed = Launcher(name="deepspeed", words=_deepspeed(context), note=note)
    if context.world_size == 1:
        return (torchrun, deepspeed) if setup.parallelism in ZERO else (torchrun,)
    note = "where accelerate is the house's launcher"
    return (Launcher(name="accelerate", words=_accelerate(setup, context), note=note), deepspeed, torchrun)


def _accelerate(setup: TrainingSetup, context: EmitContext) -> tuple[Word, ...]:
    if setup.parallelism in ("ddp", "fsdp", "fsdp2"):
        how: tuple[Word, ...] = ("--config_file", accelerate.FILE_NAME)
    else:
        how = ("--multi_gpu", "--num_machines", str(context.nodes), "--num_processes", str(context.world_size))
    node: tuple[Word, ...] = ()
    if context.nodes > 1:
        node = ("--machine_rank", Ref("NODE_RANK"), "--main_process_ip", Ref("MASTER_ADDR"))
        node += ("--main_process_port", Ref("MASTER_PORT"))
    return ("accelerate", "launch", *how, *node, *_MODULE)


def _torchrun(context: EmitContext) -> tuple[Word, ...]:
    each = ("--nproc_per_node", str(context.gpus_per_node))
    if context.nodes == 1:
        return ("torchrun", "--standalone", *each, *_MODULE)
    return ("torchrun", "--nnodes", str(context.nodes), "--node_rank", Ref("NODE_RANK"), *each, *_NODE_WORDS, *_MODULE)


def _deepspeed(context: EmitContext) -> tuple[Word, ...]:
    node: tuple[Word, ...] = ()
    if context.nodes > 1:
        node = ("--hostfile", "hostfile", "--no_ssh", "--node_rank", Ref("NODE_RANK"), *_NODE_WORDS)
    return ("deepspeed", "--no_local_rank", *node, "--module", "llamafactory.launcher", llamafactory.FILE_NAME)


def environment(setup: TrainingSetup, context: EmitContext) -> tuple[Variable, ...]:
    """What the run needs in its environment, each variable with its reason."""
    processes = () if setup.parallelism in ("fsdp", "fsdp2") else _processes(setup, context)
    return (*_devices(context), *_allocator(context), *processes, *_nodes(context), *_links(context))


_VISIBLE = {"ascend": "ASCEND_RT_VISIBLE_DEVICES"}
_ALLOCATOR = {
    "nvidia": (
        ("PYTORCH_CUDA_ALLOC_CONF", "segments that grow: less is lost to fragmentation"),
        ("PYTORCH_ALLOC_CONF", "its name since torch 2.9"),
    ),
    "ascend": (("PYTORCH_NPU_ALLOC_CONF", "segments that grow: less is lost to fragmentation"),),
}


def _devices(context: EmitContext) -> tuple[Variable, ...]:
    name = _VISIBLE.get(context.vendor, "CUDA_VISIBLE_DEVICES")
    reason = "the GPUs of this plan; without it a run on one of several GPUs is refused"
    visible = Variable(name=name, value=",".join(context.devices), reason=reason, kind="default")
    if context.vendor != "nvidia":
        return (visible,)
    order = Variable(name="CUDA_DEVICE_ORDER", value="PCI_BUS_ID", reason="count GPUs as the driver and nvidia-smi do")
    return (order, visible)


def _allocator(context: EmitContext) -> tuple[Variable, ...]:
    if context.expandable_segments:
        named = _ALLOCATOR.get(context.vendor, ())
        value = "expandable_segments:True"
        found = [Variable(name=name, value=value, reason=why, kind="default") for name, why in named]
    else:
        found = [Variable(name="OPTIM_TORCH", value="0", reason="the plan leaves the allocator as it is")]
    if context.vendor != "ascend":
        found.append(Variable(name="RECORD_VRAM", value="1", reason="the log then states the memory that was used"))
    return tuple(found)


def _processes(setup: TrainingSetup, context: EmitContext) -> tuple[Variable, ...]:
    found = [
        Variable(name="NNODES", value=str(context.nodes), reason="machines in the run"),
        Variable(name="NPROC_PER_NODE", value=str(context.gpus_per_node), reason="one process a GPU"),
    ]
    if context.world_size > 1 or setup.parallelism in ZERO:
        why = "DeepSpeed needs a launcher even on one GPU" if context.world_size == 1 else "start through torchrun"
        found.append(Variable(name="FORCE_TORCHRUN", value="1", reason=why))
    return tuple(found)


def _nodes(context: EmitContext) -> tuple[Variable, ...]:
    if context.nodes == 1:
        return ()
    return (
        Variable(name="NODE_RANK", value="", kind="required", reason="0 on the first machine, then 1, 2, ..."),
        Variable(name="MASTER_ADDR", value="", kind="required", reason="address of the first machine"),
        Variable(name="MASTER_PORT", value="29500", kind="default", reason="the same on every machine"),
    )


def _links(context: EmitContext) -> tuple[Variable, ...]:
    if context.world_size == 1 or context.vendor != "nvidia":
        return ()
    is_rtx40 = any("RTX 40" in name or "RTX40" in name for name in context.gpu_names)
    if not is_rtx40 and context.p2p is not False:
        return ()
    why = (
        "these cards have no peer-to-peer path"
        if context.p2p is False
        else "GeForce 40 cards have no peer-to-peer path"
    )
    found = [Variable(name="NCCL_P2P_DISABLE", value="1", kind="default", reason=why)]
    if is_rtx40:
        why = "accelerate refuses GeForce 40 cards with drivers before 550.40 unless both are set"
        found.append(Variable(name="NCCL_IB_DISABLE", value="1", kind="default", reason=why))
    return tuple(found)
