"""The preflight on real things: Pythons, files, sockets, limits, file systems, a hub on this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import packaging
import pytest

from planner.cli.app import run
from planner.run.checks.look import port_taken, unresolved, volume_of, working_in
from planner.run.checks.look_inputs import look_at_data, look_at_model
from planner.run.checks.look_python import ask_python, interpreter_of
from planner.run.checks.records import Package, PythonFacts
from planner.run.job import load_job
from planner.run.preflight import preflight
from planner.run.records import Check
from planner.run.state import RUNS
from planner.units import MIB
from tests.run import furnished
from tests.run.conftest import ONE, TWO, Desk

ANSWERS = Path(__file__).resolve().parents[1] / "hardware" / "answers"
TOKEN = "hf_" + "AbCdEfGh" * 4
IS_ROOT = os.geteuid() == 0


def answered(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ANSWERS / f"{name}.json").read_text())
    return found


# ---- the engine's Python


def asked(python: Path, *packages: Package, **more: Any) -> PythonFacts:
    environment = {"PATH": os.environ["PATH"], **more.pop("environment", {})}
    return ask_python(str(python), packages, environment=environment, **more)


def needs(*modules: str) -> tuple[Package, ...]:
    return tuple(Package(name=module, module=module, why="this test") for module in modules)


def test_a_bare_environment_lacks_everything(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False)
    facts = asked(tmp_path / "bare" / "bin" / "python", *needs("deepspeed", "bitsandbytes"), also=("torch",))
    assert facts.problem is None
    assert facts.version == ".".join(map(str, sys.version_info[:3]))
    assert (facts.packages, facts.broken, facts.torch) == ({}, {}, None)


def test_modules_that_raise_kill_or_hang_are_named_and_passed_by(tmp_path: Path) -> None:
    python = furnished.environment(tmp_path / "engine", {})
    site = furnished.site_of(tmp_path / "engine")
    sources = {
        "raises": "import os\nraise OSError('libcudart.so.13: cannot open\\nsecond line')",
        "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
        "leaves": "import os\nos._exit(3)",
        "prints": "print('{\"packages\": {}}')",
        "hangs": "import time\ntime.sleep(600)",
        "works": "",
    }
    for name, source in sources.items():
        furnished.install(site, name, "1.0")
        furnished.add_module(site, name, source)
    facts = asked(python, *needs(*sources), seconds=3.0)
    assert facts.broken == {
        "raises": "OSError: libcudart.so.13: cannot open",
        "killed": "signal 11 ended the process",
        "leaves": "it ended with status 3",
        "hangs": "it did not end in 3 s",
    }
    assert set(facts.packages) == set(sources)


def test_requirements_that_are_not_met(tmp_path: Path) -> None:
    python = furnished.environment(tmp_path / "engine", {"accelerate": "1.15.0", "peft": "0.18.1"})
    stated = ("accelerate<=1.11.0,>=1.3.0", "peft>=0.18", "gradio>4", "vllm; extra == 'vllm'")
    furnished.install(furnished.site_of(tmp_path / "engine"), "llamafactory", "0.9.5", *stated)
    seen = {"PYTHONPATH": str(Path(packaging.__file__).parents[1])}
    facts = asked(python, also=("accelerate",), engine="llamafactory", environment=seen)
    assert [(each.stated, each.installed) for each in facts.unmet] == [
        ("accelerate<=1.11.0,>=1.3.0", "1.15.0"), ("gradio>4", None),
    ]  # fmt: skip


def test_torch_is_read_and_where_asked_tried(tmp_path: Path) -> None:
    python = furnished.environment(tmp_path / "engine", {"torch": "2.13.0+cu130"})
    site = furnished.site_of(tmp_path / "engine")
    source = (
        "import warnings\nclass cuda:\n    device_count = staticmethod(lambda: 0)\n    @staticmethod\n"
        "    def is_available():\n        warnings.warn('CUDA initialization: The NVIDIA driver is too old')\n"
        "        return False\nclass _C:\n    _cuda_getArchFlags = staticmethod(lambda: 'sm_80 sm_90')\n"
    )
    furnished.add_module(site, "torch", source)
    (site / "torch" / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n"
        "hip: Optional[str] = None\n"
    )
    quiet = asked(python, also=("torch",)).torch
    assert quiet is not None
    assert (quiet.version, quiet.cuda, quiet.hip, quiet.available) == ("2.13.0+cu130", "13.0", None, None)
    tried = asked(python, also=("torch",), with_torch=True).torch
    assert tried is not None
    assert (tried.available, tried.count, tried.architectures) == (False, 0, ("sm_80", "sm_90"))
    assert tried.problem == "CUDA initialization: The NVIDIA driver is too old"
    (site / "torch" / "__init__.py").write_text("import os\nos.abort()")
    died = asked(python, *needs("torch"), with_torch=True)
    assert died.torch is not None
    assert died.torch.problem == "signal 6 ended the process"


def test_secrets_stay_with_the_caller(tmp_path: Path) -> None:
    python = furnished.environment(tmp_path / "engine", {"tells": "1"})
    source = f"import os\nraise ValueError(os.environ.get('HF_TOKEN', 'no token'), {TOKEN!r})"
    furnished.add_module(furnished.site_of(tmp_path / "engine"), "tells", source)
    facts = asked(python, *needs("tells"), environment={"HF_TOKEN": TOKEN})
    assert facts.broken == {"tells": "ValueError: ('no token', '<redacted>')"}


def test_a_python_that_is_none(tmp_path: Path) -> None:
    assert asked(tmp_path / "absent").problem == "no such file or directory"
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)
    assert asked(program, also=("torch",)).problem == "it ended with status 7"


@pytest.mark.parametrize("form", ["#!{0}\n", "#!{0} -E\n", "#!/bin/sh\n'''exec' \"{0}\" \"$0\" \"$@\"\n' '''\n"])
def test_the_python_of_a_program(form: str, tmp_path: Path) -> None:
    other = furnished.environment(tmp_path / "another", {})
    program = tmp_path / "llamafactory-cli"
    program.write_text(form.format(other))
    assert interpreter_of(str(program)) == str(other)


def test_the_python_of_a_program_that_says_none(tmp_path: Path) -> None:
    program = tmp_path / "llamafactory-cli"
    program.write_text("#!/bin/bash\nexec something\n")
    assert interpreter_of(str(program)) == sys.executable
    beside = tmp_path / "python"
    beside.symlink_to(sys.executable)
    assert interpreter_of(str(program)) == str(beside)


# ---- models


def test_a_folder_is_whole_or_it_is_said_what_it_lacks(tmp_path: Path) -> None:
    folder = furnished.model(tmp_path / "m", shards=3)
    whole = look_at_model("model", str(folder), {})
    assert (whole.folder, whole.is_local, whole.missing, whole.problem) == (str(folder), True, (), None)
    (folder / "model-00002-of-00003.safetensors").unlink()
    (folder / "tokenizer.json").unlink()
    lacking = look_at_model("model", str(folder), {})
    assert lacking.missing == ("model-00002-of-00003.safetensors", "a tokenizer")
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    assert "weights (*.safetensors or *.bin)" in look_at_model("model", str(folder), {}).missing


def test_a_copy_that_was_cut_off(tmp_path: Path) -> None:
    folder = furnished.model(tmp_path / "m", shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    os.truncate(shard, shard.stat().st_size - 100)
    assert "shorter than its header says" in str(look_at_model("model", str(folder), {}).problem)
    os.truncate(shard, 4)
    assert "not a readable safetensors file" in str(look_at_model("model", str(folder), {}).problem)


def test_a_folder_that_is_not_there_is_not_sought_at_the_hub(tmp_path: Path) -> None:
    for name in (str(tmp_path / "absent"), "./absent", "a/b/c"):
        facts = look_at_model("model", name, {})
        assert (facts.is_local, facts.folder, facts.reach) == (True, None, None)


def test_the_cache_and_what_forbids_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    environment = {"HF_HUB_OFFLINE": "1"}
    assert look_at_model("model", "Qwen/Qwen2.5-7B", environment).offline == "HF_HUB_OFFLINE"
    cached = furnished.cached_model(tmp_path, "Qwen/Qwen2.5-7B")
    assert look_at_model("model", "Qwen/Qwen2.5-7B", environment).folder == str(cached)
    (cached / "model.safetensors").unlink()
    assert look_at_model("model", "Qwen/Qwen2.5-7B", environment).missing == ("weights (*.safetensors or *.bin)",)
    assert look_at_model("model", "Qwen/Qwen2.5-7B", {"USE_MODELSCOPE_HUB": "1"}).reach is None


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, by the name that is asked for; keeps what it was asked."""

    asked: list[tuple[str, str | None]]
    answers = {  # noqa: RUF012
        "open": (307, None), "plain": (200, None), "gated": (401, "GatedRepo"), "absent": (401, "RepoNotFound"),
        "private": (403, None), "ill": (500, None),
    }  # fmt: skip

    def do_HEAD(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        status, code = self.answers[self.path.split("/")[2]]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status == 307:
            self.send_header("Location", "/elsewhere/plain/x")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    Hub.asked = []
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "reach"),
    [("open", "reachable"), ("plain", "reachable"), ("gated", "gated"), ("absent", "absent"), ("private", "refused"),
     ("ill", "unreachable")],
)  # fmt: skip
def test_what_the_hub_says(name: str, reach: str, hub: str) -> None:
    facts = look_at_model("model", f"org/{name}", {"HF_ENDPOINT": hub, "HF_TOKEN": TOKEN})
    assert (facts.reach, facts.has_token, facts.hub) == (reach, True, "127.0.0.1")
    assert Hub.asked == [(f"/org/{name}/resolve/main/config.json", f"Bearer {TOKEN}")]
    assert TOKEN not in repr(facts)


