"""The catalogue: every row is whole, exact and found by its names."""

import json
import tomllib
from collections import Counter

import pytest

from planner.errors import InputError, UnsupportedError
from planner.model import catalogue as rooms
from planner.model.catalogue import catalogue, resolve, search, specs
from planner.rulebook.paths import rules_dir
from tests.model.schema import problems

TEXT = (rules_dir() / "models.toml").read_text(encoding="utf-8")
DATA = tomllib.loads(TEXT)
FAMILIES = {
    "llama", "llama4", "qwen", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "mistral", "mixtral", "gemma",
    "gemma2", "gemma3_text", "gemma3", "phi", "phi3", "phimoe", "deepseek_v2", "deepseek_v3", "glm", "glm4", "glm4_moe",
    "chatglm", "baichuan", "internlm2", "internlm3", "falcon", "stablelm", "smollm3", "olmo", "olmo2", "olmoe",
    "granite",
    "granitemoe", "gpt_bigcode", "starcoder2", "gpt2", "gpt_neox", "gptj", "opt", "bloom", "mpt", "cohere", "cohere2",
    "gpt_oss", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "ernie4_5", "seed_oss",
    "exaone4",
}  # fmt: skip


def test_every_row_is_valid():
    assert problems(DATA, file="models.toml") == []


def test_bad_rows_are_reported_all_at_once_by_row_and_field():
    bad = {
        "model": [
            {"id": "no-organisation", "parameters": 10**9, "config": {}, "source": "somewhere", "checked": "today"},
            {"id": "a/b", "paramaters": 1, "same_as": "c/d", "source": "somewhere"},
        ],
        "size": [{"id": "seven", "model": "a/b", "reason": "because it is popular"}],
        "modle": [],
    }
    found = "\n".join(problems(bad, file="models.toml"))
    assert "models.toml: unknown table 'modle'" in found
    assert "model 1 (no-organisation): id: String should match pattern" in found
    assert "model 2 (a/b): paramaters is no key; did you mean parameters?" in found
    assert "model 2 (a/b): checked: Field required" in found
    assert "size 1 (seven): id" in found


def test_there_are_at_least_two_hundred_models_of_every_family():
    ids = [each for row in DATA["model"] for each in (row["id"], *row.get("siblings", []))]
    assert len(set(ids)) >= 500
    shapes = {(json.dumps(row["config"], sort_keys=True)) for row in DATA["model"] if "config" in row}
    assert len(shapes) >= 200
    assert {row["config"]["model_type"] for row in DATA["model"] if "config" in row} >= FAMILIES


def test_stated_parameters_are_what_the_rules_count():
    wrong = {
        spec.id: (row["parameters"], spec.parameters)
        for row, spec in zip(DATA["model"], specs(), strict=True)
        if row["parameters"] != spec.parameters
    }
    assert wrong == {}


def test_no_name_means_two_rows():
    whole = Counter(name.lower() for row in catalogue().rows for name in row.names)
    assert [name for name, times in whole.items() if times > 1] == []
    short: dict[str, set[str]] = {}
    for row in catalogue().rows:
        for name in row.names:
            short.setdefault(name.rpartition("/")[2].lower(), set()).add(row.names[0])
    assert {name: rows for name, rows in short.items() if len(rows) > 1} == {}


def test_every_name_of_the_measured_models_is_known():
    for name in (
        "bigcode/gpt_bigcode-santacoder", "mistralai/Mistral-7B-v0.1", "mistralai/Mixtral-8x7B-Instruct-v0.1",
        "TheBloke/Mistral-7B-v0.1-GPTQ", "TheBloke/Mixtral-8x7B-Instruct-v0.1-GPTQ", "microsoft/phi-1_5",
        "stabilityai/stablelm-base-alpha-3b", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf",
        "meta-llama/Llama-2-70b-hf", "Qwen/Qwen-7B", "Qwen/Qwen-7B-Chat", "Qwen/Qwen-7B-Chat-Int4",
        "meta-llama/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.1-8B", "ibm/PowerLM-3b",
        "ibm-granite/granite-3.0-8b-base", "llama2-7b",
    ):  # fmt: skip
        assert resolve(name).parameters > 10**9


def test_a_name_works_in_any_case_with_and_without_its_organisation():
    wanted = resolve("Qwen/Qwen2.5-7B-Instruct")
    assert resolve("qwen2.5-7b-instruct") == wanted
    assert resolve("QWEN/QWEN2.5-7B-INSTRUCT") == wanted
    assert wanted.id == "Qwen/Qwen2.5-7B-Instruct"
    assert wanted.template == "qwen"


def test_a_sibling_keeps_its_own_id():
    assert resolve("Meta-Llama-3-8B-Instruct").id == "meta-llama/Meta-Llama-3-8B-Instruct"


def test_siblings_may_have_templates_of_their_own():
    templates = {resolve(f"Qwen3-30B-A3B-{kind}-2507").template for kind in ("Instruct", "Thinking")}
    assert templates == {"qwen3_nothink", "qwen3"}


