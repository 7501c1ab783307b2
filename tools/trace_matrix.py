"""Rows of the trace matrix (tests/data/traced.jsonl): what is traced, and how it is traced again.

Example: python tools/trace_matrix.py --only fsdp2

A row is a setup in the contract's fields and a config.json: families at their real widths, four blocks deep, and some
whole. Needs the extra ``trace`` and liger-kernel with triton; without these its rows are left as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tools"))

from trace_families import FAMILIES  # noqa: E402

DATA = ROOT / "tests" / "data" / "traced.jsonl"
Row = dict[str, Any]
EAGER_ONLY = frozenset({"gemma2", "bloom", "gpt_oss"})  # transformers 5.23 gives these no sdpa path
EXPERTS = ("mixtral-8x7b", "qwen3-30b-a3b", "deepseek-v2-lite", "deepseek-v3", "gpt-oss-20b")
MORE_EXPERTS = ("lfm2-8b-a1b", "glm4.7-flash", "minimax-m2", "qwen3-next-80b")  # without adapters
SHARED_EXPERTS = frozenset({"deepseek-v2-lite", "deepseek-v3", *MORE_EXPERTS})
LAYER_KEYS = {"gpt2": "n_layer", "gpt_bigcode": "n_layer", "bloom": "n_layer"}
PLAIN: Row = {"engine": "transformers", "gpus": "1xA100-80GB", "kbit_upcast": "none"}
FACTORY: Row = {"engine": "llamafactory", "gpus": "1xA100-80GB"}
MODES: dict[str, Row] = {
    "full-bf16": {**PLAIN, "method": "full", "param_dtype": "bf16", "compute_dtype": "bf16"},
    "full-fp32-autocast": {**PLAIN, "method": "full", "param_dtype": "fp32", "compute_dtype": "bf16"},
    "lora-autocast": {**PLAIN, "method": "lora", "adapter_dtype": "fp32", "compute_dtype": "bf16"},
}
FULL, MIXED, LORA = MODES.values()
LAYER_NORMS = ("phi-2", "pythia-6.9b", "starcoder", "falcon-7b", "opt-6.7b", "starcoder2-7b", "command-r-7b")
LIGER_FAMILIES = ("llama3-8b", "qwen2.5-7b", "mistral-7b", "gemma2-9b", "qwen3-8b", "phi3-mini", "mixtral-8x7b")
DEPTHS = {"llama3-8b": 32, "qwen2.5-7b": 28, "qwen2.5-0.5b": 24, "mistral-7b": 32, "gemma2-9b": 42, "phi3-mini": 32}


def row(name: str, family: str, layers: int, *options: Row, **more: Any) -> Row:
    """One row: its name, its config at that depth, its setup."""
    config = FAMILIES[family]
    config = {**config, LAYER_KEYS.get(config["model_type"], "num_hidden_layers"): layers}
    setup: Row = {"model": family, "attention": "eager" if config["model_type"] in EAGER_ONLY else "sdpa"}
    for option in options:
        setup |= option
    return {"name": name, "config": config, "setup": setup | more}


def both(name: str, family: str, *options: Row, layers: int = 4, **more: Any) -> Iterator[Row]:
    """A row with checkpointing and one without."""
    for checkpointing in (False, True):
        suffix = "-gc" if checkpointing else ""
        yield row(
            f"{family}-{layers}-{name}{suffix}", family, layers, *options, gradient_checkpointing=checkpointing, **more
        )


def families() -> Iterator[Row]:
    """Every family under three modes."""
    for family in FAMILIES:
        for mode, options in MODES.items():
            adapters = mode == "lora-autocast"
            if not (adapters and family in SHARED_EXPERTS):  # peft 0.21 takes their stacked experts for targets
                yield from both(mode, family, options, FACTORY if adapters and family in EXPERTS else {})


def experts() -> Iterator[Row]:
    """Adapters on the attention of expert models alone."""
    targets = {"deepseek_v2": "q_proj kv_a_proj_with_mqa kv_b_proj o_proj"}
    targets["deepseek_v3"] = "q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj o_proj"
    for family in EXPERTS:
        names = targets.get(FAMILIES[family]["model_type"], "q_proj k_proj v_proj o_proj").split()
        yield from both("lora-attention-autocast", family, LORA, lora_target=names)


def windows() -> Iterator[Row]:
    """Sliding windows: a mask, and another kernel, from the length that reaches the window on."""
    for name, family, config, more in (
        ("full-attention", "gemma3-text-12b", {"layer_types": ["full_attention"] * 4}, {}),
        ("full-s512", "gemma3-text-12b", {}, {"seq_len": 512}),
        ("full-eager", "gemma3-text-12b", {}, {"attention": "eager"}),
        ("full-window-2047", "phi3-mini", {"sliding_window": 2047}, {}),
        ("full-window-4096-s4096", "mistral-7b", {"sliding_window": 4096}, {"seq_len": 4096}),
        (
            "full-window-4096-s4096-fa2", "mistral-7b", {"sliding_window": 4096},
            {"seq_len": 4096, "attention": "flash_attention_2"},
        ),
        ("full-window-4096-s4095", "mistral-7b", {"sliding_window": 4096}, {"seq_len": 4095}),
        ("full-s4096", "llama3-8b", {}, {"seq_len": 4096}),
        ("full-s4096", "qwen2.5-0.5b", {}, {"seq_len": 4096, "micro_batch_size": 2}),
    ):  # fmt: skip
        for made in both(name, family, FULL, more):
            yield {**made, "config": {**made["config"], **config}}


def variants() -> Iterator[Row]:
    """Other modes of one family: adapters, kernels, losses, padding, accumulation, evaluation."""
    changes: dict[str, tuple[Row, Row]] = {
        "lora-qv-autocast": (LORA, {"lora_target": ["q_proj", "v_proj"]}),
        "lora-bf16": (LORA, {"adapter_dtype": "bf16"}),
        "lora-r64-autocast": (LORA, {"lora_rank": 64}),
        "lora-dropout-autocast": (LORA, {"lora_dropout": 0.1}),
        "lora-eager-autocast": (LORA, {"attention": "eager"}),
        "full-eager": (FULL, {"attention": "eager"}),
        "full-fa2": (FULL, {"attention": "flash_attention_2"}),
        "full-padded": (FULL, {"padded": True}),
        "lora-padded-autocast": (LORA, {"padded": True}),
        "full-b4-s512": (FULL, {"micro_batch_size": 4, "seq_len": 512}),
        "full-b2-s1000": (FULL, {"micro_batch_size": 2, "seq_len": 1000}),
        "full-accumulation-2": (FULL, {"gradient_accumulation_steps": 2}),
        "lora-accumulation-2": (LORA, {"gradient_accumulation_steps": 2}),
        "full-fp32-autocast-accumulation-2": (MIXED, {"gradient_accumulation_steps": 2}),
        "full-loss-4.48": (FULL, {"versions": {"transformers": "4.48"}}),
        "full-fp32": (FULL, {"param_dtype": "fp32", "compute_dtype": "fp32"}),
        "dora-autocast": (LORA, {"method": "dora"}),
        "lora-embeddings-autocast": (LORA, {**FACTORY, "additional_target": ["embed_tokens", "lm_head"]}),
        "freeze-factory": (FACTORY, {"method": "freeze"}),
        "freeze-bf16": (FULL, {"method": "freeze", "param_dtype": "bf16"}),
        "full-eval": (FULL, {"eval_micro_batch_size": 4}),
        "lora-eval-autocast": (LORA, {"eval_micro_batch_size": 4}),
        "lora-ddp-autocast": (LORA, {"gpus": "4xA100-80GB", "parallelism": "ddp"}),
        "full-ddp": (FULL, {"gpus": "4xA100-80GB", "parallelism": "ddp"}),
        "full-fp16": (FULL, {"param_dtype": "fp16", "compute_dtype": "fp16"}),
        "full-turing": (FULL, {"gpus": "1xT4", "param_dtype": "fp16", "compute_dtype": "fp16"}),
        "lora-turing-autocast": (LORA, {"gpus": "1xT4", "param_dtype": "fp16", "compute_dtype": "fp16"}),
        "qlora-wide": (LORA, {"engine": "transformers-pure", "method": "qlora", "kbit_upcast": "all"}),
    }
    for name, (mode, change) in changes.items():
        yield from both(name, "llama3-8b", mode, change)
    for mode, options in MODES.items():
        again: Row = {"gradient_checkpointing": True, "versions": {"transformers": "4.57"}}  # checkpoints reentrantly
        yield row(f"llama3-8b-4-{mode}-gc-reentrant", "llama3-8b", 4, options, again)
        yield row(
            f"gemma2-9b-4-{mode}-fa2",
            "gemma2-9b",
            4,
            options,
            {"attention": "flash_attention_2"},
            gradient_checkpointing=False,
        )


def optimizers() -> Iterator[Row]:
    """Every optimizer that has a step here, full and LoRA."""
    from planner.trace.job import BNB_OPTIMS, OPTIMS

    for optim in sorted({*OPTIMS, *BNB_OPTIMS} - {"adamw_torch_fused", "adamw_bnb_8bit"}):
        word = optim.replace("adamw_torch", "adamw-foreach").replace("_", "-")
        yield from both(f"full-{word}", "llama3-8b", FULL, optim=optim)
        yield from both(f"lora-{word}-autocast", "llama3-8b", LORA, optim=optim)
        yield row(
            f"qwen2.5-0.5b-4-full-{word}-gc", "qwen2.5-0.5b", 4, MIXED, {"optim": optim}, gradient_checkpointing=True
        )


def quantized() -> Iterator[Row]:
    """nf4 and int8 bases."""
    for upcast in ("none", "norms", "all"):
        for family in ("llama3-8b", "qwen2.5-7b", "gemma2-9b"):
            yield from both(f"qlora-{upcast}-autocast", family, LORA, method="qlora", kbit_upcast=upcast)
    yield from both("qlora-single-autocast", "llama3-8b", LORA, method="qlora", double_quantization=False)
    yield from both("qlora-bf16", "llama3-8b", LORA, method="qlora", adapter_dtype="bf16")
    yield from both("qlora-int8-autocast", "llama3-8b", LORA, method="qlora", quantization_bit=8)
    yield from both("qlora-short-autocast", "llama3-8b", LORA, method="qlora", seq_len=1024)
    yield from both(
        "qlora-int8-norms-autocast", "llama3-8b", LORA, method="qlora", quantization_bit=8, kbit_upcast="norms"
    )
    for family in LAYER_NORMS:  # autocast has layer norm hand out fp32, and packed linears keep that
        yield from both("qlora-none-autocast", family, LORA, method="qlora")
        yield from both("qlora-int8-autocast", family, LORA, method="qlora", quantization_bit=8)
    for family in ("llama3-8b", "mistral-7b", "qwen3-8b"):
        yield from both("qlora-factory", family, FACTORY, method="qlora")


def older() -> Iterator[Row]:
    """transformers 4.48 and bitsandbytes before 0.47: what their code kept and converted."""
    old: Row = {"versions": {"transformers": "4.48", "bitsandbytes": "0.43.3"}, "gradient_checkpointing": True}
    packed: Row = {**LORA, "method": "qlora", **old}
    yield row("starcoder-4-full-bf16-4.48-gc", "starcoder", 4, FULL, old)
    yield row("starcoder-4-lora-autocast-4.48-gc", "starcoder", 4, LORA, old)
    yield row("starcoder-4-qlora-none-autocast-4.48-gc", "starcoder", 4, packed)
    yield row("pythia-6.9b-4-full-bf16-4.48-gc", "pythia-6.9b", 4, FULL, old)
    yield row("pythia-6.9b-4-qlora-none-autocast-4.48-gc", "pythia-6.9b", 4, packed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    for family in ("llama3-8b", "mixtral-8x7b"):
        yield row(
            f"{family}-4-qlora-norms-autocast-4.48-gc", family, 4, packed, lora_target=targets, kbit_upcast="norms",
            micro_batch_size=2,
        )  # fmt: skip


def stages() -> Iterator[Row]:
    """Preference pairs as LLaMA-Factory trains them."""
    for stage in ("dpo", "orpo", "simpo"):
        yield from both(f"{stage}-lora", "llama3-8b", FACTORY, stage=stage, method="lora", seq_len=1024)
    yield from both("dpo-full", "llama3-8b", FACTORY, stage="dpo", method="full", seq_len=1024)
    yield from both("dpo-qlora", "qwen2.5-7b", FACTORY, stage="dpo", method="qlora", seq_len=1024)


def liger() -> Iterator[Row]:
    """Liger's kernels, with and without its fused linear loss."""
    for family in LIGER_FAMILIES:
        for fused in (False, True):
            for mode, options in MODES.items():
                if mode == "lora-autocast" and family in EXPERTS:
                    continue
                loss: Row = {"liger_kernel": True, "loss": "fused_linear" if fused else "torch"}
                yield from both(f"{mode}-liger{'-flce' if fused else ''}", family, options, loss)
    yield from both("qlora-liger-flce", "llama3-8b", FACTORY, method="qlora", liger_kernel=True)