def test_a_hub_without_a_token_and_one_that_is_not_there(hub: str, tmp_path: Path) -> None:
    assert look_at_model("model", "org/gated", {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path)}).has_token is False
    assert Hub.asked[-1][1] is None
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert look_at_model("model", "org/gated", {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path)}).has_token is True
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        facts = look_at_model("model", "org/open", {"HF_ENDPOINT": nowhere})
    assert (facts.reach, facts.detail) == ("unreachable", "Connection refused")
    assert look_at_model("model", "org/open", {"HF_ENDPOINT": "file:///etc"}).reach == "unreachable"


# ---- data


def test_data_that_is_missing_empty_or_not_registered(tmp_path: Path) -> None:
    assert look_at_data(tmp_path, ".", ())[1] == f"{tmp_path / 'dataset_info.json'} is not there"
    (tmp_path / "full.json").write_text("[1]")
    (tmp_path / "empty.json").touch()
    (tmp_path / "folder").mkdir()
    info = {name: {"file_name": name} for name in ("full.json", "empty.json", "absent.json", "folder")}
    info["remote"] = {"hf_hub_url": "org/data"}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    facts, problem = look_at_data(tmp_path, ".", (*info, "stranger"))
    assert problem is None
    said = {each.name: each.remote or (each.problem or "").replace(str(tmp_path) + "/", "") for each in facts}
    assert said == {
        "full.json": "",
        "empty.json": "empty.json is empty",
        "absent.json": "absent.json is not there",
        "folder": "folder holds no file",
        "remote": "the Hugging Face hub",
        "stranger": "dataset_info.json has no such entry",
    }


