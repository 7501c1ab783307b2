"""What other memory estimators say about the measured rows; run in an environment that has them, not this package.

    python tools/peer_answers.py questions.jsonl > measurements/peers.jsonl

One line a row that a tool answers, with its figure for each meter that it claims, in bytes; then one line a tool with
the number of rows and the reasons why the others cannot be put to it. A tool is asked only for what it has an option
for: a row whose regime it has no word for is not counted against it. Nothing is fetched: models are given by their
config.json, parameter counts as the hub would report them.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Question = dict[str, Any]
Figures = dict[str, int]
MIB, GIB = 2**20, 2**30
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
USUAL_LOSSES = ("hf_4_45", "hf_4_48", "hf_4_49", "in_model", "loop", "trl")
OPTIMS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_8bit": "adam8bit",
    "sgd": "sgd",
}


class CannotSayError(Exception):
    """The tool has no option for what the row did."""


def only(condition: bool, otherwise: str) -> None:
    if not condition:
        raise CannotSayError(otherwise)


def usual(asked: Question) -> dict[str, Any]:
    """The setup, where it is of the kind that single-GPU estimators speak of."""
    setup = asked["setup"]
    only(asked["gpus"] == 1, "several GPUs")
    only(setup["method"] in ("full", "lora", "qlora"), f"method {setup['method']}")
    only(setup["stage"] in ("pt", "sft"), f"stage {setup['stage']}")
    only(asked["quantized"] in ("dense", "nf4", "int8"), f"{asked['quantized']} checkpoints")
    only(not setup["additional_target"], "modules trained whole beside adapters")
    extras = ("torch_compile", "activation_offload", "optimizer_in_backward", "unsloth")
    for name in extras:
        only(not setup[name], name)
    only(setup["gradient_checkpointing"] in (True, False), "selective checkpointing")
    only(bool(asked["config"]), "no config.json for it")
    return dict(setup)


def targets(setup: dict[str, Any]) -> list[str]:
    """LoRA targets by the names that Llama-like models use."""
    names = list(LINEARS) if setup["lora_target"] == "all" else list(setup["lora_target"])
    only(set(names) <= set(LINEARS), f"LoRA on {', '.join(names)}")
    return names


def fitcheck(asked: Question) -> Figures:
    """fitcheck: five physical parts for what is allocated, with its overhead for what the card shows."""
    from fitcheck.config_parser import (
        ModelConfig,
        UnsupportedModelError,
        _count_params,
        _parse_fields,
        _reconcile_param_count,
        _reject_unsupported,
    )
    from fitcheck.estimator import TrainingConfig, estimate
    from fitcheck.gpu_db import GpuSpec

    setup = usual(asked)
    only(asked["loss"] in USUAL_LOSSES, "fused or chunked losses")
    only(setup["optim"] in OPTIMS, f"optimizer {setup['optim']}")
    try:
        _reject_unsupported(asked["config"], asked["model"])
        fields = _parse_fields(asked["config"])
        count = _reconcile_param_count(asked["model"], asked["parameters"], _count_params(fields))
    except (UnsupportedModelError, ValueError) as refusal:
        raise CannotSayError("model refused: not a dense Llama-like decoder") from refusal
    model = ModelConfig(name=asked["model"], num_params=count, **vars(fields))
    full, sixteen = setup["method"] == "full", asked["trained_dtype"] != "fp32"
    training = TrainingConfig(
        precision=setup["compute_dtype"] or "bf16",
        quantization={"dense": "none"}.get(asked["quantized"], asked["quantized"]),
        double_quant=asked["quantized"] == "nf4" and setup["double_quantization"],
        optimizer=OPTIMS[setup["optim"]],
        optimizer_dtype="bf16" if full and sixteen else "fp32",
        batch_size=setup["micro_batch_size"],
        seq_len=setup["seq_len"],
        lora_rank=None if full else setup["lora_rank"],
        lora_targets=targets(setup) if not full else list(LINEARS),
        grad_checkpoint=setup["gradient_checkpointing"],
        flash_attn=setup["attention"] != "eager",
        grad_accum_steps=setup["gradient_accumulation_steps"],
    )
    capacity = int(asked["card_gib"] * 1024)
    report = estimate(model, training, GpuSpec(**gpu_fields(GpuSpec, capacity)))
    physical = report.total_mib - report.overhead_mib
    return {"allocated": round(physical * MIB), "nvidia-smi": round(report.total_mib * MIB)}


def gpu_fields(record: Any, capacity_mib: int) -> dict[str, Any]:
    """Fields of fitcheck's GPU record for a card of a size."""
    values = {}
    for name, field in record.__dataclass_fields__.items():
        values[name] = "card" if "str" in str(field.type) else capacity_mib
    return values


