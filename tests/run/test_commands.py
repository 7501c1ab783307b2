"""The commands' words: bad input is one sentence, `--json` one document, exit codes as documented."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from planner.cli.app import run
from planner.hardware.parse import parse_machine
from planner.hardware.store import machine_to_json
from planner.run.state import runs_of
from tests.run.conftest import ONE, TWO, Desk


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    code = run(list(words))
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("run", "nowhere"), "'nowhere' is not the folder of a plan"),
        (("run",), "no plan is named, and --model is missing to make one\nhint: `plan run DIR` runs"),
        (("run", "--gpus", "1x24GB"), "--model is missing"),
        (("run", "{plan}", "--gpus", "1x80GB"), "--gpus plans anew"),
        (("run", "{plan}", "--engine", "tlr"), "--engine 'tlr' is not known; did you mean trl"),
        (("run", "{plan}", "--out", "elsewhere"), "--out names a new folder"),
        (("run", "{plan}", "--demo"), "--demo brings its own plan"),
        (("run", "--demo", "--model", "7B"), "--demo brings its own plan: leave --model out"),
        (("run", "{plan}", "--stall-minutes", "soon"), "--stall-minutes 'soon' is not a number"),
        (("run", "{plan}", "--retries", "-1"), "--retries '-1' is not a number to use: write a whole one, 0 or more"),
        (
            ("run", "{plan}", "--env", "A=1"),
            "--env 'A=1' is not the name of a variable\nhint: its value comes from the",
        ),
        (("run", "{plan}", "--env", "A B"), "--env 'A B' is not the name of a variable"),
        (("run", "{plan}/train.yaml"), "it has no plan.json\nhint: it lies in one: plan run "),
        (("run", "{plan}", "--allow", "qlora"), "--allow: rung 'qlora' is not known; did you mean lora or qlora-nf4"),
        (("run", "{plan}", "--set", "max_steps"), "is not key=value"),
        (("run", "{plan}", "--set", "cutof_len=5"), "cutof_len"),
        (("run", "{plan}", "--python", "/nowhere/python"), "--python '/nowhere/python' does not exist"),
        (("report", "nothing"), "run 'nothing' is not known"),
        (("stop",), "no run is known here"),
        (("attach", "{plan}"), "holds no run"),
    ],
)
def test_bad_input_is_one_sentence(
    desk: Desk, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], sentence: str
) -> None:
    plan = str(desk.plan())
    code, err = told(capsys, *(word.format(plan=plan) for word in words))
    assert code == 2
    assert sentence in err
    assert "Traceback" not in err


@pytest.mark.parametrize("text", ["", "{}", '{"chosen": null}', '{"chosen": {"setup": {"model": 5}}}', "[1]"])
def test_a_damaged_plan_is_one_sentence(desk: Desk, capsys: pytest.CaptureFixture[str], text: str) -> None:
    folder = desk.plan()
    (folder / "plan.json").write_text(text)
    code, err = told(capsys, "run", str(folder))
    assert code == 2
    assert "plan" in err
    assert "Traceback" not in err
    assert runs_of(folder) == []


def test_one_document_says_how_it_went(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    folder = desk.plan()
    capsys.readouterr()
    assert desk.run(folder, "--json", "--skip-worst-case") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["status"], report["exit_code"], report["steps"]) == ("finished", 0, 12)
    for words in (["runs"], ["report"], ["attach"], ["stop"]):
        assert run([*words, "--json"]) == 0
        json.loads(capsys.readouterr().out)


def test_flags_plan_and_run_at_once(desk: Desk, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["run", *ONE, "--python", str(desk.python), "--skip-worst-case", "--set", "max_steps=4"]
    words += ["--set", "use_cpu=true"]
    assert run([*words, "--out", str(tmp_path / "fresh")]) == 0
    assert len(runs_of(tmp_path / "fresh")) == 1
    assert run(["run", *ONE[:-2], "--gpus", "1x1GB"]) == 1


def test_the_engine_is_the_one_that_is_installed(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """TRL is there, DeepSpeed and Liger are not: planned for TRL, without them, and both are said and recorded."""
    there = {"torch": "2.13", "transformers": "5.23", "accelerate": "1.15", "peft": "0.21", "trl": "1.16"}
    monkeypatch.setattr("planner.run.engine.installed", lambda python: there)
    words = ["run", *TWO, "--python", str(desk.python), "--preflight-only", "--out", str(tmp_path / "fresh")]
    run(words)
    said = "TRL: it is installed and has this stage (LLaMA-Factory is not installed); not installed there, and "
    assert f"engine:  {said}planned without: bitsandbytes, deepspeed, liger-kernel" in capsys.readouterr().err
    plan = json.loads((tmp_path / "fresh" / "plan.json").read_text())
    assert (plan["request"]["engine"], plan["chosen"]["setup"]["liger_kernel"]) == ("trl", False)
    assert f"engine {said}planned without" in plan["reasons"][-1]


def versions_planned_for(folder: Path) -> tuple[dict[str, str], str]:
    plan = json.loads((folder / "plan.json").read_text())
    return plan["chosen"]["setup"]["versions"], plan["assumptions"][0]


def test_the_price_is_that_of_the_versions_that_will_run(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An older transformers holds more logits; TRL beside LLaMA-Factory is not what runs."""
    there = {"llamafactory": "0.9.5", "torch": "2.9.0+cpu", "transformers": "4.57.1", "accelerate": "1.11.0"}
    monkeypatch.setattr("planner.run.engine.installed", lambda python: there | {"peft": "0.18.1", "trl": "0.24.0"})
    words = ["run", *ONE, "--python", str(desk.python), "--preflight-only", "--anyway"]
    run([*words, "--out", str(tmp_path / "here")])
    versions, said = versions_planned_for(tmp_path / "here")
    assert versions == {"torch": "2.9.0+cpu", "transformers": "4.57.1", "accelerate": "1.11.0", "peft": "0.18.1"}
    assert said == (
        "memory is priced for the versions that are installed here: torch 2.9.0+cpu, transformers 4.57.1, "
        "accelerate 1.11.0, peft 0.18.1"
    )
    assert f"assumed: {said}" in capsys.readouterr().err
    run([*words, "--engine", "llamafactory", "--out", str(tmp_path / "asked")])
    assert versions_planned_for(tmp_path / "asked")[0] == versions
    run([*words, "--versions", "transformers=4.55.0", "--out", str(tmp_path / "stated")])
    assert versions_planned_for(tmp_path / "stated")[0] == {"transformers": "4.55.0"}


