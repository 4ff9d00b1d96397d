"""The launch files are what accelerate reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

LAUNCH = Path(__file__).resolve().parent.parent / "scripts" / "launch"


@pytest.mark.parametrize(("name", "gpus"), [("1_gpu", 1), ("8_gpus", 8), ("64_gpus", 64)])
def test_launch_files_are_read_by_accelerate(name: str, gpus: int) -> None:
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))  # refuses keys it does not know
    assert config.num_processes == gpus
    assert config.num_machines * 8 >= gpus
    assert config.mixed_precision == "bf16"