def sharded() -> Iterator[Row]:
    """FSDP2 with accelerate's units of 1.11 (LLaMA-Factory's) and of 1.15."""
    for ranks in (2, 8):
        cards: Row = {"gpus": f"{ranks}xA100-80GB", "parallelism": "fsdp2"}
        for family in ("llama3-8b", "qwen2.5-0.5b", "qwen2.5-7b"):
            for engine in ("llamafactory", "transformers"):
                for method in ("full", "lora"):
                    setup = {"engine": engine, "method": method, "compute_dtype": "bf16", **cards}
                    setup |= {"param_dtype": "fp32"} if method == "full" else {}
                    yield from both(f"{method}-fsdp2-{ranks}-{engine}", family, setup)
    cards = {"gpus": "4xA100-80GB", "parallelism": "fsdp2", "compute_dtype": "bf16"}
    for engine in ("llamafactory", "transformers"):
        base = {"engine": engine, "method": "full", "param_dtype": "fp32", **cards}
        yield from both(f"full-fsdp2-4-{engine}-accumulation-2", "llama3-8b", base, gradient_accumulation_steps=2)
        yield from both(f"full-fsdp2-4-{engine}-adamw-foreach", "mistral-7b", base, optim="adamw_torch")
        yield from both(f"full-fsdp2-4-{engine}-b4-s4096", "mistral-7b", base, seq_len=4096, micro_batch_size=2)
        yield from both(f"full-fsdp2-4-{engine}", "mixtral-8x7b", base)
        yield from both(f"full-fsdp2-4-{engine}-bf16", "llama3-8b", base, param_dtype="bf16")


