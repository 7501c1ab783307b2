"""A Hugging Face config dict -> ModelSpec, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from planner.errors import InputError, UnsupportedError, nearest
from planner.model.classic import CLASSIC
from planner.model.count import count
from planner.model.experts import EXPERTS
from planner.model.families import DENSE, Traits, build
from planner.model.hybrid import HYBRID
from planner.model.keys import Keys
from planner.model.spec import ModelSpec, Quantized
from planner.model.vision import vision_tower

FAMILIES: dict[str, Traits] = {**DENSE, **CLASSIC, **EXPERTS, **HYBRID}
# Text sides that are a family above under another name.
SAME_AS: dict[str, str] = {
    "mllama": "mllama_text_model",
    "qwen2_vl": "qwen2", "qwen2_vl_text": "qwen2", "qwen2_5_vl": "qwen2", "qwen2_5_vl_text": "qwen2",
    "qwen3_vl": "qwen3", "qwen3_vl_text": "qwen3", "qwen3_vl_moe": "qwen3_moe", "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_5": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text", "gemma3": "gemma3_text", "llama4": "llama4_text",
    "mistral3": "mistral", "llava": "llama", "llava_next": "llama", "internvl": "qwen2",
}  # fmt: skip
# Wrappers of a text and a vision model, with what they assume about tied embeddings. The older ones take the flag
# from their text_config too, because it used to be saved there.
WRAPPERS: dict[str, bool] = {
    "mllama": False,
    "qwen2_vl": False, "qwen2_5_vl": False, "qwen3_vl": False, "qwen3_vl_moe": False, "qwen3_5": False,
    "qwen3_5_moe": False, "gemma3": True, "llama4": False, "mistral3": True, "llava": False, "llava_next": False,
    "internvl": True,
}  # fmt: skip
_TIED_BY_TEXT = frozenset({"qwen2_vl", "qwen2_5_vl", "llava", "llava_next"})
# Former names of the same code.
RENAMED: dict[str, str] = {
    "RefinedWeb": "falcon", "RefinedWebModel": "falcon", "stablelm_epoch": "stablelm", "Yi": "llama",
}  # fmt: skip
_DTYPES: dict[str, Literal["bf16", "fp16", "fp32"]] = {
    "bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "half": "fp16", "float": "fp32",
}  # fmt: skip


def interpret(config: Mapping[str, Any], *, id: str = "", place: str = "config.json") -> ModelSpec:
    """The ModelSpec of a parsed config.json; widths in elements, ``parameters`` exact.

    ``place`` opens error sentences. Raises InputError naming a missing or impossible key, UnsupportedError for a
    ``model_type`` that is not known, with the nearest known ones.
    """
    if not isinstance(config, Mapping):
        raise InputError(f"{place}: the file holds no JSON object")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise InputError(f"{place}: key 'model_type' is missing; it names the architecture, such as llama or qwen2")
    config, model_type = _modern(config, model_type)
    spec = _text_spec(config, model_type, place)
    spec = replace(
        spec,
        id=id or str(config.get("_name_or_path") or model_type),
        model_type=model_type,
        stored_dtype=stored_dtype(config),
        quantized=quantized(config, place),
        dropout=_drops(config),
    )
    counted = count(spec)
    return replace(spec, parameters=counted.total, active_parameters=counted.active if spec.is_moe else None)


def _drops(config: Mapping[str, Any]) -> bool:
    """Whether the residual branches drop in training, which keeps a mask of each: as StarCoder 2's and Phi-2's do."""
    rates = (config.get(key) for key in ("resid_pdrop", "residual_dropout", "hidden_dropout", "dropout"))
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


def _modern(config: Mapping[str, Any], model_type: str) -> tuple[Mapping[str, Any], str]:
    """Configs of former times under the names of today.

    ChatGLM-6B shares its model_type with its successors, and Falcon-40B's first config does not state its shape.
    """
    if model_type == "chatglm" and "inner_hidden_size" in config:
        return config, "chatglm1"
    if model_type == "RefinedWeb":
        config = {"new_decoder_architecture": True, **config}
    return config, RENAMED.get(model_type, model_type)


def _text_spec(config: Mapping[str, Any], model_type: str, place: str) -> ModelSpec:
    if model_type not in WRAPPERS:
        return build(Keys(config, _family(model_type, place), place=place), _traits(model_type, place))
    outer = Keys(config, model_type, place=place)
    nested = outer.section("text_config")
    text_type = str(nested.get("model_type") or model_type)
    keys = Keys(
        nested or config, _family(text_type, place), place=f"{place}, text_config" if nested else place,
        nested=bool(nested),
    )  # fmt: skip
    spec = build(keys, _traits(text_type, place))
    tied = outer.flag("tie_word_embeddings", default=WRAPPERS[model_type])
    if model_type in _TIED_BY_TEXT:
        tied = tied or keys.flag("tie_word_embeddings")
    return replace(spec, tied_embeddings=tied, vision=vision_tower(config, model_type, spec.hidden, place))


def _family(model_type: str, place: str) -> str:
    """The family that has this type's rules. Raises UnsupportedError where none has."""
    family = SAME_AS.get(model_type, model_type)
    if family not in FAMILIES:
        raise unknown_type(model_type, place)
    return family


