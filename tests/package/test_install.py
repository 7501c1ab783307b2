"""The wheel, the sdist and an editable checkout, each installed into a fresh environment and run from an empty folder.

The fresh environments borrow the dependencies of the running one through a .pth line (whose own .pth files are then not
read), so that the tests need no package index; `planner` itself can only come from what was installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build", reason="building needs the `dev` extra: pip install -e '.[dev]'")
pytest.importorskip("hatchling", reason="building needs the `dev` extra: pip install -e '.[dev]'")
pytestmark = pytest.mark.package

ROOT = Path(__file__).resolve().parents[2]
MAIN_JOB = ("--gpus", "3x20GB", "--model", "7B", "--json")


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist of the checkout, and the wheel built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


def fresh_environment(folder: Path) -> Path:
    """A new virtual environment; returns its python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = site_of(python)
    (site / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def site_of(python: Path) -> Path:
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    return Path(run(python, "-c", ask, cwd=python.parent).stdout.strip())


def install(python: Path, *what: str | Path) -> None:
    flags = (
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
        "--ignore-installed",
    )
    run(python, "-m", "pip", "install", *flags, *what, cwd=python.parent)


def home_of_planner(python: Path, cwd: Path) -> Path:
    return Path(run(python, "-c", "import planner; print(planner.__file__)", cwd=cwd).stdout.strip()).parent


def main_job(python: Path, cwd: Path) -> dict[str, object]:
    answer = run(python.parent / "plan", *MAIN_JOB, cwd=cwd)
    document = json.loads(answer.stdout)
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_it_runs_from_an_empty_folder(kind: str, built: dict[str, Path], tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "env")
    before = {entry.name for entry in site_of(python).iterdir()}
    install(python, built[kind])
    added = {entry.name for entry in site_of(python).iterdir()} - before
    assert {name for name in added if not name.endswith(".dist-info")} == {"planner"}
    empty = tmp_path / "empty"
    empty.mkdir()
    home = home_of_planner(python, empty)
    assert home == site_of(python) / "planner"
    assert (home / "rules" / "gpus.toml").is_file()
    assert any((home / "templates").iterdir())
    document = main_job(python, empty)
    assert document["verdict"] == "fits"
    assert (empty / str(document["folder"])).is_dir()


def test_an_editable_checkout_reads_its_own_rules(tmp_path: Path) -> None:
    python = fresh_environment(tmp_path / "env")
    install(python, "-e", ROOT)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert home_of_planner(python, empty) == ROOT / "planner"
    ask = "from planner.rulebook.paths import rules_dir; print(rules_dir())"
    assert Path(run(python, "-c", ask, cwd=empty).stdout.strip()) == ROOT / "rules"
    assert main_job(python, empty)["verdict"] == "fits"


def test_the_wheel_carries_the_package_and_nothing_else(built: dict[str, Path]) -> None:
    names = zipfile.ZipFile(built["wheel"]).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"planner", "vramplan"}
    assert "planner/py.typed" in names
    rules = {path.name for path in (ROOT / "rules").iterdir() if path.is_file()}
    assert rules <= {name.removeprefix("planner/rules/") for name in names}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_can_be_tested(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "Makefile", "README.md", "LICENSE", "CHANGELOG.md", "cli.py", ".ci/run"} <= names
    assert any(name.startswith("tests/") for name in names)
    assert not any(name.startswith((".venv", ".envs", "plans/")) for name in names)
