"""EDGE: a folder or a YAML file on disk -> the setup that its files state."""

from __future__ import annotations

from pathlib import Path

from planner.errors import InputError
from planner.files import read_text
from planner.targets import TARGETS, Target, accelerate, deepspeed, megatron_read, sidecar, trl_read
from planner.targets.context import Reading
from planner.targets.yaml_text import load_yaml


def read_setup(path: str | Path) -> Reading:
    """The setup of a plan's folder, or of one LLaMA-Factory YAML with the DeepSpeed JSON that it names.

    A folder's trainer is the one whose file lies in it. Raises InputError for what is missing, unreadable or not
    understood.
    """
    place = Path(path).expanduser()
    return _read_folder(place) if place.is_dir() else _read_yaml(place)


def _read_folder(folder: Path) -> Reading:
    target = _target_of(folder)
    texts = {target.file_name: _text(folder / target.file_name)}
    beside = [accelerate.FILE_NAME, sidecar.FILE_NAME, deepspeed.FILE_NAME]
    if target.file_name.endswith(".yaml"):
        beside += _named_files(texts[target.file_name], target.file_name)
    texts |= {name: _text(folder / name) for name in beside if (folder / name).is_file()}
    return target.read(texts, hidden_of=_hidden_of)


def _target_of(folder: Path) -> Target:
    for target in TARGETS.values():
        if (folder / target.file_name).is_file():
            return TARGETS[_owner(_text(folder / trl_read.FILE_NAME))] if target.file_name.endswith(".yaml") else target
    names = " or ".join(dict.fromkeys(target.file_name for target in TARGETS.values()))
    raise InputError(f"config {str(folder)!r} is not the folder of a plan: it has no {names}")


def _read_yaml(place: Path) -> Reading:
    """A lone YAML: nothing says that other files beside it belong to it, except those that it names."""
    if place.suffix.lower() == ".json":
        raise InputError(f"config {str(place)!r}: LLaMA-Factory 0.9.5 cannot read JSON; save it as YAML")
    texts = {place.name: _text(place)}
    for name in _named_files(texts[place.name], place.name):
        found = _find(name, place.parent)
        if found is not None:
            texts[name] = _text(found)
    return TARGETS[_owner(texts[place.name])].read(texts, hidden_of=_hidden_of, name=place.name)


def _owner(text: str) -> str:
    """Whose ``train.yaml`` it is: LLaMA-Factory's, its Megatron adapter's and TRL's share the name."""
    values = load_yaml(text, place=trl_read.FILE_NAME)
    if megatron_read.is_ours(values):
        return "megatron"
    return "trl" if trl_read.is_ours(values) else "llamafactory"


def _text(path: Path) -> str:
    return read_text(str(path), place="config")


def _named_files(text: str, name: str) -> tuple[str, ...]:
    config = load_yaml(text, place=name).get("deepspeed")
    return (config,) if isinstance(config, str) else ()


def _find(name: str, folder: Path) -> Path | None:
    """A path as the trainer would find it: beside the YAML (where plans are started), else from here."""
    return next((each for each in (folder / name, Path(name)) if each.is_file()), None)


def _hidden_of(model: str) -> int | None:
    """The width of a model that is known here; an unknown one leaves DeepSpeed's file as it is."""
    from planner.model.catalogue import resolve

    try:
        return resolve(model).hidden
    except InputError:
        return None