def _traits(model_type: str, place: str) -> Traits:
    return FAMILIES[_family(model_type, place)]


ENCODER_DECODERS = frozenset(
    {"t5", "mt5", "umt5", "byt5", "longt5", "t5gemma", "t5gemma2", "switch_transformers", "bart", "mbart", "plbart"}
    | {
        "pegasus",
        "pegasus_x",
        "marian",
        "m2m_100",
        "nllb-moe",
        "blenderbot",
        "prophetnet",
        "whisper",
        "bigbird_pegasus",
    }
)


def unknown_type(model_type: str, place: str) -> UnsupportedError:
    """The refusal of an architecture, with the nearest known ones."""
    if model_type in ENCODER_DECODERS:
        return UnsupportedError(
            f"{place}: model_type {model_type!r} is an encoder-decoder; only causal language models are priced"
        )
    close = nearest(model_type, [*FAMILIES, *SAME_AS])
    offer = (
        f"; the nearest known are {', '.join(close)}"
        if close
        else f"; known are {', '.join([*FAMILIES][:8])} and others"
    )
    return UnsupportedError(
        f"{place}: model_type {model_type!r} has no counting rules here{offer}",
        hint="install the extra `vramplan[count]` and transformers' own model code counts its parameters",
    )


def stored_dtype(config: Mapping[str, Any]) -> Literal["bf16", "fp16", "fp32"]:
    """The dtype the weights are stored in, by ``dtype`` or ``torch_dtype``; float32 where neither is given.

    transformers loads in that dtype when asked for "auto"; a config without it means float32 (its own default).
    """
    text = config.get("text_config")
    nested = text if isinstance(text, Mapping) else {}
    given = next((c.get(k) for c in (config, nested) for k in ("dtype", "torch_dtype") if c.get(k)), "float32")
    return _DTYPES.get(str(given).removeprefix("torch."), "bf16")


def quantized(config: Mapping[str, Any], place: str) -> Quantized | None:
    """What ``quantization_config`` says about the stored weights, or None."""
    section = config.get("quantization_config")
    if section is None:
        return None
    if not isinstance(section, Mapping):
        raise InputError(f"{place}: quantization_config must be an object")
    method = str(section.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in section else "unknown"))
    group = section.get("group_size", section.get("q_group_size"))
    return Quantized(
        method="bnb" if method.startswith("bitsandbytes") else method,
        bits=_bits(section, method),
        group_size=group if isinstance(group, int) and group > 0 else None,
    )


def _bits(section: Mapping[str, Any], method: str) -> int:
    given = section.get("bits", section.get("w_bit"))
    if isinstance(given, int):
        return given
    if section.get("load_in_4bit") or method == "mxfp4":
        return 4
    return 8