def test_7b_stands_for_a_model_and_says_why():
    spec = resolve("7b")
    assert spec.id == "Qwen/Qwen2.5-7B-Instruct"
    assert spec.parameters == 7_615_616_512
    assert "7B stands for Qwen/Qwen2.5-7B-Instruct: popular" in spec.notes[0]


def test_every_size_stands_for_a_model_about_as_large():
    for row in DATA["size"]:
        size = row["id"]
        if "x" in size:
            continue
        named = float(size[:-1]) * (1e6 if size.endswith("M") else 1e9)
        assert 0.8 < resolve(size).parameters / named < 1.35, size


def test_gptq_rows_are_quantized():
    found = resolve("TheBloke/Mistral-7B-v0.1-GPTQ").quantized
    assert (found.method, found.bits, found.group_size) == ("gptq", 4, 128)


def test_a_mirrors_copy_is_known_and_said_to_be_one():
    copy = resolve("unsloth/Qwen2.5-7B-Instruct")
    assert (copy.id, copy.parameters, copy.quantized) == ("unsloth/Qwen2.5-7B-Instruct", 7_615_616_512, None)
    assert copy.notes == ("unsloth/Qwen2.5-7B-Instruct is taken to be a copy of Qwen/Qwen2.5-7B-Instruct",)
    packed = resolve("unsloth/llama-3-8b-Instruct-bnb-4bit")
    assert (packed.quantized.method, packed.quantized.bits, packed.parameters) == ("bnb", 4, 8_030_261_248)
    with pytest.raises(InputError, match="not in the catalogue"):
        resolve("somebody/Qwen2.5-7B-Instruct")


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(InputError, match=r"model 'Quen2.5-7B' is not in the catalogue; did you mean Qwen2.5-7B"):
        resolve("Quen2.5-7B")
    with pytest.raises(InputError, match="model is empty"):
        resolve(" ")


def test_search_wants_every_word_and_sizes_whole():
    assert {row.names[0] for row in search("mixtral gptq")} == {"TheBloke/Mixtral-8x7B-Instruct-v0.1-GPTQ"}
    assert [row.names[0] for row in search("7b") if row.kind == "size"] == ["7B"]
    assert search("no such model") == ()
    assert len(search("")) == len(catalogue().rows)


CONFIG = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 100,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_a_folder_and_its_config_are_read(folder):
    for name in (str(folder), str(folder / "config.json")):
        spec = resolve(name)
        assert (spec.id, spec.hidden, spec.local_path) == (name, 64, str(folder))


def test_an_edited_config_is_read_again(folder):
    assert resolve(str(folder)).hidden == 64
    (folder / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": 1280}))
    assert resolve(str(folder)).hidden == 1280


def test_a_corrupt_config_is_named_with_its_line(folder):
    (folder / "config.json").write_text('{"model_type": "llama",\n oops}')
    with pytest.raises(InputError, match=r"config.json: line 2 is not valid JSON"):
        resolve(str(folder))


def test_a_config_that_is_no_object_is_refused(folder):
    (folder / "config.json").write_text("[1]")
    with pytest.raises(InputError, match="holds no JSON object"):
        resolve(str(folder))


def test_a_binary_config_is_refused(folder):
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        resolve(str(folder))


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no config\.json"):
        resolve(str(tmp_path))


def test_a_cached_hub_model_is_found(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--me--mine" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "models--me--mine" / "refs").mkdir()
    (tmp_path / "models--me--mine" / "refs" / "main").write_text("abc\n")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert resolve("me/mine").local_path == str(snapshot)


def test_an_unknown_architecture_without_transformers_is_refused(folder, monkeypatch):
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": "brandnew"}))
    monkeypatch.setattr("planner.model.meta.can_count", lambda: False)
    with pytest.raises(UnsupportedError, match="model_type 'brandnew' has no counting rules here") as refusal:
        resolve(str(folder))
    assert "vramplan[count]" in refusal.value.hint


def test_only_the_row_asked_for_is_parsed(monkeypatch):
    parsed = []
    real = tomllib.loads
    monkeypatch.setattr(rooms.tomllib, "loads", lambda text: parsed.append(len(text)) or real(text))
    rooms._named.cache_clear()
    resolve("Llama-3-8B")
    assert len(parsed) <= 2
    assert sum(parsed) < len(TEXT) / 50


@pytest.mark.parametrize("name", ["google/flan-t5-base", "google-t5/t5-small", "facebook/bart-large", "google/mt5-xl"])
def test_an_encoder_decoder_is_refused_by_name(name):
    with pytest.raises(InputError, match="encoder-decoder"):
        resolve(name)


@pytest.mark.parametrize("name", ["speakleash/no-such-bart", "x/t50-model"])
def test_other_names_are_not_taken_for_encoder_decoders(name):
    with pytest.raises(InputError) as refused:
        resolve(name)
    assert ("encoder-decoder" in refused.value.sentence) == name.endswith("bart")


def test_an_encoder_decoder_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "t5", "d_model": 512}', encoding="utf-8")
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        resolve(str(tmp_path))
