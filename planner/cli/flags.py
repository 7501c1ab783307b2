"""The flags of the commands as one table: each field of a setup is a dashed flag with the same name.

Flags arrive as words; ``planner.training`` validates them, so that a wrong value is one sentence wherever it
comes from.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from planner.errors import LONGEST_SHOWN, InputError, shown

JOB = "The job"
HARDWARE = "The hardware"
CHOICE = "What may be chosen"
ADAPTERS = "What is trained"
BATCH = "Batches and sequences"
HELD = "What is held in memory, and how"
SHARDING = "Several GPUs and offload"
ENGINE = "Engine and versions"
OUTPUT = "Output"
RUNNING = "The run"


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag. ``value`` is the placeholder in help, None for a switch; ``rare`` pins stay out of ``plan --help``."""

    name: str
    help: str
    panel: str
    value: str | None = "TEXT"
    repeat: bool = False
    negative: bool = False
    rare: bool = False

    @property
    def option(self) -> str:
        """``--lora-rank`` of ``lora_rank``."""
        return "--" + self.name.replace("_", "-")


def _setup(name: str, value: str | None, panel: str, text: str, *, rare: bool = False) -> Flag:
    return Flag(name=name, value=value, panel=panel, help=text, rare=rare, negative=value is None)


MODEL = _setup("model", "NAME", JOB, "catalogue name, Hugging Face id, 7B, a folder or its config.json")
STAGE = _setup("stage", "STAGE", JOB, "pt sft rm dpo kto orpo simpo ppo grpo (default: sft)")
SEQ_LEN = _setup("seq_len", "TOKENS", JOB, "tokens per sample (default: 2048)")
GPUS = Flag(
    name="gpus",
    value="3x20GB",
    panel=HARDWARE,
    help="also 1xA100-80GB, 2x8xH100-80GB, 2xRTX3090,1xRTX4090, A100-80GB:3g.40gb",
)
ENGINE_FLAG = _setup(
    "engine",
    "ENGINE",
    ENGINE,
    "llamafactory megatron transformers trl axolotl ...; in plans auto: the best (default: llamafactory)",
)
_DTYPES = "bf16 fp16 fp32 (default: the engine's)"

# Every other field of TrainingSetup, in the contract's order.
SETUP_FLAGS: tuple[Flag, ...] = (
    _setup("pref_loss", "NAME", ADAPTERS, "preference loss: sigmoid hinge ipo kto_pair orpo simpo", rare=True),
    _setup("ref_model", "NAME", ADAPTERS, "reference model of a preference stage", rare=True),
    _setup("reward_model", "NAME", ADAPTERS, "reward model of ppo", rare=True),
    _setup("freeze_trainable_layers", "N", ADAPTERS, "layers that method freeze trains (default: 2)", rare=True),
    _setup("galore_rank", "RANK", ADAPTERS, "rank of GaLore's projections (default: 16)", rare=True),
    _setup("apollo_rank", "RANK", ADAPTERS, "rank of APOLLO's projections (default: 16)", rare=True),
    _setup("badam_mode", "MODE", ADAPTERS, "layer or ratio (default: layer)", rare=True),
    _setup("lora_rank", "RANK", ADAPTERS, "rank of the adapters (default: 8)"),
    _setup("lora_target", "MODULES", ADAPTERS, "all, or module names such as q_proj,v_proj (default: all)"),
    _setup("lora_dropout", "P", ADAPTERS, "dropout before the adapters, 0 to below 1 (default: 0)", rare=True),
    _setup("additional_target", "MODULES", ADAPTERS, "trained whole beside LoRA: embed_tokens,lm_head", rare=True),
    _setup("quantization_bit", "BITS", HELD, "4 or 8: the frozen base is quantized (default: 4 with qlora)"),
    _setup("double_quantization", None, HELD, "quantize the quantization constants too (default: yes)", rare=True),
    _setup("quantization_method", "NAME", HELD, "bnb gptq awq ... (default: bnb)", rare=True),
    _setup("micro_batch_size", "N", BATCH, "samples per device and step"),
    _setup("gradient_accumulation_steps", "N", BATCH, "micro batches per optimizer step (default: 1)"),
    _setup("eval_micro_batch_size", "N", BATCH, "samples per device in evaluation (default: no evaluation)"),
    _setup("packing", None, BATCH, "sequences packed to the full length (default: no)"),
    _setup("padded", None, BATCH, "batches carry a padding mask (default: no)"),
    _setup("optim", "NAME", HELD, "adamw_torch_fused adamw_8bit paged_adamw_8bit adafactor sgd lion_8bit ..."),
    _setup("optimizer_in_backward", None, HELD, "step each layer inside the backward pass (default: no)", rare=True),
    _setup("torch_compile", None, HELD, "compile the model (default: no)", rare=True),
    _setup("activation_offload", None, HELD, "keep activations in host memory (default: no)", rare=True),
    _setup("param_dtype", "DTYPE", HELD, f"trained weights of full and freeze: {_DTYPES}", rare=True),
    _setup("compute_dtype", "DTYPE", HELD, "bf16 fp16 fp32 (default: bf16 where the GPU has it)"),
    _setup("adapter_dtype", "DTYPE", HELD, f"LoRA weights: {_DTYPES}", rare=True),
    _setup("kbit_upcast", "WHAT", HELD, "none norms all: upcasts of a quantized base", rare=True),
    _setup("gradient_checkpointing", "HOW", HELD, "true, false, selective, or every n-th layer (default: true)"),
    _setup("attention", "KERNEL", HELD, "eager sdpa flash_attention_2 (default: sdpa)"),
    _setup("liger_kernel", None, HELD, "fused norm, rope, swiglu and linear cross-entropy (default: no)"),
    _setup("unsloth", None, HELD, "Unsloth's kernels, one GPU only (default: no)", rare=True),
    _setup("loss", "PATH", HELD, "torch fused chunked fused_linear (default: torch, or as liger does)", rare=True),
    _setup("parallelism", "KIND", SHARDING, "none ddp zero1 zero2 zero3 fsdp fsdp2 (default: ddp on several GPUs)"),
    _setup("tensor_parallel", "N", SHARDING, "GPUs that share each layer (default: 1)", rare=True),
    _setup("pipeline_parallel", "N", SHARDING, "stages that the layers are cut into (default: 1)", rare=True),
    _setup("context_parallel", "N", SHARDING, "GPUs that share each sequence (default: 1)", rare=True),
    _setup("expert_parallel", "N", SHARDING, "GPUs that share the experts (default: 1)", rare=True),
    _setup("offload", "WHAT", SHARDING, "none optimizer params all nvme (default: none)"),
    _setup("ds_config", "FILE", SHARDING, "a DeepSpeed JSON to take buckets and limits from", rare=True),
    _setup("versions", "PKG=VERSION", ENGINE, "comma list, such as transformers=4.48,accelerate=1.11", rare=True),
)

