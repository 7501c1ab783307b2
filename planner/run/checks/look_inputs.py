"""EDGE: the model and the data of a run: on disk, in the hub's cache, or at the hub."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from planner.errors import InputError
from planner.files import read_json_object
from planner.model.fetch import hub_cache_path, stated_bytes
from planner.run.checks.records import DataFacts, ModelFacts, Reach
from planner.run.surroundings import redact

HUB = "https://huggingface.co"
HUB_SECONDS = 10.0
INFO = "dataset_info.json"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_YES = frozenset({"1", "on", "yes", "true"})
# One of each group makes a tokenizer. Source: transformers, tokenization_utils_base.py and the models' slow ones.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tiktoken.model",
               "tokenizer_config.json")  # fmt: skip
_OTHER_HUBS = ("USE_MODELSCOPE_HUB", "USE_OPENMIND_HUB")
# What names a data set that is not a file here, in LLaMA-Factory's dataset_info.json.
_REMOTE = {
    "hf_hub_url": "the Hugging Face hub", "ms_hub_url": "ModelScope", "om_hub_url": "Modelers",
    "script_url": "a script", "cloud_file_name": "cloud storage",
}  # fmt: skip


def look_at_model(role: str, name: str, environment: Mapping[str, str], *, base: Path = Path()) -> ModelFacts:
    """Where a model lies (paths count from ``base``) and whether it is whole there; else whether it can be fetched."""
    path = base / Path(name).expanduser()
    if path.is_dir():
        return _folder(role, name, path, is_local=True)
    if Path(name).is_absolute() or name.startswith(("./", "../", "~")) or name.count("/") > 1:
        return ModelFacts(role=role, name=name, is_local=True)
    other = next((each for each in _OTHER_HUBS if environment.get(each, "").lower() in _YES), None)
    if other is not None:
        return ModelFacts(role=role, name=name, hub=f"the hub of {other}")
    cached = hub_cache_path(name)
    found = _folder(role, name, cached.parent, is_local=False) if cached is not None else None
    if found is not None and not found.missing and found.problem is None:
        return found
    offline = next((each for each in OFFLINE if environment.get(each, "").lower() in _YES), None)
    if offline is not None:
        return found or ModelFacts(role=role, name=name, offline=offline)
    return _at_hub(role, name, environment)


def _folder(role: str, name: str, folder: Path, *, is_local: bool) -> ModelFacts:
    missing, problem = [], None
    try:
        missing, problem = list(_missing(folder)), _torn(folder)
    except InputError as damaged:
        problem = damaged.sentence
    except OSError as refused:
        problem = f"{folder} cannot be read: {(refused.strerror or str(refused)).lower()}"
    return ModelFacts(
        role=role, name=name, folder=str(folder), is_local=is_local, missing=tuple(missing), problem=problem
    )


def _missing(folder: Path) -> Iterator[str]:
    names = {each.name for each in folder.iterdir()}
    if "config.json" not in names:
        yield "config.json"
    index = next(
        (name for name in sorted(names) if name.endswith((".safetensors.index.json", ".bin.index.json"))), None
    )
    if index is not None:
        shards = read_json_object(str(folder / index), place="model").get("weight_map", {})
        yield from (name for name in sorted(set(map(str, shards.values()))) if not (folder / name).is_file())
    elif not any(
        name.endswith((".safetensors", ".bin", ".pt", ".pth")) and (folder / name).is_file() for name in names
    ):
        yield "weights (*.safetensors or *.bin)"
    if not names.intersection(_TOKENIZERS):
        yield "a tokenizer"


def _torn(folder: Path) -> str | None:
    """A file that this user may not read, or that is shorter than its own header says: a copy that was cut off."""
    for file in sorted(folder.glob("*.safetensors")):
        if not os.access(file, os.R_OK):
            return f"{file} cannot be read by this user"
        if file.stat().st_size < stated_bytes(file):
            return f"{file} is shorter than its header says: a copy or download was cut off"
    return None


# ---- the hub


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer already, and a token must not travel along with it."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _at_hub(role: str, name: str, environment: Mapping[str, str]) -> ModelFacts:
    hub = (environment.get("HF_ENDPOINT") or HUB).rstrip("/")
    token = _token(environment)
    reach, detail = _ask(f"{hub}/{quote(name)}/resolve/main/config.json", token)
    shown = urlsplit(hub).hostname or redact(hub)
    return ModelFacts(role=role, name=name, hub=shown, reach=reach, detail=redact(detail), has_token=token is not None)


def _token(environment: Mapping[str, str]) -> str | None:
    """huggingface_hub's own order: HF_TOKEN, HUGGING_FACE_HUB_TOKEN, then the file that `hf auth login` writes."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if environment.get(name, "").strip():
            return environment[name].strip()
    home = environment.get("HF_HOME") or f"{environment.get('XDG_CACHE_HOME', '~/.cache')}/huggingface"
    try:
        path = Path(environment.get("HF_TOKEN_PATH") or f"{home}/token").expanduser()
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError, RuntimeError):
        return None


def _ask(url: str, token: str | None) -> tuple[Reach, str]:
    if not url.startswith(("https://", "http://")):
        return "unreachable", "HF_ENDPOINT is no web address"
    headers = {"User-Agent": "vramplan"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        request = urllib.request.Request(url, method="HEAD", headers=headers)  # noqa: S310 - its scheme is checked
        urllib.request.build_opener(_NoRedirect).open(request, timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError as answer:
        with answer:
            return _reach(answer.code, answer.headers.get("X-Error-Code", ""))
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "reason", problem)
        return "unreachable", getattr(reason, "strerror", None) or str(reason) or type(problem).__name__
    return "reachable", ""


def _reach(status: int, code: str) -> tuple[Reach, str]:
    """The hub answers 401 for what is not there, too; X-Error-Code tells them apart."""
    if 300 <= status < 400:
        return "reachable", ""
    if code == "GatedRepo":
        return "gated", ""
    if code == "RepoNotFound" or status == 404:
        return "absent", ""
    if status in (401, 403):
        return "refused", ""
    return "unreachable", f"status {status}"


# ---- data


def look_at_data(folder: Path, directory: str, names: tuple[str, ...]) -> tuple[tuple[DataFacts, ...], str | None]:
    """The named data sets of ``dataset_info.json`` (all for none), and what is wrong with that file."""
    place = folder / directory / INFO
    if not place.is_file():
        return (), f"{place} is not there"
    try:
        info = read_json_object(str(place), place="data")
    except InputError as problem:
        return (), problem.sentence
    return tuple(_data(place.parent, name, info.get(name)) for name in names or info), None


def _data(folder: Path, name: str, entry: Any) -> DataFacts:
    if not isinstance(entry, dict):
        return DataFacts(name=name, problem=f"{INFO} has no such entry")
    remote = next((hub for key, hub in _REMOTE.items() if entry.get(key)), None)
    if remote is not None:
        return DataFacts(name=name, remote=remote)
    path = folder / str(entry.get("file_name", name))
    shown = path.relative_to(folder) if path.is_relative_to(folder) else path
    return DataFacts(name=name, path=str(shown), problem=_unread(path))


def _unread(path: Path) -> str | None:
    """Why a file, or a folder of them, cannot be read."""
    try:
        files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
        if not files:
            return f"{path} holds no file"
        for file in files:
            with file.open("rb") as opened:
                if not opened.read(1):
                    return f"{file} is empty"
    except FileNotFoundError:
        return f"{path} is not there"
    except OSError as problem:
        return f"{path} cannot be read: {(problem.strerror or str(problem)).lower()}"
    return None
