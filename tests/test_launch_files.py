"""How processes are launched: files that accelerate reads, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from emo_cli import cli
from emo_cli.errors import EmoError
from emo_cli.training.stages import RunOptions
from emo_cli.training.start import find_processes

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "scripts" / "launch"


@pytest.mark.parametrize(
    ("name", "gpus"), [("1_gpu", 1), ("8_gpus", 8), ("8_gpus_fsdp", 8), ("64_gpus", 64)]
)
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


@pytest.mark.parametrize(
    ("variable", "name"), [("DEEPSPEED", "DeepSpeed"), ("MEGATRON_LM", "Megatron-LM")]
)
def test_other_methods_that_part_the_weights_are_refused_and_fsdp_named(
    variable: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{variable}", "true")
    with pytest.raises(EmoError, match=f"set up for {name}, which is not supported") as refused:
        find_processes(RunOptions(out=tmp_path, device="cpu"), may_part=True)
    assert "8_gpus_fsdp.yaml" in str(refused.value.hint)


@pytest.mark.parametrize(
    ("version", "may_part", "eight_bit_adam", "said"),
    [
        ("2", False, False, "every process holds the whole model"),
        ("1", True, False, "it has to be FSDP 2"),
        ("2", True, True, "8-bit Adam cannot"),
    ],
)
def test_what_does_not_go_with_fsdp_is_refused(
    version: str,
    may_part: bool,
    eight_bit_adam: bool,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    options = RunOptions(out=tmp_path, device="cpu", eight_bit_adam=eight_bit_adam)
    with pytest.raises(EmoError, match=said):
        find_processes(options, may_part=may_part)


def test_a_distillation_wants_whole_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its target follows the weights outside of a forward pass."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    out = str(tmp_path / "run")
    assert cli.run(["train", "distill", "--data", "D", "--init", "I", "--out", out]) == 1
    assert "every process holds the whole model" in capsys.readouterr().err


def test_processes_that_do_not_find_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(EmoError, match="2 processes were launched"):
        find_processes(RunOptions(out=tmp_path))
