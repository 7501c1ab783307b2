"""Vision towers and projectors: exact parameter counts from a ``vision_config``.

Source: the modelling code of transformers 5.23 (clip, siglip, pixtral, qwen2_vl, qwen2_5_vl, qwen3_vl, llama4, mllama,
internvl, and the wrappers llava, llava_next, gemma3, mistral3). Symbols: h width of the tower, i its feed-forward
width, t width of the text model, d = h · merge² the width of merged patches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from planner.errors import UnsupportedError
from planner.model.keys import Keys
from planner.model.spec import VisionTower

# What the towers' config classes assume where a key is left out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "image_size": 224, "patch_size": 32,
    },
    "siglip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16,
    },
    "pixtral": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "patch_size": 16,
    },
    "llama4_vision_model": {
        "hidden_size": 768, "intermediate_size": 5632, "num_hidden_layers": 34, "image_size": 448, "patch_size": 14,
        "projector_input_dim": 4096, "projector_output_dim": 4096, "vision_output_dim": 7680,
    },
    "mllama": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_global_layers": 8,
        "image_size": 448, "patch_size": 14, "max_num_tiles": 4, "vision_output_dim": 7680,
    },
    "qwen2_vl": {
        "depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
    "qwen2_5_vl": {
        "depth": 32, "hidden_size": 3584, "intermediate_size": 3420, "patch_size": 14, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "out_hidden_size": 3584,
    },
    "qwen3_vl": {
        "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "out_hidden_size": 3584, "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    },
    "qwen3_5": {
        "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 16, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "out_hidden_size": 3584, "num_position_embeddings": 2304,
    },
    "internvl": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "image_size": [448, 448],
        "patch_size": [14, 14],
    },
}  # fmt: skip


def vision_tower(config: Mapping[str, Any], model_type: str, text_hidden: int, place: str) -> VisionTower:
    """The tower and projector of a wrapper config; ``text_hidden`` is t.

    Raises UnsupportedError for a tower that is not known, InputError for impossible values.
    """
    section = config.get("vision_config")
    given: Mapping[str, Any] = section if isinstance(section, Mapping) else {}
    kind = _kind(model_type, given)
    if kind not in _TOWERS:
        raise UnsupportedError(f"{place}: the vision tower {kind!r} has no counting rules here; known: {_KNOWN}")
    keys = Keys({**_DEFAULTS[kind], **given}, kind, place=f"{place}, vision_config", nested=True)
    outer = Keys(config, model_type, place=place)
    return _TOWERS[kind](keys, outer, text_hidden)


def _kind(model_type: str, given: Mapping[str, Any]) -> str:
    """A tower's own model_type, the families whose towers are written like their wrapper first."""
    family = {"qwen3_vl_moe": "qwen3_vl", "qwen3_5_moe": "qwen3_5"}.get(model_type, model_type)
    if family in _DEFAULTS:
        return family
    fallback = {"gemma3": "siglip_vision_model", "mistral3": "pixtral", "llama4": "llama4_vision_model"}
    return str(given.get("model_type") or fallback.get(model_type, "clip_vision_model"))


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> int:
    return inputs * outputs + (outputs if bias else 0)


def _encoder_layer(h: int, i: int) -> int:
    """LayerNorm, q k v o, LayerNorm, fc1 fc2, all with biases (CLIP, SigLIP, Llama 4)."""
    return 4 * h + 4 * _linear(h, h) + _linear(h, i) + _linear(i, h)


def _encoder_matrices(h: int, i: int) -> int:
    """Elements of the weights of one such layer's Linear modules."""
    return 4 * h * h + 2 * h * i


def _llava_matrices(outer: Keys, h: int, t: int) -> int:
    chosen = outer.raw("vision_feature_layer")
    return h * (len(chosen) if isinstance(chosen, list) else 1) * t + t * t


def _llava_projector(outer: Keys, h: int, t: int) -> int:
    """Two layers from the chosen feature layers to the text model; LLaVA-NeXT adds a learned newline."""
    bias = outer.flag("multimodal_projector_bias", default=True)
    chosen = outer.raw("vision_feature_layer")
    features = len(chosen) if isinstance(chosen, list) else 1
    newline = t if outer.model_type in ("llava_next", "llava_next_video", "llava_onevision") else 0
    return _linear(h * features, t, bias=bias) + _linear(t, t, bias=bias) + newline