def canifinetune(asked: Question) -> Figures:
    """canifinetune: reserved memory is what it estimates; its safety margin is stated apart and left out."""
    from canifinetune.estimator.formulas import default_target_modules
    from canifinetune.estimator.memory import EstimateRequest, estimate
    from pydantic import ValidationError

    setup = usual(asked)
    only(asked["loss"] in (*USUAL_LOSSES, "fused_linear"), "fused or chunked losses")
    config, full = asked["config"], setup["method"] == "full"
    only("num_hidden_layers" in config or "n_layer" in config, "model refused: no layer count")
    override = canifinetune_model(asked)
    scope = "attention"
    if not full:
        names = set(targets(setup))
        scopes = {
            each: set(known(default_target_modules, override["family"], each))
            for each in ("attention", "all_linear", "conservative")
        }
        fitting = [each for each, modules in scopes.items() if modules == names]
        only(bool(fitting), f"LoRA on {', '.join(sorted(names))}")
        scope = fitting[0]
    try:
        request = EstimateRequest(
            model_id=asked["model"],
            method=setup["method"],
            quantization="none"
            if asked["quantized"] == "dense"
            else "int8"
            if asked["quantized"] == "int8"
            else "nf4_double_quant"
            if setup["double_quantization"]
            else "nf4",
            seq_len=setup["seq_len"],
            micro_batch_size=setup["micro_batch_size"],
            base_dtype=asked["trained_dtype"] if full else setup["compute_dtype"] or "bf16",
            lora_rank=setup["lora_rank"],
            lora_target_scope=scope,
            optimizer=setup["optim"],
            gradient_checkpointing=setup["gradient_checkpointing"],
            attention_implementation=setup["attention"],
            loss_backend="liger" if asked["loss"] == "fused_linear" else "stock",
            gpu_vram_gb=asked["card_gib"],
            use_network=False,
            override=override,
        )
    except ValidationError as refusal:
        raise CannotSayError("refused: " + str(refusal.errors()[0]["loc"][-1:])) from refusal
    memory = estimate(request).memory
    parts = memory.total_estimated_gb - memory.safety_margin_gb
    return {"reserved": round(parts * GIB), "allocated": round((parts - memory.cuda_overhead_gb) * GIB)}


def known(look_up: Callable[..., list[str]], family: str, scope: str) -> list[str]:
    """Target modules of a family, or the reason why there are none."""
    try:
        return look_up(family, scope=scope, strict=True)
    except ValueError as refusal:
        raise CannotSayError(f"no LoRA targets for model type {family}") from refusal


def canifinetune_model(asked: Question) -> dict[str, Any]:
    """The override fields that canifinetune would read from the hub."""
    from canifinetune.estimator.model_metadata import _from_hf_config

    config = {name: value for name, value in asked["config"].items() if name != "quantization_config"}
    found = _from_hf_config(asked["model"], config, exact_total_params=asked["parameters"])
    only(found is not None, "model refused: a field of its config is not known")
    return {**vars(found.arch), "family": found.family, "total_params": found.total_params}