RAM = Flag(name="ram", value="12GB", panel=HARDWARE, help="host memory per node; unknown if not given with --gpus")
MACHINE = Flag(name="machine", value="FILE", panel=HARDWARE, help="a saved `plan probe --json` instead of --gpus")
JSON = Flag(name="json", value=None, panel=OUTPUT, help="one JSON document on stdout, nothing else there")

PLAN_FLAGS: tuple[Flag, ...] = (
    MODEL,
    STAGE,
    Flag(
        name="method",
        value="METHOD",
        panel=JOB,
        help="full lora qlora ...; auto is the best that fits (default: auto)",
    ),
    SEQ_LEN,
    Flag(name="global_batch", value="N", panel=JOB, help="sequences per optimizer step over all GPUs (default: 64)"),
    Flag(
        name="data",
        value="PATH",
        panel=JOB,
        repeat=True,
        help="your data set, or several (a comma list); without it a small marked demo set is written",
    ),
    Flag(
        name="mix_strategy",
        value="HOW",
        panel=JOB,
        help="of several data sets: concat, interleave_under or interleave_over (default: concat)",
    ),
    Flag(name="interleave_probs", value="P,P", panel=JOB, help="how often each data set is drawn, such as 0.7,0.3"),
    GPUS,
    RAM,
    MACHINE,
    Flag(name="objective", value="GOAL", panel=CHOICE, help="quality, speed or memory (default: quality)"),
    Flag(
        name="allow",
        value="RUNGS",
        panel=CHOICE,
        repeat=True,
        help="rungs that are not used unasked; see `plan rungs`",
    ),
    Flag(name="require", value="RUNGS", panel=CHOICE, repeat=True, help="rungs that must be used"),
    Flag(name="forbid", value="RUNGS", panel=CHOICE, repeat=True, help="rungs that must not be used, such as liger"),
    Flag(
        name="lora_ranks",
        value="RANKS",
        panel=CHOICE,
        help="ranks to choose from, such as 8,16,64: the largest that fits, for quality",
    ),
    Flag(name="ladder", value="FILE", panel=CHOICE, help="your own order of rungs, a TOML file"),
    *(flag for flag in SETUP_FLAGS if flag.name != "gradient_accumulation_steps"),
    ENGINE_FLAG,
    Flag(name="out", value="DIR", panel=OUTPUT, help="folder to write (default: plans/<name>)"),
    Flag(name="force", value=None, panel=OUTPUT, help="overwrite an existing --out"),
    JSON,
    Flag(name="version", value=None, panel=OUTPUT, help="print the version and end"),
)

