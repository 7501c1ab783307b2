"""A folder is written whole or not at all, and never over something else unasked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from planner.emit import write
from planner.emit.write import write_folder
from planner.errors import InputError

FILES = {"train.yaml": "a: 1\n", "launch.sh": "#!/bin/sh\n", "data/demo.json": "[]\n", "plan.json": '{"name": "m"}\n'}
OTHER = FILES | {"train.yaml": "a: 2\n"}


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_writes_what_it_is_given(tmp_path: Path) -> None:
    written = write_folder(FILES, tmp_path / "deep" / "out")
    assert texts(written.folder) == FILES
    assert not written.unchanged
    assert os.access(written.folder / "launch.sh", os.X_OK)
    assert not os.access(written.folder / "train.yaml", os.X_OK)
    assert list((tmp_path / "deep").iterdir()) == [written.folder]


def test_default_place_is_named_by_the_plan_and_numbered(tmp_path: Path) -> None:
    first = write_folder(FILES, None, base=tmp_path)
    again = write_folder(FILES, None, base=tmp_path)
    other = write_folder(OTHER, None, base=tmp_path)
    other_again = write_folder(OTHER, None, base=tmp_path)
    assert first.folder == tmp_path / "m" == again.folder
    assert again.unchanged
    assert other.folder == tmp_path / "m-2" == other_again.folder
    assert texts(first.folder) == FILES
    assert texts(other.folder) == OTHER


def test_identical_folder_is_left_alone_with_what_a_run_added(tmp_path: Path) -> None:
    out = write_folder(FILES, tmp_path / "out").folder
    (out / "output").mkdir()
    (out / "output" / "model.safetensors").write_text("weights")
    before = (out / "train.yaml").stat().st_mtime_ns
    assert write_folder(FILES, out).unchanged
    assert (out / "train.yaml").stat().st_mtime_ns == before


def test_an_explicit_folder_with_other_content_is_refused(tmp_path: Path) -> None:
    out = write_folder(FILES, tmp_path / "out").folder
    with pytest.raises(InputError, match="--force") as refused:
        write_folder(OTHER, out)
    assert refused.value.exit_code == 2
    assert texts(out) == FILES


def test_force_replaces_plan_files_and_nothing_else(tmp_path: Path) -> None:
    out = write_folder(FILES | {"ds_config.json": "{}", "accelerate.yaml": "x: 1\n"}, tmp_path / "out").folder
    (out / "notes.txt").write_text("mine")
    write_folder(OTHER | {"accelerate.yaml": "x: 2\n"}, out, force=True)
    assert texts(out) == OTHER | {"notes.txt": "mine", "accelerate.yaml": "x: 2\n"}


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert texts(write_folder(FILES, tmp_path / "out").folder) == FILES


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        write_folder(FILES, tmp_path / "out", force=True)
    with pytest.raises(InputError, match="cannot be written"):
        write_folder(FILES, tmp_path / "out" / "inside")


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_nothing_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    out = tmp_path / "out"
    if exists:
        write_folder(FILES, out)
    written: list[str] = []

    def full_disk(self: Path, data: bytes) -> int:
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(str(self))
        self.touch()
        return len(data)

    monkeypatch.setattr(write.Path, "write_bytes", full_disk)
    with pytest.raises(InputError, match="no space left"):
        write_folder(OTHER, out, force=True)
    monkeypatch.undo()
    assert texts(out) == (FILES if exists else {})
    assert sorted(path.name for path in tmp_path.iterdir()) == (["out"] if exists else [])


def test_names_stay_inside_the_folder(tmp_path: Path) -> None:
    for name in ("../x", "/x", "a/../../x", ""):
        with pytest.raises(ValueError, match="inside a folder"):
            write_folder({name: ""}, tmp_path / "out")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "~nobody-of-that-name/out"])
def test_a_folder_that_cannot_exist_is_one_sentence(name: str, tmp_path: Path) -> None:
    wanted = name if name.startswith("~") else str(tmp_path / name)
    with pytest.raises(InputError, match=r"--out .* cannot be written"):
        write_folder(FILES, wanted)
