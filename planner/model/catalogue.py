"""EDGE: a name -> ModelSpec, from rules/models.toml, a local path or the local Hugging Face cache.

The file has hundreds of rows and a run needs one, so the text is indexed by its id lines and only the rows asked for
are parsed: always fresh, and far quicker than parsing the whole.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from planner.errors import InputError, UnsupportedError, nearest
from planner.model import fetch
from planner.model.assumed import llama_like
from planner.model.interpret import interpret
from planner.model.spec import ModelSpec, Quantized
from planner.rulebook.paths import rules_dir

_HEADING = re.compile(r"^\[\[(model|size)\]\]$", re.MULTILINE)
_NAMES = re.compile(r'^(?:id|siblings|aliases)\s*=\s*("[^"]*"|\[[^\]]*\])', re.MULTILINE)
_QUOTED = re.compile(r'"([^"]+)"')
# Organisations that publish other people's models under the same names (ModelScope's among them).
_MIRRORS = frozenset(
    {"unsloth", "nousresearch", "llm-research", "ai-modelscope", "modelscope", "zhipuai", "thudm", "lmstudio-community"}
)
_BNB_4BIT = re.compile(r"(-unsloth)?-bnb-4bit$")
_ENCODER_DECODER = re.compile(
    r"(?:^|[/_-])(?:flan-|code|long|m|um|by)?t5(?:p|gemma|[-_]|$)|(?:^|[/_-])m?bart(?:[-_]|$)"
)
_SAFETENSORS_DTYPES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """The text of one row, parsed when it is needed. ``names``: id, siblings, then aliases."""

    kind: str
    names: tuple[str, ...]
    text: str

    @property
    def fields(self) -> dict[str, Any]:
        """The row as a dict."""
        (row,) = tomllib.loads(self.text)[self.kind]
        return dict(row)


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All rows, and every lower-case name with the row that it belongs to."""

    rows: tuple[Row, ...]
    by_name: dict[str, Row]


def read_catalogue(text: str) -> Catalogue:
    """Index the text of models.toml. A name may be written with or without its organisation, in any case."""
    marks = list(_HEADING.finditer(text))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    rows = tuple(_row(mark[1], text[mark.start() : end]) for mark, end in zip(marks, ends, strict=True))
    by_name: dict[str, Row] = {}
    for short in (False, True):  # whole names win over names without their organisation
        for row in rows:
            for name in row.names:
                key = name.rpartition("/")[2] if short else name
                by_name.setdefault(key.lower(), row)
    return Catalogue(rows=rows, by_name=by_name)


def _row(kind: str, text: str) -> Row:
    names = tuple(name for found in _NAMES.finditer(text) for name in _QUOTED.findall(found[1]))
    return Row(kind=kind, names=names, text=text)


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """The catalogue that ships with the package."""
    return read_catalogue((rules_dir() / "models.toml").read_text(encoding="utf-8"))


def resolve(name: str) -> ModelSpec:
    """The ModelSpec of a catalogue name, size such as ``7B``, folder, config.json, or locally cached hub model.

    Raises InputError with the nearest names where nothing answers to it, or where a config is corrupt;
    UnsupportedError for an architecture that cannot be counted.
    """
    if not name.strip():
        raise InputError("model is empty; name one, such as 7B or Qwen2.5-7B")
    path = fetch.config_path(name)
    if path is None:
        spec = _named(name)
        if spec is not None:
            return spec
        path = fetch.hub_cache_path(name)
    if path is None:
        raise _unknown(name)
    seen = path.stat()
    return _local(path, name, seen.st_mtime_ns, seen.st_size)


@lru_cache(maxsize=1024)
def _named(name: str) -> ModelSpec | None:
    row = catalogue().by_name.get(name.lower())
    return from_row(row, name) if row is not None else _mirrored(name)


def _mirrored(name: str) -> ModelSpec | None:
    """A copy under an organisation known for copies, whole or with bitsandbytes' 4 bit; a note says what was taken."""
    row, copied = _copied(name), name.lower().rpartition("/")[2]
    plain = _BNB_4BIT.sub("", copied)
    if row is None:
        return None
    spec = from_row(row, plain)
    quantized = Quantized(method="bnb", bits=4) if plain != copied else spec.quantized
    note = f"{name} is taken to be a copy of {spec.id}" + (" in 4 bit" if plain != copied else "")
    return replace(spec, id=name, quantized=quantized, verified=None, notes=(*spec.notes, note))


def config_for(name: str) -> dict[str, Any]:
    """The config.json that ``resolve`` reads for this name, as a dict. Raises InputError as it does."""
    path = fetch.config_path(name)
    if path is None:
        row = catalogue().by_name.get(name.lower()) or _copied(name)
        if row is not None:
            fields = row.fields
            return config_for(fields["model"]) if row.kind == "size" else config_of(fields)
        path = fetch.hub_cache_path(name)
    if path is None:
        raise _unknown(name)
    return fetch.read_config(path)


