"""The built wheel, in an environment of its own, works without the source tree."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import emo_cli

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    """What the command prints; it sees nothing of this process's PYTHONPATH."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
        *("--no-index", "--no-build-isolation", "--wheel-dir", folder, ROOT),
        cwd=folder,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment: the wheel is installed in it, its dependencies are borrowed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install"),
        *("--quiet", "--no-deps", "--no-index", wheel),
        cwd=folder,
    )
    # Folders named in a .pth file come last on sys.path, and .pth files in them are not read:
    # this process's editable install of emo_cli stays out of sight.
    purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    borrowed = [*site.getsitepackages(), sysconfig.get_path("purelib")]
    (purelib / "borrowed.pth").write_text("\n".join(dict.fromkeys(borrowed)) + "\n")
    return folder


def test_wheel_holds_every_file_of_the_package_and_the_list_of_weights(wheel: Path) -> None:
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix()
        for path in (source / "emo_cli").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("emo_cli/")}
    assert held == expected | {"emo_cli/weights.toml"}


def test_wheel_carries_licence_and_notice(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name for name in archive.namelist() if ".dist-info/" in name}
    assert {"LICENSE", "NOTICE"} <= names


def test_installed_package_is_not_the_source_tree(environment: Path) -> None:
    code = "import emo_cli, torch; print(emo_cli.__file__)"
    path = Path(run(environment / "bin" / "python", "-c", code, cwd=environment).strip())
    assert path.is_relative_to(environment.resolve()) or path.is_relative_to(environment)
    assert not path.is_relative_to(ROOT)


def test_installed_command_prints_its_version(environment: Path) -> None:
    printed = run(environment / "bin" / "emo", "--version", cwd=environment)
    assert printed == f"emo-cli {emo_cli.__version__}\n"


def test_installed_command_lists_what_can_be_downloaded(environment: Path) -> None:
    printed = run(environment / "bin" / "emo", "download", "--list", cwd=environment)
    assert "full" in printed
    assert "eval" in printed
