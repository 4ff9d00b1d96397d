"""The files around the package agree with it and with each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import soundfile
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from PIL import Image

import emo_cli
from emo_cli import cli

ROOT = Path(__file__).parents[1]
MAX_FILE_BYTES = 16_000_000
MAX_TREE_BYTES = 42 * 2**20

# Stands in for Python: says yes to the version check, makes environments that log what they do.
FAKE_PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then exit {version_check}; fi
if [ "$2" = venv ]; then
  mkdir -p .venv/bin
  echo "made" >> log
  printf '#!/bin/sh\\necho "$@" >> log\\nexit {install}\\n' > .venv/bin/python
  chmod +x .venv/bin/python
fi
"""


def tracked_files() -> list[Path]:
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def requirements() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_no_tracked_file_and_no_tree_is_too_large() -> None:
    sizes = {path: path.stat().st_size for path in tracked_files()}
    assert [str(path) for path, size in sizes.items() if size > MAX_FILE_BYTES] == []
    assert sum(sizes.values()) < MAX_TREE_BYTES


def test_dependencies_are_ranges() -> None:
    pinned = [str(r) for r in requirements().values() if re.search("==|~=|<", str(r.specifier))]
    assert pinned == []


def test_constraints_fix_every_dependency_within_its_range() -> None:
    fixed = constraints()
    for name, requirement in requirements().items():
        assert fixed[name] in requirement.specifier, requirement


def test_the_newest_version_in_the_changelog_is_the_package_s() -> None:
    versions = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == emo_cli.__version__


def test_commands_that_the_documents_name_are_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, re.M))
    text = "".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    named = set(re.findall(r"(?:^ {4}|`)make (\w+)", text, re.M))
    assert {"demo", "test", "check"} <= named
    assert named <= targets


def test_the_readme_names_only_commands_and_options_that_exist() -> None:
    commands = dict(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    for name, command in commands.pop("train").commands.items():
        commands[f"train {name}"] = command
    options = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in commands.items()
    }
    pages = ("README.md", "docs/training.md", "docs/evaluation.md")
    readme = "".join((ROOT / page).read_text() for page in pages)
    lines = re.findall(r"^ {4,}emo (train \w+|\w+)([^#\n]*)", readme, re.M)
    lines += [("generate", row) for row in re.findall(r"^\| (`--.*?) \|", readme, re.M)]
    assert len(lines) > 8
    for command, rest in lines:
        unknown = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", rest)) - options[command]
        assert not unknown, (command, rest)


def test_links_in_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (ROOT / link).exists()] == []


def test_examples_are_a_square_portrait_and_two_short_sounds() -> None:
    with Image.open(ROOT / "examples/portrait.jpg") as portrait:
        assert (portrait.format, portrait.size) == ("JPEG", (512, 512))
    for name in ("speech", "singing"):
        sound = soundfile.info(ROOT / "examples" / f"{name}.wav")
        assert (sound.channels, sound.subtype) == (1, "PCM_16")
        assert 3.5 <= sound.duration <= 4.5


def make_ready(
    folder: Path, *, version_check: int = 0, install: int = 0
) -> subprocess.CompletedProcess[str]:
    """Runs the set-up of the Makefile in `folder`, with FAKE_PYTHON for Python."""
    if not shutil.which("make"):
        pytest.skip("no make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        if not (folder / name).exists():
            shutil.copy(ROOT / name, folder)
    python = folder / "fake-python"
    python.write_text(FAKE_PYTHON.format(version_check=version_check, install=install))
    python.chmod(0o755)
    command = ["make", ".venv/.ready", "PYTHON=./fake-python"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_set_up_is_done_once_and_again_when_the_constraints_change(tmp_path: Path) -> None:
    for _ in range(2):
        assert make_ready(tmp_path).returncode == 0
    log = (tmp_path / "log").read_text().splitlines()
    assert len(log) == 2
    assert "-c constraints.txt" in log[1]
    ready = tmp_path / ".venv/.ready"
    later = ready.stat().st_mtime + 10
    os.utime(tmp_path / "constraints.txt", (later, later))
    assert make_ready(tmp_path).returncode == 0
    assert len((tmp_path / "log").read_text().splitlines()) == 3  # installs, makes nothing new


def test_a_half_made_environment_is_made_again_from_nothing(tmp_path: Path) -> None:
    assert make_ready(tmp_path, install=1).returncode != 0
    (tmp_path / ".venv/broken").touch()
    assert make_ready(tmp_path).returncode == 0
    assert not (tmp_path / ".venv/broken").exists()
    assert (tmp_path / "log").read_text().count("made") == 2


def test_an_old_python_is_refused_with_a_clear_line(tmp_path: Path) -> None:
    done = make_ready(tmp_path, version_check=1)
    assert done.returncode != 0
    assert "needs Python 3.11" in done.stderr
    assert not (tmp_path / ".venv").exists()
