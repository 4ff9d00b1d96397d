"""How processes are launched: files that accelerate reads, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from emo_cli.errors import EmoError
from emo_cli.training.stages import RunOptions
from emo_cli.training.start import find_processes

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "scripts" / "launch"


@pytest.mark.parametrize(("name", "gpus"), [("1_gpu", 1), ("8_gpus", 8), ("64_gpus", 64)])
def test_launch_files_are_read_by_accelerate(name: str, gpus: int) -> None:
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))  # refuses keys it does not know
    assert config.num_processes == gpus
    assert config.num_machines * 8 >= gpus
    assert config.mixed_precision is None  # --precision alone decides, and is in the commands


def test_the_commands_for_gpus_ask_for_bf16() -> None:
    guide = (ROOT / "docs" / "training.md").read_text()
    for text in (guide, *(file.read_text() for file in LAUNCH.glob("*.yaml"))):
        commands = re.findall(r"accelerate launch --config_file(?:[^\n]*\\\n)*[^\n]*", text)
        assert commands and all("--precision bf16" in command for command in commands)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_processes_that_part_the_weights_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(EmoError, match="every process holds the whole model"):
        find_processes(RunOptions(out=tmp_path, device="cpu"))


def test_processes_that_do_not_find_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EmoError, match="2 processes were launched"):
        find_processes(RunOptions(out=tmp_path))
