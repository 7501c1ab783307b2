"""Every ending has its exit code, every failure its sentence; with --json stdout stays one document."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import typer

from planner.cli import app
from planner.errors import InputError, NothingFitsError


def ending(monkeypatch: pytest.MonkeyPatch, end: Callable[[], Any]) -> None:
    """Make the whole application one function."""

    def fake_app() -> Callable[..., Any]:
        return lambda *words, **named: end()

    monkeypatch.setattr(app, "build_app", fake_app)


def raising(problem: BaseException) -> Callable[[], Any]:
    def end() -> Any:
        raise problem

    return end


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda: None, 0),
        (lambda: 5, 5),
        (raising(InputError("x is wrong")), 2),
        (raising(NothingFitsError("nothing fits")), 1),
        (raising(ZeroDivisionError("oops")), 3),
        (raising(KeyboardInterrupt()), 130),
        (raising(typer.Abort()), 130),
    ],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, end: Callable[[], Any], code: int) -> None:
    ending(monkeypatch, end)
    assert app.run([]) == code


def test_a_failure_is_a_sentence_and_a_hint_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ending(monkeypatch, raising(InputError("x is wrong", hint="try y")))
    app.run(["--model", "x"])
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: x is wrong\nhint: try y\n"


def test_json_failures_are_one_document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ending(monkeypatch, raising(InputError("x is wrong", hint="try y")))
    assert app.run(["--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": "x is wrong", "hint": "try y"}
    assert "x is wrong" in err


def test_a_bug_is_called_ours_and_shows_its_traceback_only_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ending(monkeypatch, raising(ZeroDivisionError("division by zero")))
    app.run([])
    err = capsys.readouterr().err
    assert "bug of ours" in err
    assert "ZeroDivisionError" in err
    assert "Traceback" not in err
    monkeypatch.setenv("VRAMPLAN_DEBUG", "1")
    app.run([])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gpu", "3x20GB"], "option --gpu is not known; did you mean --gpus?"),
        (["estimte"], "command 'estimte' is not known; did you mean estimate?"),
        (
            ["fit", "--require", "liger"],
            "option --require is of `plan` itself, which chooses; `plan fit` does not have it",
        ),
        (["estimate", "--lora-rnak", "8"], "option --lora-rnak is not known; did you mean --lora-rank?"),
        (["--model"], "--model"),
        (["--model", "7B", "estimate"], "--model stands before the command estimate"),
    ],
)
def test_wrong_flags_are_one_sentence(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first = err.splitlines()[0]
    assert first.startswith("error: ")
    assert expected in first
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2


@pytest.mark.parametrize(("words", "page"), [(["run", "x", "--set"], "plan run --help"), (["--gpus"], "plan --help")])
def test_a_flag_without_its_value_points_to_its_own_page(
    words: list[str], page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(words) == 2
    assert f"hint: `{page}` lists the flags" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", "estimate", "probe", "gpus", "models", "rungs"])
def test_help_opens_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run([*command.split(), "--help"]) == 0
    first = next(line for line in capsys.readouterr().out.splitlines() if line.strip())
    assert first.strip() == f"$ {app.EXAMPLES[command or 'plan']}"
