"""What a README says of a trainer: what to install, where its log is, and what to do with the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from planner.emit.render import shell_words
from planner.targets.context import EmitContext
from planner.training import ZERO, TrainingSetup


@dataclass(frozen=True, kw_only=True)
class Guide:
    """One trainer. ``packages`` are pip requirements of a setup, ``after`` sentences on its result, as Markdown."""

    settings_file: str
    log_note: str
    packages: Callable[[TrainingSetup], list[str]]
    after: Callable[[TrainingSetup, EmitContext], list[str]]


def guide_of(engine: str) -> Guide:
    """The guide of an engine that files are written for."""
    return _GUIDES[engine]


def _extra_packages(setup: TrainingSetup) -> list[str]:
    """What kernels, quantization and sharding bring along (LLaMA-Factory's ``_check_extra_dependencies``)."""
    needs_bnb = bool(setup.quantization_bit) and setup.quantization_method == "bnb"
    wanted = {
        "liger-kernel>=0.6.3": setup.liger_kernel,
        "bitsandbytes>=0.43": needs_bnb or "8bit" in setup.optim or setup.optim.startswith("paged"),
        "unsloth": setup.unsloth,
        "galore_torch": setup.method == "galore",
        "apollo_torch": setup.method == "apollo",
        "badam>=1.2.1": setup.method == "badam",
        "flash-attn": setup.attention == "flash_attention_2",
    }
    return [package for package, needed in wanted.items() if needed]


def _llamafactory_packages(setup: TrainingSetup) -> list[str]:
    tested = "deepspeed>=0.19.8" if setup.tensor_parallel > 1 else "deepspeed>=0.10,<=0.18.4"
    deepspeed = [tested] if setup.parallelism in ZERO else []
    return ["llamafactory==0.9.5", *deepspeed, *_extra_packages(setup)]


def _megatron_packages(setup: TrainingSetup) -> list[str]:
    return ["llamafactory==0.9.5", "mcore-adapter", "megatron-core", "transformer-engine[pytorch]"]


def _transformers_packages(setup: TrainingSetup) -> list[str]:
    peft = ["peft>=0.18"] if setup.is_adapter else []
    deepspeed = ["deepspeed"] if setup.parallelism in ZERO else []
    return ["transformers>=5.5", "accelerate>=1.11", *peft, *deepspeed, *_extra_packages(setup)]


def _trl_packages(setup: TrainingSetup) -> list[str]:
    return ["trl>=1.15", *_transformers_packages(setup)]


def _llamafactory_after(setup: TrainingSetup, context: EmitContext) -> list[str]:
    # Without a YAML file in front of them, LLaMA-Factory 0.9.5 reads settings as --flags only (hparams/parser.py).
    template = ("--template", context.template) if context.template else ()
    if not setup.is_adapter:
        whole = ("--model_name_or_path", context.output_dir, *template)
        return [f"Talk to it: {_code('llamafactory-cli', 'chat', *whole)}"]
    where = ("--model_name_or_path", context.model_path, "--adapter_name_or_path", context.output_dir, *template)
    return [
        "The result is an adapter. Merge it into the unquantized base: "
        + _code("llamafactory-cli", "export", *where, "--export_dir", "merged"),
        f"Talk to it: {_code('llamafactory-cli', 'chat', *where)}",
    ]


def _transformers_after(setup: TrainingSetup, context: EmitContext) -> list[str]:
    if not setup.is_adapter:
        return [f"The result in `{context.output_dir}/` loads with `AutoModelForCausalLM.from_pretrained`."]
    return [
        f"The result in `{context.output_dir}/` is an adapter: `peft.AutoPeftModelForCausalLM.from_pretrained` loads "
        "it on the unquantized base, and `merge_and_unload()` joins the two."
    ]


def _code(*words: str) -> str:
    return f"`{shell_words(words)}`"


_GUIDES: dict[str, Guide] = {
    "llamafactory": Guide(
        settings_file="train.yaml",
        log_note="`output/trainer_log.jsonl` has loss, speed and the memory that was used.",
        packages=_llamafactory_packages,
        after=_llamafactory_after,
    ),
    "megatron": Guide(
        settings_file="train.yaml",
        log_note="`output/trainer_log.jsonl` has loss and speed.",
        packages=_megatron_packages,
        after=_transformers_after,
    ),
    "transformers": Guide(
        settings_file="train_args.json",
        log_note="`output/trainer_log.jsonl` has loss, speed and the memory that was used.",
        packages=_transformers_packages,
        after=_transformers_after,
    ),
    "trl": Guide(
        settings_file="train.yaml",
        log_note="`output/trainer_log.jsonl` has loss, speed and the memory that was used.",
        packages=_trl_packages,
        after=_transformers_after,
    ),
    "embedded": Guide(
        settings_file="train.json",
        log_note="`output/trainer_log.jsonl` has loss, speed and the memory that each phase used.",
        packages=_transformers_packages,
        after=_transformers_after,
    ),
}
