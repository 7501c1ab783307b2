"""A plan's folder as what it needs of the machine that runs it. Pure but for the rules that ship."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from planner.memory.megatron import ENGINE as MEGATRON
from planner.memory.megatron import is_megatron
from planner.run.checks.records import Need, Package
from planner.targets.choose import LEAST_TRL
from planner.targets.launchers import Launch
from planner.training import FSDP, ZERO, TrainingSetup

if TYPE_CHECKING:
    from planner.run.job import Job
    from planner.targets.context import EmitContext

TOKEN_BYTES = 3 * 8  # input ids, labels and the mask as 64-bit integers
LEAST_AUTOTP = "0.19.8"  # a vocabulary that is cut too, tied to the embedding or not; older ones refuse its key
ENGINE_PACKAGE = {
    "llamafactory": "llamafactory",
    "megatron": "llamafactory",
    "trl": "trl",
    "transformers": "transformers",
}
# Trainers' report_to and what has to be installed for it.
_REPORTERS = {
    "wandb": "wandb", "swanlab": "swanlab", "mlflow": "mlflow", "tensorboard": "tensorboard", "trackio": "trackio",
    "comet_ml": "comet-ml",
}  # fmt: skip
_PROJECTED = {"galore": ("galore-torch", None), "apollo": ("apollo-torch", None), "badam": ("badam", "1.2.1")}
_STORED = {"gptq": ("gptqmodel", "2.0.0"), "awq": ("autoawq", None), "aqlm": ("aqlm", "1.1.0")}


def setting(settings: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A value by its key, in whichever section of the trainer's file it stands."""
    if name in settings:
        return settings[name]
    return next((value for key, value in settings.items() if key.rpartition(".")[2] == name), default)


def need_of(job: Job, launch: Launch, environment: Mapping[str, str]) -> Need:
    """``environment`` is what the engine will see."""
    from planner.memory.estimate import disk_need
    from planner.rulebook.load import engine_rows
    from planner.speed.links import paths
    from planner.speed.rates import shipped

    settings, setup, context, machine = job.settings, job.setup, job.context, job.plan.machine
    row = engine_rows().get(job.engine, {})
    package = ENGINE_PACKAGE.get(job.engine)
    release = {package: str(row["release"])} if package and "release" in row else {}
    tokens = setup.micro_batch_size * setup.sequences_per_sample * setup.seq_len
    limit = setting(settings, "save_total_limit")
    several = context.world_size > 1 or setup.parallelism in ZERO
    port, no_port = _port(launch, environment, context, starts_torchrun=several)
    return Need(
        engine=job.engine,
        setup=setup,
        estimate=job.estimate,
        planned=machine,
        disk=disk_need(setup, job.plan.model, machine),
        ranks=context.gpus_per_node,
        devices=context.devices,
        vendor=context.vendor,
        on_cpu=setting(settings, "use_cpu") is True or not machine.gpus,
        loader_workers=_whole(setting(settings, "dataloader_num_workers")),
        preprocessing_workers=_whole(setting(settings, "preprocessing_num_workers")),
        batch_bytes=TOKEN_BYTES * tokens,
        limit=_whole(limit) or None,
        overwrites=setting(settings, "overwrite_output_dir") is True,
        model_names=tuple(_models(job)),
        packages=tuple(packages_of(setup, settings, context.stored_quantization)),
        versions={**release, **row.get("versions", {}), **setup.versions},
        engine_package=package,
        unset=tuple(
            each.name for each in launch.environment if each.kind == "required" and not environment.get(each.name)
        ),
        port=port if environment.get("NODE_RANK", "") in ("", "0") else None,
        no_port=no_port,
        first_machine=environment.get("MASTER_ADDR", "") if machine.nodes > 1 else "",
        counted_link_bytes_per_s=paths(machine, shipped()).between_gpus
        if len(machine.gpus) > 1 and machine.nodes == 1
        else None,
    )


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _models(job: Job) -> Iterator[tuple[str, str]]:
    yield "model", job.context.model_path
    for role, name in (("reference model", job.setup.ref_model), ("reward model", job.setup.reward_model)):
        if name:
            yield role, name


