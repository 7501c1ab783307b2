"""Commands and environment of a launch script, whatever the trainer.

Every word of a command is an argument, never a piece of shell text; ``Ref`` names a shell variable.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from planner.targets import accelerate, deepspeed
from planner.targets.context import EmitContext
from planner.targets.yaml_text import dump_yaml
from planner.training import FSDP, ZERO, TrainingSetup


def sharding_files(setup: TrainingSetup, context: EmitContext) -> dict[str, str]:
    """Name to text of what a settled setup's launcher or trainer reads beside its own file: ``ds_config.json``
    under ZeRO, ``accelerate.yaml`` for DDP and FSDP, nothing on one process.
    """
    if setup.parallelism in ZERO:
        return {deepspeed.FILE_NAME: json.dumps(deepspeed.emit(setup, context), indent=2) + "\n"}
    if setup.parallelism != "none":
        return {accelerate.FILE_NAME: dump_yaml(accelerate.emit(setup, context))}
    return {}


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


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a folder is started: the launcher that its script runs, the others, and what all of them need.

    ``remedy`` says how to get the chosen program; ``alone`` why there is no other launcher, where there is none;
    ``override`` shows how a setting is changed for one run.
    """

    chosen: Launcher
    others: tuple[Launcher, ...]
    environment: tuple[Variable, ...]
    remedy: str
    alone: str
    override: str


NODE_WORDS: tuple[Word, ...] = (
    "--master_addr", Ref("MASTER_ADDR"),
    "--master_port", Ref("MASTER_PORT"),
)  # fmt: skip


def accelerate_words(setup: TrainingSetup, context: EmitContext, tail: tuple[Word, ...]) -> tuple[Word, ...]:
    """``accelerate launch`` on every GPU; its own file where the plan has one."""
    if setup.parallelism == "ddp" or setup.parallelism in FSDP:
        how: tuple[Word, ...] = ("--config_file", accelerate.FILE_NAME)
    else:
        how = ("--multi_gpu", "--num_machines", str(context.nodes), "--num_processes", str(context.world_size))
    node: tuple[Word, ...] = ()
    if context.nodes > 1:
        node = ("--machine_rank", Ref("NODE_RANK"), "--main_process_ip", Ref("MASTER_ADDR"))
        node += ("--main_process_port", Ref("MASTER_PORT"))
    return ("accelerate", "launch", *how, *node, *tail)


def torchrun_words(context: EmitContext, tail: tuple[Word, ...]) -> tuple[Word, ...]:
    """``torchrun`` on every GPU of this node."""
    each = ("--nproc_per_node", str(context.gpus_per_node))
    if context.nodes == 1:
        return ("torchrun", "--standalone", *each, *tail)
    return ("torchrun", "--nnodes", str(context.nodes), "--node_rank", Ref("NODE_RANK"), *each, *NODE_WORDS, *tail)


def place_environment(context: EmitContext) -> tuple[Variable, ...]:
    """The GPUs, the allocator, the other nodes and the links: what any trainer needs in its environment."""
    return (*_devices(context), *_allocator(context), *_nodes(context), *_links(context))


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
    named = _ALLOCATOR.get(context.vendor, ()) if context.expandable_segments else ()
    value = "expandable_segments:True"
    return tuple(Variable(name=name, value=value, reason=why, kind="default") for name, why in named)


def _nodes(context: EmitContext) -> tuple[Variable, ...]:
    if context.nodes == 1:
        return ()
    return (
        Variable(name="NODE_RANK", value="", kind="required", reason="0 on the first machine, then 1, 2, ..."),
        Variable(name="MASTER_ADDR", value="", kind="required", reason="address of the first machine"),
        Variable(name="MASTER_PORT", value="29500", kind="default", reason="the same on every machine"),
    )


def _links(context: EmitContext) -> tuple[Variable, ...]:
    """accelerate refuses several GeForce 40 cards under drivers before 550.40 unless both variables are set
    (accelerate/utils/environment.py, check_cuda_p2p_ib_support); a driver that is not known may be such a one.
    """
    if context.world_size == 1 or context.vendor != "nvidia":
        return ()
    is_refused = any("RTX 40" in name or "RTX40" in name for name in context.gpu_names) and _is_old(context.driver)
    if not is_refused and context.p2p is not False:
        return ()
    why = "these cards have no peer-to-peer path" if context.p2p is False else "GeForce 40 cards have no such path"
    found = [Variable(name="NCCL_P2P_DISABLE", value="1", kind="default", reason=why)]
    if is_refused:
        why = "accelerate refuses GeForce 40 cards with drivers before 550.40 unless both are set"
        found.append(Variable(name="NCCL_IB_DISABLE", value="1", kind="default", reason=why))
    return tuple(found)


def _is_old(driver: str | None) -> bool:
    numbers = tuple(int(part) for part in (driver or "").split(".")[:2] if part.isdigit())
    return numbers < (550, 40)
