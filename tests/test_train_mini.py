"""The recipe of the embedded weights: its commands exist, run in order, and are not run twice."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from emo_cli import cli

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
FOLDERS = ("portraits/london", "portraits/canada", "portraits/faker", "grid_s1", "audio")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in FOLDERS:
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for file in ("002_a.png", "003_a.png", "004_a.png", "005_a.png", "bbas2p.mp4"):
            (folder / file).write_bytes(b"")
    (tmp_path / "data" / "ict_facekit_light.npz").write_bytes(b"")
    return tmp_path / "data"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the script would have run."""
    commands: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda command, env: commands.append(command[3:]) or 0)
    return commands


def recipe(monkeypatch: pytest.MonkeyPatch, data: Path, *more: str) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    named = ["--data", str(data), "--teacher", "whisper", "--out", str(data.parent / "runs")]
    monkeypatch.setattr(sys, "argv", ["train_mini", *named, *more])
    importlib.import_module("train_mini").main()


def test_every_command_of_the_recipe_exists_with_its_options(monkeypatch, data, ran) -> None:
    recipe(monkeypatch, data)
    train = typer.main.get_command(cli.app).commands["train"]  # type: ignore[attr-defined]
    for command in ran:
        assert command[0] == "train"
        # Raises UsageError for an option that is not there; nothing is run.
        train.commands[command[1]].make_context(command[1], command[2:])
    stages = [command[1] for command in ran]
    assert stages[-7:] == ["lips", "image", "video", "speed", "video", "distill", "pack"]
    assert stages.index("autoencoder") < stages.index("decoder") < stages.index("image")
    assert stages.index("audio") < stages.index("image")


def test_finished_steps_are_passed_over_and_changed_ones_run_again(monkeypatch, data, ran) -> None:
    recipe(monkeypatch, data)
    first = len(ran)
    recipe(monkeypatch, data)
    assert len(ran) == first == 21
    recipe(monkeypatch, data, "--puppets", "601")
    assert [command[1] for command in ran[first:]] == ["prepare"] * 4


def test_a_failing_step_stops_the_recipe_with_its_code(monkeypatch, data) -> None:
    monkeypatch.setattr(subprocess, "call", lambda command, env: 1 if "audio" in command else 0)
    with pytest.raises(SystemExit) as stopped:
        recipe(monkeypatch, data)
    assert stopped.value.code == 1
    done = {path.name for path in (data.parent / "runs" / "done").iterdir()}
    assert done == {"autoencoder", "critic", "speech"}


def test_tiny_takes_a_few_files_of_each_kind_and_one_that_is_held_out(monkeypatch, data, ran):
    recipe(monkeypatch, data, "--tiny")
    tiny = data.parent / "runs" / "tiny"
    assert {file.name for file in (tiny / "portraits/london").iterdir()} == {
        *("002_a.png", "003_a.png", "004_a.png")
    }  # 002 is held out in London
    assert (tiny / "grid_s1" / "bbas2p.mp4").is_symlink()


def test_a_dry_run_runs_nothing(monkeypatch, data, ran, capsys) -> None:
    recipe(monkeypatch, data, "--dry-run")
    assert ran == [] and "emo train pack" in capsys.readouterr().out
