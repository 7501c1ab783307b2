"""EDGE: a folder or a YAML file on disk -> the setup that its files state."""

from __future__ import annotations

from pathlib import Path

from planner.errors import InputError
from planner.files import read_text
from planner.targets import accelerate, llamafactory, sidecar
from planner.targets.context import Reading
from planner.targets.yaml_text import load_yaml

LAUNCH_CONFIG = accelerate.FILE_NAME


def read_setup(path: str | Path) -> Reading:
    """The setup of a plan's folder, or of one LLaMA-Factory YAML with the DeepSpeed JSON that it names.

    Beside a folder's ``train.yaml`` its ``accelerate.yaml`` and ``plan.json`` are read; beside a lone YAML neither is,
    for nothing says that they belong to it. Raises InputError for what is missing, unreadable or not understood.
    """
    place = Path(path).expanduser()
    beside: tuple[str, ...] = ()
    if place.is_dir():
        name = llamafactory.FILE_NAME
        beside = (LAUNCH_CONFIG, sidecar.FILE_NAME)
        folder = place
    else:
        name, folder = place.name, place.parent
    texts = {name: read_text(str(folder / name), place="config")}
    for other in (*beside, *_named_files(texts[name], name)):
        found = _find(other, folder)
        if found is not None:
            texts[other] = read_text(str(found), place="config")
    return llamafactory.read(texts, hidden_of=_hidden_of, name=name)


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
