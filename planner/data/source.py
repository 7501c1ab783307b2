"""What a plan trains on: the user's file registered by its columns, or the demo set that ships with the package."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planner.data.columns import Table, describe_table, registration
from planner.data.mixing import Mixing
from planner.errors import InputError
from planner.rulebook.paths import templates_dir
from planner.training import PAIR_STAGES

DEMO = "vramplan_demo"
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt")
_TRAIN = ("train",)
_VALID = ("valid", "val", "dev", "eval", "test")


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Registered data sets: ``info`` is dataset_info.json, ``texts`` files to write beside it.

    ``dataset`` and ``eval_dataset`` are names, several of them a comma list. ``samples`` of an epoch, None: not
    counted; ``counts`` those of each set where there are several, mixed by ``mixing``. ``is_demo``: the run proves that
    the folder works, and teaches nothing.
    """

    dataset: str
    eval_dataset: str | None
    info: dict[str, Any]
    samples: int | None
    is_demo: bool = False
    texts: dict[str, str] = field(default_factory=dict)
    shown: str = ""
    counts: tuple[int | None, ...] = ()
    mixing: Mixing | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The sets that are trained on."""
        return tuple(self.dataset.split(","))


def data_source(path: str | None, stage: str, mix: Mixing | None = None) -> DataSource:
    """The data of a plan: ``path`` (a file, a folder with train and valid files, or a comma list of these, mixed by
    ``mix``), or the demo set for None.

    Raises InputError naming the file, its columns and what the stage needs.
    """
    mix = mix or Mixing()
    if path is None:
        mix.check(1, 0)
        return demo_source(stage)
    paths = paths_of(path)
    found = [_user_source(Path(each).expanduser(), stage) for each in paths]
    mix.check(len(found), sum(each.eval_dataset is not None for each in found))
    return found[0] if len(found) == 1 else _mixture(found, mix)


def paths_of(data: str) -> tuple[str, ...]:
    """The paths of ``--data``: one, or a comma list of them."""
    if Path(data).expanduser().exists():
        return (data,)
    parts = tuple(part.strip() for part in data.split(",") if part.strip())
    return parts or (data,)


def joined(paths: Sequence[str]) -> str | None:
    """Paths of a repeated ``--data`` as one comma list. Raises InputError for one whose name has a comma."""
    for path in paths if len(paths) > 1 else ():
        if "," in path and Path(path).expanduser().exists():
            raise InputError(f"--data {path!r} has a comma in its path, which parts data sets here: rename it")
    return ",".join(paths) or None


def _mixture(sources: Sequence[DataSource], mix: Mixing) -> DataSource:
    """Several registered sets as one, each under the name of its file."""
    info: dict[str, Any] = {}
    train: list[str] = []
    valid: list[str] = []
    for source in sources:
        name = _free_name(source.shown, info)
        info[name] = source.info[source.dataset]
        train.append(name)
        if source.eval_dataset is not None:
            info[f"{name}_valid"] = source.info[source.eval_dataset]
            valid.append(f"{name}_valid")
    counts = tuple(source.samples for source in sources)
    return DataSource(
        dataset=",".join(train),
        eval_dataset=",".join(valid) or None,
        info=info,
        samples=mix.samples(counts),
        shown=f"{', '.join(source.shown for source in sources)} ({mix.words})",
        counts=counts,
        mixing=mix,
    )


def _free_name(path: str, taken: Mapping[str, Any]) -> str:
    """A data set's name from its file's: letters, digits, - and _, and a number where two files have one name."""
    file = Path(path)
    stem = f"{file.parent.name}_{file.stem}" if file.stem.lower() in _TRAIN else file.stem
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_") or "data"
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    return name if name not in taken else next(each for each in numbered if each not in taken)


def demo_source(stage: str) -> DataSource:
    """The demo samples in the form that a stage reads."""
    rows = _demo_rows(stage)
    name = f"data/{DEMO}.json"
    table = Table(columns=tuple(rows[0]), samples=len(rows), first=rows[0])
    return DataSource(
        dataset=DEMO,
        eval_dataset=None,
        info={DEMO: {"file_name": name} | registration(table, stage, place=name)},
        samples=len(rows),
        is_demo=True,
        texts={name: json.dumps(rows, ensure_ascii=False, indent=1) + "\n"},
        shown="the demo set that ships with vramplan",
    )


def _demo_rows(stage: str) -> list[dict[str, Any]]:
    if stage in PAIR_STAGES:
        return _demo_file("preferences")
    if stage == "kto":
        return [
            {"instruction": pair["instruction"], "input": "", "output": pair[answer], "kto_tag": answer == "chosen"}
            for pair in _demo_file("preferences")
            for answer in ("chosen", "rejected")
        ]
    rows = _demo_file("instructions")
    if stage == "pt":
        return [{"text": " ".join(part for part in row.values() if part)} for row in rows]
    return rows


def _demo_file(name: str) -> list[dict[str, Any]]:
    text = (templates_dir() / "demo" / f"{name}.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(text)
    return rows


def _user_source(path: Path, stage: str) -> DataSource:
    if path.is_dir():
        train, valid = _train_file(path), _named(path, _VALID)
    elif path.is_file():
        train, valid = path, None
    else:
        raise InputError(
            f"--data {str(path)!r} does not exist; give a file ({', '.join(SUFFIXES)}) or a folder of them"
        )
    table, info = _registered(train, stage)
    infos: dict[str, Any] = {"train": info}
    if valid is not None:
        infos["valid"] = _registered(valid, stage)[1]
    return DataSource(
        dataset="train",
        eval_dataset="valid" if valid is not None else None,
        info=infos,
        samples=table.samples,
        shown=str(train.resolve()),
    )


def _train_file(folder: Path) -> Path:
    named = _named(folder, _TRAIN)
    if named is not None:
        return named
    files = _data_files(folder)
    if len(files) != 1:
        found = ", ".join(file.name for file in files[:5]) or "none"
        raise InputError(f"--data {str(folder)!r} has no train file and not exactly one data file (found: {found})")
    return files[0]


def _named(folder: Path, words: tuple[str, ...]) -> Path | None:
    for word in words:
        for file in _data_files(folder):
            if file.stem.lower() == word or file.stem.lower().startswith((f"{word}-", f"{word}_", f"{word}.")):
                return file
    return None


def _data_files(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.name != "dataset_info.json"
    )


def _registered(path: Path, stage: str) -> tuple[Table, Mapping[str, Any]]:
    absolute = str(path.resolve())
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"--data {str(path)!r} has no known ending; valid: {', '.join(SUFFIXES)}")
    if any(letter in absolute for letter in "*?[]"):
        raise InputError(f"--data {absolute!r} has one of * ? [ ] in its path, which the loader reads as a pattern")
    table = describe_table(path)
    return table, {"file_name": absolute} | registration(table, stage, place=f"--data {str(path)!r}")