def _port(
    launch: Launch, environment: Mapping[str, str], context: EmitContext, *, starts_torchrun: bool
) -> tuple[int | None, str]:
    """The port that rank 0 listens on, None where the launcher finds a free one; and what was stated and is none.

    On one machine torchrun and accelerate look for one, and so does LLaMA-Factory unless MASTER_PORT is set.
    """
    stated = environment.get("MASTER_PORT", "")
    fixed = context.nodes > 1 or (starts_torchrun and launch.chosen.name == "llamafactory-cli")
    if not fixed or not stated:
        return None, ""
    is_port = stated.isascii() and stated.isdecimal() and 0 < int(stated[:6]) < 1 << 16
    return (int(stated), "") if is_port else (None, stated)


def packages_of(setup: TrainingSetup, settings: Mapping[str, Any], stored: str | None) -> Iterator[Package]:
    """What a configuration imports beside its engine, and for what.

    Oldest versions: LLaMA-Factory 0.9.5 extras/misc.py and model_utils/quantization.py, transformers' own checks.
    """
    yield from _engine(setup.engine)
    yield Package(name="torch", why="every engine")
    yield Package(name="transformers", why="every engine")
    yield Package(name="accelerate", why="every engine")
    # Builds of other torch versions break every import of transformers, also where nothing looks at images.
    yield Package(name="torchvision", module="torchvision", why="transformers, which imports it", required=False)
    yield Package(name="torchaudio", module="torchaudio", why="transformers, which imports it", required=False)
    if setup.is_adapter:
        yield Package(name="peft", why=f"method {setup.method}")
    yield from _kernels(setup)
    if setup.parallelism in ZERO and not is_megatron(setup):
        cut = setup.tensor_parallel > 1
        why = f"tensor_parallel {setup.tensor_parallel}" if cut else f"parallelism {setup.parallelism}"
        yield Package(name="deepspeed", module="deepspeed", why=why, least=LEAST_AUTOTP if cut else "0.9.3")
    if setup.method in _PROJECTED:
        name, least = _PROJECTED[setup.method]
        yield Package(name=name, why=f"method {setup.method}", least=least)
    if stored in _STORED:
        name, least = _STORED[stored]
        yield Package(name=name, why=f"this model's {stored} weights", least=least)
    for each in _reporters(setting(settings, "report_to")):
        yield Package(name=_REPORTERS[each], why=f"report_to {each}")


def _engine(engine: str) -> Iterator[Package]:
    """The trainer itself; for TRL the oldest release that its files are written for."""
    if engine == "llamafactory":
        yield Package(name="llamafactory", why="engine llamafactory")
    elif engine == MEGATRON:
        for name in ("llamafactory", "mcore-adapter", "megatron-core", "transformer-engine"):
            yield Package(name=name, why=f"engine {engine}")
    elif engine == "trl":
        yield Package(name="trl", why="engine trl", least=".".join(map(str, LEAST_TRL)))


def _kernels(setup: TrainingSetup) -> Iterator[Package]:
    needs_bnb = setup.quantization_bit is not None and setup.quantization_method == "bnb"
    if needs_bnb or "8bit" in setup.optim or setup.optim.startswith("paged"):
        sharded = needs_bnb and setup.parallelism in (*FSDP, "zero3")
        why = f"quantization_bit {setup.quantization_bit}" if needs_bnb else f"optim {setup.optim}"
        yield Package(name="bitsandbytes", module="bitsandbytes", why=why, least="0.43.0" if sharded else "0.39.0")
    if setup.liger_kernel:
        yield Package(name="liger-kernel", module="liger_kernel.transformers", why="liger_kernel", least="0.6.3")
    if setup.attention == "flash_attention_2":
        why = "attention flash_attention_2 (without it trainers take another attention, which needs other memory)"
        yield Package(name="flash-attn", module="flash_attn", why=why)
    if setup.unsloth:
        yield Package(name="unsloth", why="unsloth")


def _reporters(stated: Any) -> list[str]:
    names = stated if isinstance(stated, list) else str(stated).split(",")
    return [str(name).strip() for name in names if str(name).strip() in _REPORTERS]