ESTIMATE_FLAGS: tuple[Flag, ...] = (
    MODEL,
    STAGE,
    _setup("method", "METHOD", JOB, "full freeze lora dora qlora oft galore apollo badam (default: lora)"),
    SEQ_LEN,
    GPUS,
    RAM,
    MACHINE,
    *SETUP_FLAGS,
    ENGINE_FLAG,
    Flag(name="from", value="FILE.jsonl", panel=OUTPUT, help="one setup a line; the other flags are its defaults"),
    JSON,
)

RUN_FLAGS: tuple[Flag, ...] = (
    Flag(name="demo", value=None, panel=JOB, help="train a tiny model on shipped samples on the CPU, to see it work"),
    Flag(
        name="python", value="PATH", panel=RUNNING, help="the Python that has the engine (default: this one, then PATH)"
    ),
    Flag(
        name="set", value="KEY=VALUE", panel=RUNNING, repeat=True, help="one setting of the engine changed for this run"
    ),
    Flag(
        name="env", value="NAMES", panel=RUNNING, repeat=True, help="variables to pass on beside those a trainer uses"
    ),
    Flag(name="detach", value=None, panel=RUNNING, help="go on without this terminal; see plan runs, attach, stop"),
    Flag(name="retries", value="N", panel=RUNNING, help="attempts to heal the run (default: 3)"),
    Flag(name="stall_minutes", value="N", panel=RUNNING, help="no progress for so long is a hung run (default: 30)"),
    Flag(name="skip_worst_case", value=None, panel=RUNNING, help="do not try the longest batch before the training"),
    Flag(name="preflight_only", value=None, panel=RUNNING, help="look whether all is there, and start nothing"),
    Flag(name="anyway", value=None, panel=RUNNING, help="start although it is not expected to fit, or a check failed"),
)

TRACE_FLAGS: tuple[Flag, ...] = (
    *ESTIMATE_FLAGS[:-1],
    Flag(name="capacity", value="20GB", panel=HARDWARE, help="free memory of the card (default: the card's own)"),
    Flag(name="expandable_segments", value=None, panel=HARDWARE, help="the allocator's setting of that name"),
    Flag(name="timeline", value="FILE", panel=OUTPUT, help="write every operation of the second step, one a line"),
    JSON,
)

Command = Callable[..., Any]


def with_flags(command: Command, flags: Sequence[Flag], *, hide_rare: bool = False) -> Command:
    """Give ``command(ctx, **values)`` one typer option per flag; absent flags arrive as None."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [_parameter(flag, hidden=hide_rare and flag.rare) for flag in flags]
    command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    return command


def _parameter(flag: Flag, *, hidden: bool) -> inspect.Parameter:
    kind: Any = list[str] if flag.repeat else bool if flag.value is None else str
    names = f"{flag.option}/--no-{flag.option[2:]}" if flag.negative else flag.option
    option = typer.Option(
        names, help=flag.help, metavar=flag.value, rich_help_panel=flag.panel, hidden=hidden, show_default=False
    )
    # `from` is a word of the language; the value arrives under `from_`.
    name = flag.name + "_" if flag.name == "from" else flag.name
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def every(values: Mapping[str, Any], flags: Sequence[Flag]) -> dict[str, Any]:
    """A value for each flag: what stands on the command line, else None."""
    return {flag.name: values.get(flag.name) for flag in flags}


def given(values: Mapping[str, Any], flags: Sequence[Flag]) -> dict[str, Any]:
    """The values that were given, of these flags only."""
    return {flag.name: values[flag.name] for flag in flags if values.get(flag.name) is not None}


def count(text: str | None, *, default: int, place: str, most: int | None = None) -> int:
    """A flag's word as a whole number from 1 up. Raises InputError naming ``place``."""
    if text is None:
        return default
    if not text.isdecimal() or len(text) > LONGEST_SHOWN or int(text) < 1 or (most and int(text) > most):
        raise InputError(f"{place} {shown(text)} is not a count: write a whole number from 1 up, such as {default}")
    return int(text)


def comma_list(values: Sequence[str] | None) -> frozenset[str]:
    """``["a,b", "c"]`` of a repeatable flag as {a, b, c}."""
    return frozenset(part.strip() for value in values or () for part in value.split(",") if part.strip())