def deep() -> Iterator[Row]:
    """Whole models, as their engines train them."""
    for family, layers in DEPTHS.items():
        for method in ("lora", "qlora", "full"):
            yield row(f"{family}-{layers}-{method}-factory-gc", family, layers, FACTORY, {"method": method})
    for family, layers in (("llama3-8b", 32), ("qwen2.5-7b", 28)):
        fsdp: Row = {"method": "full", "gpus": "8xA100-80GB", "parallelism": "fsdp2"}
        yield row(f"{family}-{layers}-full-fsdp2-8-llamafactory-gc", family, layers, FACTORY, fsdp)
        yield row(
            f"{family}-{layers}-lora-b4-factory-gc", family, layers, FACTORY, {"method": "lora", "micro_batch_size": 4}
        )
        yield row(
            f"{family}-{layers}-lora-factory", family, layers, FACTORY, {"method": "lora"}, gradient_checkpointing=False
        )


GROUPS = (families, experts, windows, variants, optimizers, quantized, older, stages, liger, sharded, deep)


def rows() -> dict[str, Row]:
    """Every row by its name."""
    return {each["name"]: each for group in GROUPS for each in group()}


def traced(row: Row) -> Row:
    """The row with its result. Raises PlannerError."""
    from planner.trace.matrix import detailed_opinion

    return {**row, **detailed_opinion(row["setup"], row["config"])}