def _clip(keys: Keys, outer: Keys, t: int) -> VisionTower:
    h, i, layers = keys.whole("hidden_size"), keys.whole("intermediate_size"), keys.whole("num_hidden_layers")
    patch = keys.whole("patch_size")
    positions = (keys.whole("image_size") // patch) ** 2 + 1
    tower = h + 3 * patch**2 * h + positions * h + 4 * h + layers * _encoder_layer(h, i)
    matrices = layers * _encoder_matrices(h, i) + _llava_matrices(outer, h, t)
    projector = _llava_projector(outer, h, t)
    return VisionTower(parameters=tower, projector_parameters=projector, matrices=matrices, hidden=h, layers=layers)


def _siglip(keys: Keys, outer: Keys, t: int) -> VisionTower:
    h, i, layers = keys.whole("hidden_size"), keys.whole("intermediate_size"), keys.whole("num_hidden_layers")
    patch = keys.whole("patch_size")
    positions = (keys.whole("image_size") // patch) ** 2
    tower = _linear(3 * patch**2, h) + positions * h + 2 * h + layers * _encoder_layer(h, i)
    matrices = layers * _encoder_matrices(h, i)
    if keys.flag("vision_use_head", default=True):  # of its attention only the output projection is a Linear
        tower += h + 4 * _linear(h, h) + 2 * h + _linear(h, i) + _linear(i, h)
        matrices += h * h + 2 * h * i
    bare = outer.model_type == "gemma3"  # its projection is a parameter, no Linear
    return VisionTower(
        parameters=tower,
        projector_parameters=h * t + h if bare else _llava_projector(outer, h, t),
        matrices=matrices if bare else matrices + _llava_matrices(outer, h, t),
        hidden=h,
        layers=layers,
    )


def _pixtral(keys: Keys, outer: Keys, t: int) -> VisionTower:
    h, i, layers = keys.whole("hidden_size"), keys.whole("intermediate_size"), keys.whole("num_hidden_layers")
    heads = keys.whole("num_attention_heads")
    inner = heads * (keys.maybe("head_dim") or h // heads)
    tower = 3 * keys.whole("patch_size") ** 2 * h + h + layers * (2 * h + 4 * h * inner + 3 * h * i)
    if outer.model_type == "mistral3":
        merge = outer.whole("spatial_merge_size", 2)
        bias = outer.flag("multimodal_projector_bias")
        projector = h + h * h * merge**2 + _linear(h, t, bias=bias) + _linear(t, t, bias=bias)
        matrices = h * h * merge**2 + h * t + t * t
    else:
        projector = _llava_projector(outer, h, t)
        matrices = _llava_matrices(outer, h, t)
    matrices += layers * (4 * h * inner + 3 * h * i)
    return VisionTower(parameters=tower, projector_parameters=projector, matrices=matrices, hidden=h, layers=layers)


def _llama4(keys: Keys, outer: Keys, t: int) -> VisionTower:
    h, i, layers = keys.whole("hidden_size"), keys.whole("intermediate_size"), keys.whole("num_hidden_layers")
    patch = keys.whole("patch_size")
    positions = (keys.whole("image_size") // patch) ** 2 + 1
    middle, out = keys.whole("projector_input_dim"), keys.whole("projector_output_dim")
    adapter = i * middle + middle * out
    tower = h + positions * h + 3 * patch**2 * h + 4 * h + layers * _encoder_layer(h, i) + adapter
    projector = keys.whole("vision_output_dim") * t
    matrices = 3 * patch**2 * h + layers * _encoder_matrices(h, i) + adapter + projector
    return VisionTower(parameters=tower, projector_parameters=projector, matrices=matrices, hidden=h, layers=layers)


def _mllama(keys: Keys, outer: Keys, t: int) -> VisionTower:
    """Llama 3.2 Vision: positions and tiles are embedded for each aspect ratio, global layers are gated."""
    h, i, layers = keys.whole("hidden_size"), keys.whole("intermediate_size"), keys.whole("num_hidden_layers")
    patch, tiles, gated = keys.whole("patch_size"), keys.whole("max_num_tiles"), keys.whole("num_global_layers")
    positions = ((keys.whole("image_size") // patch) ** 2 + 1) * h
    ratios = len(keys.items("supported_aspect_ratios") or range(8)) + 1
    embedded = 1 + positions + ratios * tiles * positions + 2 * (1 + ratios * tiles * h)
    block = 4 * h + 4 * h * h + _linear(h, i) + _linear(i, h)
    tower = h + 3 * patch**2 * h + embedded + 4 * h + layers * block + gated * (block + 2)
    out = keys.whole("vision_output_dim")
    matrices = (layers + gated) * _encoder_matrices(h, i) + out * t
    return VisionTower(
        parameters=tower, projector_parameters=_linear(out, t), matrices=matrices, hidden=h, layers=layers + gated
    )


def _patches(keys: Keys, h: int, *, bias: bool = False) -> int:
    """The 3-D convolution that reads the patches."""
    return _linear(3 * keys.whole("temporal_patch_size") * keys.whole("patch_size") ** 2, h, bias=bias)


def _qwen2(keys: Keys, outer: Keys, t: int) -> VisionTower:
    h, layers, out = keys.whole("embed_dim"), keys.whole("depth"), keys.whole("hidden_size")
    i = keys.whole("mlp_ratio", 4) * h
    d = h * keys.whole("spatial_merge_size") ** 2
    tower = _patches(keys, h) + layers * (4 * h + _linear(h, 3 * h) + _linear(h, h) + _linear(h, i) + _linear(i, h))
    merger = 2 * h + _linear(d, d) + _linear(d, out)
    matrices = layers * _encoder_matrices(h, i) + d * d + d * out
    return VisionTower(parameters=tower, projector_parameters=merger, matrices=matrices, hidden=h, layers=layers)


def _qwen25(keys: Keys, outer: Keys, t: int) -> VisionTower:
    h, i, layers = keys.whole("hidden_size"), keys.whole("intermediate_size"), keys.whole("depth")
    d = h * keys.whole("spatial_merge_size") ** 2
    block = 2 * h + _linear(h, 3 * h) + _linear(h, h) + 2 * _linear(h, i) + _linear(i, h)
    out = keys.whole("out_hidden_size")
    return VisionTower(
        parameters=_patches(keys, h) + layers * block,
        projector_parameters=h + _linear(d, d) + _linear(d, out),
        matrices=layers * (4 * h * h + 3 * h * i) + d * d + d * out,
        hidden=h,
        layers=layers,
    )


def _qwen3(keys: Keys, outer: Keys, t: int) -> VisionTower:
    h, i, layers = keys.whole("hidden_size"), keys.whole("intermediate_size"), keys.whole("depth")
    d, out = h * keys.whole("spatial_merge_size") ** 2, keys.whole("out_hidden_size")
    block = 4 * h + _linear(h, 3 * h) + _linear(h, h) + _linear(h, i) + _linear(i, h)
    tower = _patches(keys, h, bias=True) + keys.whole("num_position_embeddings") * h + layers * block
    merger = _linear(d, d) + _linear(d, out)
    deep = len(keys.items("deepstack_visual_indexes") or []) if keys.model_type == "qwen3_vl" else 0
    projector = 2 * h + merger + deep * (2 * d + merger)
    matrices = layers * _encoder_matrices(h, i) + (1 + deep) * (d * d + d * out)
    return VisionTower(parameters=tower, projector_parameters=projector, matrices=matrices, hidden=h, layers=layers)


def _sides(keys: Keys, name: str) -> tuple[int, int]:
    """Height and width, given as one number or as two."""
    sides = keys.raw(name)
    if (
        isinstance(sides, list | tuple)
        and len(sides) == 2
        and all(isinstance(each, int) and each > 0 for each in sides)
    ):
        return sides[0], sides[1]
    side = keys.whole(name)
    return side, side


def _internvl(keys: Keys, outer: Keys, t: int) -> VisionTower:
    """InternVL: scaled residuals, optional biases and query norms, merged patches before the projector."""
    h, i, layers = keys.whole("hidden_size"), keys.whole("intermediate_size"), keys.whole("num_hidden_layers")
    (high, wide), (tall, broad) = _sides(keys, "image_size"), _sides(keys, "patch_size")
    positions = (
        (high // tall) * (wide // broad) + 1 if keys.flag("use_absolute_position_embeddings", default=True) else 0
    )
    embedded = h + _linear(3 * tall * broad, h) + positions * h + (h if keys.flag("use_mask_token") else 0)
    norm = h if keys.text("norm_type", default="layer_norm") == "rms_norm" else 2 * h
    attention = 3 * _linear(h, h, bias=keys.flag("attention_bias")) + _linear(h, h)
    block = 2 * norm + attention + (2 * h if keys.flag("use_qk_norm") else 0) + _linear(h, i) + _linear(i, h) + 2 * h
    tower = embedded + layers * block + (0 if keys.flag("use_mean_pooling", default=True) else 2 * h)
    merged = h * int(1 / outer.number("downsample_ratio", 0.5)) ** 2
    projector = 2 * merged + _linear(merged, t) + _linear(t, t)
    matrices = layers * _encoder_matrices(h, i) + merged * t + t * t
    return VisionTower(parameters=tower, projector_parameters=projector, matrices=matrices, hidden=h, layers=layers)


_TOWERS: dict[str, Callable[[Keys, Keys, int], VisionTower]] = {
    "clip_vision_model": _clip,
    "siglip_vision_model": _siglip,
    "pixtral": _pixtral,
    "llama4_vision_model": _llama4,
    "mllama": _mllama,
    "qwen2_vl": _qwen2,
    "qwen2_5_vl": _qwen25,
    "qwen3_vl": _qwen3,
    "qwen3_5": _qwen3,
    "internvl": _internvl,
}
_KNOWN = ", ".join(_TOWERS)