def test_another_desks_versions_are_those_of_its_file(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there = {
        "llamafactory": "0.9.5",
        "torch": "2.13.0",
        "transformers": "5.6.0",
        "accelerate": "1.11.0",
        "peft": "0.18",
    }
    monkeypatch.setattr("planner.run.engine.installed", lambda python: there)
    flags = ONE[ONE.index("--model") :]
    for name, software in (("bare", {}), ("told", {"transformers": "4.56.0", "trl": "0.24.0"})):
        machine = tmp_path / f"{name}.json"
        machine.write_text(machine_to_json(replace(parse_machine("1xRTX4090", "64GB"), software=software)))
        run(["run", *flags, "--machine", str(machine), "--preflight-only", "--out", str(tmp_path / name)])
    assert versions_planned_for(tmp_path / "bare") == (
        {}, "no version of a training package is known in the machine's file: memory is priced for the engine's newest "
        "release",
    )  # fmt: skip
    assert versions_planned_for(tmp_path / "told")[0] == {"transformers": "4.56.0"}


def test_the_same_plan_through_another_engine(desk: Desk, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = desk.plan()
    before = sorted(path.name for path in folder.iterdir())
    run(["run", str(folder), "--engine", "embedded", "--preflight-only"])
    assert "the embedded transformers and accelerate trainer: asked for with --engine" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == before
    ours, theirs = (json.loads((each / "plan.json").read_text()) for each in (tmp_path / "plan-embedded", folder))
    assert (ours["chosen"]["setup"]["engine"], ours["chosen"]["setup"]["method"]) == ("embedded", "lora")
    assert ours["chosen"]["estimate"] != theirs["chosen"]["estimate"]
    assert (tmp_path / "plan-embedded" / "train.json").exists()


def test_the_demo_says_what_its_python_lacks(
    desk: Desk, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in ("planner.targets.choose", "planner.train.demo"):
        monkeypatch.setattr(f"{module}.installed", lambda python: {"transformers": "5.23"})
    code, err = told(capsys, "run", "--demo", "--python", str(desk.python))
    assert code == 6
    assert f"{desk.python} lacks torch, accelerate" in err
    assert f"{desk.python} -m pip install torch transformers accelerate peft" in err
    assert not (tmp_path / "plans").exists()


def test_preflight_alone_starts_nothing(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    folder = desk.plan()
    assert desk.run(folder, "--preflight-only") == 0
    assert "Preflight: 1 warned, " in capsys.readouterr().out  # Liger's kernels on the CPU
    assert desk.run(folder, "--preflight-only", "--json") == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["name"] for check in checks if check["status"] != "passed"] == ["kernels"]
    assert runs_of(folder) == []


def test_finished_weights_without_a_checkpoint_are_not_written_over(desk: Desk) -> None:
    folder = desk.plan()
    (folder / "output").mkdir()
    (folder / "output" / "adapter_model.safetensors").write_bytes(b"trained")
    assert desk.run(folder) == 6
    assert runs_of(folder) == []


def test_an_uncertain_plan_is_not_started_without_its_longest_batch(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = desk.plan()
    plan = json.loads((folder / "plan.json").read_text())
    estimate = plan["chosen"]["estimate"]
    between = (estimate["allocated_bytes"] + estimate["context_bytes"] + estimate["required_bytes"]) // 2
    plan["machine"]["gpus"][0]["capacity_bytes"] = between
    (folder / "plan.json").write_text(json.dumps(plan))
    assert desk.run(folder, "--skip-worst-case") == 5
    assert "uncertain" in capsys.readouterr().err
    assert desk.run(folder) == 0
    assert desk.state(folder).attempts[0].purpose == "rehearsal"
