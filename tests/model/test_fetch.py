"""safetensors headers: exact bytes, elements and dtype, whole and in shards."""

import json
import struct

import pytest

from planner.errors import InputError
from planner.model.catalogue import resolve
from planner.model.fetch import stored_weights

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100, "torch_dtype": "float32",
}  # fmt: skip
PARAMETERS = 2 * 100 * 64 + 4 * 64 * 64 + 3 * 64 * 128 + 3 * 64
SIZES = {"BF16": 2, "F16": 2, "F32": 4, "U8": 1}


def write(path, tensors):
    """A safetensors file of the given (dtype, shape) with no data behind the header."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for number, (dtype, shape) in enumerate(tensors):
        size = SIZES[dtype]
        for extent in shape:
            size *= extent
        header[f"tensor{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_one_file(folder):
    write(folder / "model.safetensors", [("BF16", [PARAMETERS])])
    spec = resolve(str(folder))
    assert (spec.stored_bytes, spec.stored_dtype, spec.verified) == (2 * PARAMETERS, "bf16", "safetensors headers")


def test_shards_by_index(folder):
    write(folder / "a.safetensors", [("F16", [PARAMETERS - 64])])
    write(folder / "b.safetensors", [("F32", [64])])
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    stored = stored_weights(folder)
    assert (stored.total_bytes, stored.elements, stored.main_dtype) == (2 * PARAMETERS + 128, PARAMETERS, "F16")
    assert stored.bytes_by_dtype == {"F16": 2 * (PARAMETERS - 64), "F32": 256}
    assert resolve(str(folder)).stored_dtype == "fp16"


def test_a_missing_shard_is_said_and_no_total_is_claimed(folder):
    write(folder / "a.safetensors", [("BF16", [10])])
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    spec = resolve(str(folder))
    assert spec.stored_bytes is None
    assert "1 weight file(s) are missing, such as b.safetensors" in spec.notes


def test_files_that_disagree_with_the_config_are_noted(folder):
    write(folder / "model.safetensors", [("BF16", [PARAMETERS + 1])])
    spec = resolve(str(folder))
    assert spec.verified is None
    assert f"hold {PARAMETERS + 1:,} elements, the config counts {PARAMETERS:,}" in spec.notes[0]


def test_packed_weights_keep_the_configs_dtype(folder):
    quantized = {**CONFIG, "torch_dtype": "bfloat16", "quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(quantized))
    write(folder / "model.safetensors", [("U8", [500])])
    spec = resolve(str(folder))
    assert (spec.stored_bytes, spec.stored_dtype, spec.notes) == (500, "bf16", ())


@pytest.mark.parametrize(
    "raw", [b"", b"\x01", struct.pack("<Q", 1 << 60), struct.pack("<Q", 2) + b"{]", struct.pack("<Q", 8) + b'{"a": 1}']
)
def test_a_corrupt_file_is_named(folder, raw):
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(InputError, match=r"model\.safetensors: not a readable safetensors file"):
        resolve(str(folder))


def test_an_index_without_weight_map_is_refused(folder):
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="key 'weight_map' is missing"):
        resolve(str(folder))


def test_no_weights_no_claim(folder):
    assert stored_weights(folder) is None
    assert resolve(str(folder)).stored_bytes is None