def main() -> int:
    """Trace the rows and write them, in the order of the groups."""
    from planner.errors import PlannerError

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], help="rows whose names hold one of these; the rest stay")
    parser.add_argument("--missing", action="store_true", help="rows only that have no result yet")
    options = parser.parse_args()
    known = {each["name"]: each for each in map(json.loads, DATA.read_text().splitlines())} if DATA.is_file() else {}
    failed = 0
    wanted = rows()
    kept = {name: known[name] for name, each in wanted.items() if name in known and _same(known[name], each)}
    for number, (name, each) in enumerate(wanted.items(), start=1):
        chosen = not options.only or any(word in name for word in options.only)
        if not chosen or (options.missing and name in kept):
            continue
        try:
            kept[name] = traced(each)
            print(f"{number}/{len(wanted)} {name}", file=sys.stderr)
            _write([kept[name] for name in wanted if name in kept])
        except PlannerError as problem:
            failed += 1
            print(f"{name}: {problem.sentence}", file=sys.stderr)
    _write([kept[name] for name in wanted if name in kept])
    return 1 if failed else 0


def _same(old: Row, new: Row) -> bool:
    return (old["config"], old["setup"]) == (new["config"], new["setup"])


def _write(kept: list[Row]) -> None:
    DATA.write_text("".join(json.dumps(each, separators=(",", ":")) + "\n" for each in kept))


if __name__ == "__main__":
    sys.exit(main())