def _copied(name: str) -> Row | None:
    """The row that a mirror's name copies."""
    owner, _, copied = name.lower().rpartition("/")
    row = catalogue().by_name.get(_BNB_4BIT.sub("", copied)) if owner in _MIRRORS else None
    return None if row is None or row.kind == "size" else row


def from_row(row: Row, name: str | None = None) -> ModelSpec:
    """The spec of one catalogue row, under the id that ``name`` asks for."""
    fields = row.fields
    if row.kind == "size":
        spec = resolve(fields["model"])
        return replace(spec, notes=(*spec.notes, f"{fields['id']} stands for {fields['model']}: {fields['reason']}"))
    spec = _interpret_row(fields, id=_full_id(row, fields, name), place=f"rules/models.toml, {fields['id']}")
    notes = (fields["note"],) if fields.get("note") else ()
    return replace(spec, template=fields.get("template"), verified=fields.get("verified"), notes=(*spec.notes, *notes))


def _interpret_row(fields: dict[str, Any], *, id: str, place: str) -> ModelSpec:
    """By the rules of its family; where there are none the row's own count stands, with Llama's blocks."""
    config = config_of(fields)
    try:
        return interpret(config, id=id, place=place)
    except UnsupportedError:
        return llama_like(config, fields["parameters"], id=id, place=place)


def config_of(fields: dict[str, Any]) -> dict[str, Any]:
    """A row's config, laid over that of the row it names in ``same_as``."""
    base = fields.get("same_as")
    config: dict[str, Any] = fields.get("config", {})
    return {**config_of(catalogue().by_name[base.lower()].fields), **config} if base else config


def _full_id(row: Row, fields: dict[str, Any], name: str | None) -> str:
    whole: list[str] = [fields["id"], *fields.get("siblings", [])]
    wanted = str(name or fields["id"]).lower()
    return next((each for each in whole if wanted in (each.lower(), each.rpartition("/")[2].lower())), whole[0])


@lru_cache(maxsize=64)
def _local(path: Path, id: str, mtime_ns: int, size_bytes: int) -> ModelSpec:
    """Cached by what the config file looks like, so that an edited one is read again."""
    config = fetch.read_config(path)
    spec = _interpret_or_count(config, id, path)
    stored = fetch.stored_weights(path.parent)
    spec = replace(spec, local_path=str(path.parent))
    return spec if stored is None else _with_stored(spec, stored)


def _interpret_or_count(config: dict[str, Any], id: str, path: Path) -> ModelSpec:
    try:
        return interpret(config, id=id, place=str(path))
    except UnsupportedError:
        from planner.model.meta import can_count, spec_by_counting  # rare, and counting imports torch

        if not can_count():
            raise
        return spec_by_counting(config, id=id, place=str(path))


def _with_stored(spec: ModelSpec, stored: fetch.Stored) -> ModelSpec:
    dtype = _SAFETENSORS_DTYPES.get(stored.main_dtype)
    changes: dict[str, Any] = {"stored_dtype": dtype} if dtype and spec.quantized is None else {}
    if stored.missing_files:
        note = f"{len(stored.missing_files)} weight file(s) are missing, such as {stored.missing_files[0]}"
        return replace(spec, notes=(*spec.notes, note), **changes)
    changes["stored_bytes"] = stored.total_bytes
    if spec.quantized is None and stored.elements == spec.parameters:
        changes["verified"] = "safetensors headers"
    elif spec.quantized is None:
        note = f"the weight files hold {stored.elements:,} elements, the config counts {spec.parameters:,}"
        changes["notes"] = (*spec.notes, note)
    return replace(spec, **changes)


def specs() -> Iterator[ModelSpec]:
    """Every model of the catalogue, one spec a row, in the order of the file."""
    return (from_row(row) for row in catalogue().rows if row.kind == "model")


def search(words: str) -> tuple[Row, ...]:
    """Rows of which some name holds every word, in the order of the file; sizes match whole. All rows for no words."""
    wanted = words.lower().split()
    return tuple(row for row in catalogue().rows if _matches(row, wanted))


def _matches(row: Row, wanted: list[str]) -> bool:
    if row.kind == "size":
        return not wanted or [row.names[0].lower()] == wanted
    return any(all(word in name.lower() for word in wanted) for name in row.names)


def closest_names(name: str) -> list[str]:
    """Catalogue names most similar to this one, best first, without their organisation where it has none."""
    whole = [each for row in catalogue().rows for each in row.names]
    known = whole if "/" in name else [each.rpartition("/")[2] for each in whole]
    return nearest(name, dict.fromkeys(known))


def _unknown(name: str) -> InputError:
    if _ENCODER_DECODER.search(name.lower()):
        return InputError(
            f"model {name!r} is an encoder-decoder (T5, BART and kin); only causal language models are priced",
            hint="`plan models` lists the catalogue",
        )
    close = closest_names(name)
    offer = f"; did you mean {' or '.join(close)}?" if close else ""
    return InputError(
        f"model {name!r} is not in the catalogue{offer}",
        hint="the path of its config.json or of its folder works too; `plan models` lists the catalogue",
    )
