"""Settings read from a JSON file and the command line, and the model that they describe."""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

HERE = Path(__file__).resolve().parent
LOADED_ONTO_GPU = ("none", "ddp", "zero1", "zero2")


def read_settings(name, words):
    """The settings file beside this one, with the overrides of the command line."""
    settings = json.loads((HERE / name).read_text(encoding="utf-8"))
    for word in words:
        path, _, text = word.partition("=")
        section, _, key = path.rpartition(".")
        if not isinstance(settings.get(section), dict) or not text:
            sections = ", ".join(key for key, value in settings.items() if isinstance(value, dict))
            sys.exit(f"error: {word!r} is no override; write section.key=value, sections: {sections}")
        try:
            settings[section][key] = json.loads(text)
        except ValueError:
            settings[section][key] = text
    return settings


def quantization_of(settings, dtype):
    """bitsandbytes' settings; 4-bit weights are stored as the compute dtype, which sharding can split."""
    quantization = settings["quantization"]
    if quantization["bits"] == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization["type"],
        bnb_4bit_use_double_quant=quantization["double"],
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
    )


def load_model(settings, device, *, weights=None, straight_to_device=False):
    """The model in its stated dtype, quantized and with adapters where the settings have them.

    ``weights`` is the checkpoint to go on from: a whole model, or adapters for the model of the settings.
    """
    model, adapter = settings["model"], settings["adapter"]
    dtype = getattr(torch, model["dtype"])
    extra = {"quantization_config": quantization_of(settings, dtype)} if settings["quantization"] else {}
    if (extra or straight_to_device) and settings["parallelism"]["kind"] in LOADED_ONTO_GPU:
        extra["device_map"] = {"": device}
    loaded = AutoModelForCausalLM.from_pretrained(
        model["name_or_path"] if adapter or weights is None else weights,
        dtype=dtype,
        attn_implementation=model["attention"],
        trust_remote_code=model["trust_remote_code"],
        **extra,
    )
    return with_adapters(loaded, adapter, weights) if adapter else loaded


def with_adapters(loaded, adapter, weights):
    """peft's adapters on a frozen base: new ones, or those of a checkpoint."""
    from peft import LoraConfig, PeftModel, get_peft_model

    if weights is not None:
        return PeftModel.from_pretrained(
            loaded, weights, is_trainable=True, autocast_adapter_dtype=adapter["upcast"], torch_device="cpu"
        )
    target = adapter["target"]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter["rank"],
        lora_alpha=adapter["alpha"],
        lora_dropout=adapter["dropout"],
        target_modules="all-linear" if target == "all" else target,
        modules_to_save=adapter["modules_to_save"],
        use_dora=adapter["dora"],
        use_rslora=adapter["rslora"],
    )
    return get_peft_model(loaded, config, autocast_adapter_dtype=adapter["upcast"])