@contextmanager
def without_rights() -> Iterator[None]:
    """Root reads everything: be nobody for a moment."""
    if IS_ROOT:
        os.seteuid(65534)
    try:
        yield
    finally:
        if IS_ROOT:
            os.seteuid(0)


def test_data_that_this_user_may_not_read() -> None:
    with TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        (folder / "dataset_info.json").write_text('{"mine": {"file_name": "mine.json"}}')
        (folder / "mine.json").write_text("[1]")
        (folder / "mine.json").chmod(0)
        with without_rights():
            (facts,), problem = look_at_data(folder, ".", ())
    assert problem is None
    assert facts.problem == f"{folder / 'mine.json'} cannot be read: permission denied"


# ---- port, processes, file systems


def test_a_port_that_somebody_listens_on() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port_taken(port) == "address already in use"
    assert port_taken(port) is None


@pytest.mark.parametrize(("share", "belongs"), [("0", True), ("1", False), (None, False)])
def test_a_training_that_was_started_by_hand(tmp_path: Path, share: str | None, belongs: bool) -> None:
    """For the share of NODE_RANK 1, a process of share 0 belongs to the run."""
    words = [sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"]
    ranked = {name: value for name, value in os.environ.items() if name != "NODE_RANK"}
    ranked |= {"NODE_RANK": share} if share else {}
    with subprocess.Popen(words, cwd=tmp_path, env=ranked, stdout=subprocess.PIPE) as going:
        assert going.stdout is not None
        going.stdout.readline()
        try:
            assert [number for number, _ in working_in(tmp_path)] == [going.pid]
            assert [number for number, _ in working_in(tmp_path, beside="1")] == ([] if belongs else [going.pid])
        finally:
            going.kill()
    assert working_in(tmp_path) == ()


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB of its own."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if done.returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_small_a_full_and_a_read_only_file_system(desk: Desk, tmpfs: Path) -> None:
    folder = desk.plan()
    volume = volume_of(tmpfs / "output")
    assert volume is not None
    assert volume.total_bytes == MIB
    settings = {"output_dir": str(tmpfs / "output"), "use_cpu": True}
    found = named(preflight(load_job(folder, settings), str(desk.python)))
    assert found["disk"].status == "failed"
    assert "1 MiB free, checkpoints take" in found["disk"].sentence
    assert found["output"].status == "passed"
    (tmpfs / "filler").write_bytes(b"\0" * volume.free_bytes)
    assert "no space left" in named(preflight(load_job(folder, settings), str(desk.python)))["output"].sentence
    subprocess.run(["mount", "-o", "remount,ro", str(tmpfs)], check=True)
    found = named(preflight(load_job(folder, settings), str(desk.python)))
    assert "read-only file system" in found["output"].sentence


# ---- the whole


def named(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_plan_on_the_machine_that_it_is_for(desk: Desk) -> None:
    checks = preflight(load_job(desk.plan(TWO), {}), str(desk.python), answer=answered("two_gpus"))
    assert [check.name for check in checks if check.status != "passed"] == []
    assert {"gpu 0", "gpu 1", "links", "precision", "model", "data"} <= set(named(checks))


def test_an_engine_that_is_not_beside_the_named_python(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    job = load_job(desk.plan(), {"use_cpu": True})
    other = furnished.environment(desk.path / "other", {})
    monkeypatch.setenv("PATH", f"{desk.python.parent}{os.pathsep}{os.environ['PATH']}")
    found = named(preflight(job, str(other)))
    assert found["engine"].status == "warned"
    assert found["packages"].status == "passed"
    monkeypatch.setenv("PATH", "/nowhere")
    found = named(preflight(job, str(other)))
    assert found["engine"].status == "failed"
    assert "pip install" in found["engine"].remedy
    assert "packages" not in found


def test_a_card_that_somebody_holds(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    job, busy = load_job(desk.plan(ONE), {}), answered("busy")
    busy["nvml"]["gpus"][0]["free_bytes"] = MIB
    found = named(preflight(job, str(desk.python), answer=busy))
    assert found["gpu 0"].status == "failed"
    assert "python (4242) 11.7 GiB, Xorg (977) 0.3 GiB" in found["gpu 0"].sentence
    assert found["gpu 0"].remedy == "take the GPUs that are free: CUDA_VISIBLE_DEVICES=1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert named(preflight(job, str(desk.python), answer=busy))["gpu 1"].status == "passed"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert "leaves 0 GPUs" in named(preflight(job, str(desk.python), answer=busy))["GPUs"].sentence


def test_a_port_that_was_named_and_is_taken(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    job = load_job(desk.plan(TWO), {})
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        check = named(preflight(job, str(desk.python), answer=answered("two_gpus")))["port"]
    assert check.status == "failed"
    assert "address already in use" in check.sentence


@pytest.mark.parametrize("stated", ["abc", "0", "65536", "9" * 5000, "２９５００"])
def test_a_port_that_is_none(desk: Desk, monkeypatch: pytest.MonkeyPatch, stated: str) -> None:
    job = load_job(desk.plan(TWO), {})
    monkeypatch.setenv("MASTER_PORT", stated)
    check = named(preflight(job, str(desk.python), answer=answered("two_gpus")))["port"]
    assert (check.status, check.sentence.startswith(f"MASTER_PORT '{stated[:5]}")) == ("failed", True)
    assert len(check.sentence) < 120


def test_an_address_that_leads_nowhere() -> None:
    assert unresolved("127.0.0.1") is None
    assert unresolved("no such machine")
    assert unresolved("a" * 300)


def test_what_failed_is_said_and_nothing_starts(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = desk.plan()
    (folder / "data" / "vramplan_demo.json").unlink()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HOME", str(desk.path / "empty"))
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    assert run(["run", str(folder), "--python", str(desk.python)]) == 6
    said = capsys.readouterr()
    assert "✗  GPUs" in said.out
    assert "✗  model" in said.out
    assert "vramplan_demo.json is not there" in said.out
    assert TOKEN not in said.out + said.err
    assert [each.name for each in (folder / RUNS).iterdir() if each.is_dir()] == []


def test_a_limit_on_open_files(desk: Desk) -> None:
    folder = desk.plan()
    words = [sys.executable, "-m", "planner", *desk.words(folder, "--preflight-only", "--json")]
    limited = ["sh", "-c", 'ulimit -n 200; exec "$@"', "sh", *words]
    done = subprocess.run(limited, env=desk.environment, capture_output=True, text=True)
    assert done.returncode == 6, done.stderr
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert found["open files"]["status"] == "failed"
    assert "a process may open 200" in found["open files"]["sentence"]


def test_checkpoints_that_are_there(desk: Desk) -> None:
    folder = desk.plan()
    output = folder / "output"

    def told() -> Check:
        return named(preflight(load_job(folder, {"use_cpu": True}), str(desk.python)))["output"]

    assert told().sentence == "output is new"
    for step in (100, 200, 300):
        (output / f"checkpoint-{step}").mkdir(parents=True)
        (output / f"checkpoint-{step}" / "adapter_model.safetensors").write_bytes(b"x")
    assert told().status == "warned"
    assert "starts at the first step" in told().sentence
    for step in (100, 200):
        (output / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert told().sentence == "output has checkpoints: the run resumes from step 200"
    for each in output.iterdir():
        each.rename(folder / each.name)
    (output / "model.safetensors.index.json").write_text("{}")
    assert told().status == "failed"
    output.joinpath("model.safetensors.index.json").unlink()
    output.rmdir()
    output.write_text("a file")
    assert "is a file" in told().sentence