def llm_analysis(asked: Question) -> Figures:
    """llm-analysis: weights, gradients, states and activations of full training, sharded or not."""
    from llm_analysis import analysis, config
    from llm_analysis.config import ModelConfig

    setup, raw = asked["setup"], asked["config"]
    only(setup["method"] == "full", "adapters")
    only(setup["stage"] in ("pt", "sft"), f"stage {setup['stage']}")
    only(setup["offload"] == "none", "offload")
    only(not setup["activation_offload"] and not setup["optimizer_in_backward"], "offloaded activations")
    only(setup["gradient_checkpointing"] in (True, False), "selective checkpointing")
    only(asked["loss"] in USUAL_LOSSES, "fused or chunked losses")
    only(setup["optim"] in ("adamw_torch", "adamw_torch_fused"), f"optimizer {setup['optim']}")
    only(bool(raw) and "num_hidden_layers" in raw and "intermediate_size" in raw, "model refused: its config")
    name = asked["model"]
    config.model_configs[name] = ModelConfig(
        name=name,
        num_layers=raw["num_hidden_layers"],
        n_head=raw["num_attention_heads"],
        hidden_dim=raw["hidden_size"],
        vocab_size=raw["vocab_size"],
        max_seq_len=raw.get("max_position_embeddings") or setup["seq_len"],
        num_key_value_heads=raw.get("num_key_value_heads"),
        ffn_embed_dim=raw["intermediate_size"],
        expansion_ratio=raw["intermediate_size"] / raw["hidden_size"],
        model_type=raw.get("model_type"),
        moe_num_experts=raw.get("num_local_experts") or 1,
        moe_top_k=raw.get("num_experts_per_tok") or 1,
    )
    sixteen = asked["trained_dtype"] != "fp32"
    stage = {"zero1": 1, "zero2": 2, "zero3": 3, "fsdp": 3, "fsdp2": 3}.get(setup["parallelism"], 0)
    try:
        summary = analysis.train(
            model_name=name,
            gpu_name="h100-sxm-80gb",
            batch_size_per_gpu=setup["micro_batch_size"],
            gradient_accumulation_steps=setup["gradient_accumulation_steps"],
            seq_len=setup["seq_len"],
            activation_recomputation=2 if setup["gradient_checkpointing"] else 0,
            ds_zero=stage,
            dp_size=asked["gpus"],
            total_num_gpus=asked["gpus"],
            master_weights_dtype_bytes=2 if sixteen else 4,  # the tool gives gradients this dtype too
            other_op_bytes=2 if sixteen else None,
            flash_attn=setup["attention"] != "eager",
            mlp_gated_linear_units=raw.get("model_type") not in ("gpt2", "gpt_bigcode", "gpt_neox", "falcon", "phi"),
            flops_efficiency=0.5,
            log_level="ERROR",
        )
    except (AssertionError, ValueError, ZeroDivisionError) as refusal:
        raise CannotSayError("refused: " + str(refusal).split("(")[0][:80]) from refusal
    return {"allocated": round(sum(summary[part] for part in LLM_ANALYSIS_PARTS))}


LLM_ANALYSIS_PARTS = (
    "weight_memory_per_gpu",
    "gradient_memory_per_gpu",
    "optimizer_state_memory_per_gpu",
    "activation_memory_per_gpu",
)


def accelerate(asked: Question) -> Figures:
    """``accelerate estimate-memory``: peak of training with Adam by the size of the model, a batch of one."""
    from accelerate.commands.estimate import estimate_training_usage

    setup = usual(asked)
    only(setup["method"] == "full", "adapters")
    wide = asked["trained_dtype"] == "fp32"
    usage = estimate_training_usage(asked["parameters"] * 4, "float32" if wide else "bfloat16")
    return {"allocated": max(usage.values())}


PEERS: dict[str, tuple[str, Callable[[Question], Figures]]] = {
    "fitcheck": ("fitcheck-llm", fitcheck),
    "canifinetune": ("canifinetune", canifinetune),
    "llm-analysis": ("llm-analysis", llm_analysis),
    "accelerate estimate-memory": ("accelerate", accelerate),
}


def answers(questions: list[Question]) -> Iterator[dict[str, Any]]:
    """Every row put to every tool that is installed."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    for name, (package, ask) in PEERS.items():
        try:
            tool = {"peer": name, "version": version(package), "date": date}
        except PackageNotFoundError:
            print(f"{package} is not installed here: left out", file=sys.stderr)
            continue
        problems: Counter[str] = Counter()
        for asked in questions:
            try:
                with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                    figures = ask(asked)
                yield tool | {"id": asked["id"], "bytes": figures}
            except CannotSayError as reason:
                problems[str(reason)] += 1
        yield tool | {"asked": len(questions), "cannot_say": dict(problems.most_common())}


def main() -> None:
    questions = [json.loads(line) for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()]
    for row in answers(questions):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
