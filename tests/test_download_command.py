"""`weights.toml` and the command `emo download`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from download_makers import (
    BIG,
    manifest_of,
    package_file,
    wheel,
)
from hub_imitation import REPOSITORY
from typer.testing import CliRunner

from emo_cli.download import download_command
from emo_cli.errors import EmoError
from emo_cli.weights import (
    PackageSource,
    load_manifest,
    weights_file,
)

pytest_plugins = ("hub_fixtures",)


def test_weights_toml_names_no_digest_that_could_not_be_learnt_and_pins_every_package():
    manifest = load_manifest()
    assert {"full", "eval"} <= set(manifest.groups)
    assert all(manifest.select([group]) for group in manifest.groups)
    for file in manifest.files:
        if isinstance(file.source, PackageSource):
            assert file.sha256 and file.bytes and file.source.archive_sha256
        assert file.licence and file.used_by
    assert not any("68" in str(getattr(f.source, "member", "")) for f in manifest.files)


def test_weights_toml_is_found_at_the_top_of_the_checkout():
    assert weights_file() == Path(__file__).resolve().parents[1] / "weights.toml"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("hf:stabilityai", "ftp:stabilityai"), "no source"),
        (('name = "full/vae/config.json"', 'name = "full/../../x"'), "no name"),
        (("af5c50f0", "AF5C"), "no sha256"),
        (('convert = "flax"', 'convert = "exec"'), "no conversion"),
        (("format = 1", "format = 9"), "format 9"),
        (("[groups]", "[groups"), "line"),
    ],
)
def test_a_broken_weights_toml_is_refused_by_name(tmp_path, change, named):
    path = tmp_path / "weights.toml"
    path.write_text(weights_file().read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    with pytest.raises(EmoError, match=named):
        load_manifest(path)


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("EMO_HOME", str(tmp_path / "emo"))
    app = typer.Typer()
    app.command()(download_command)

    def invoke(*arguments: str):
        return CliRunner().invoke(app, list(arguments))

    return invoke


def test_without_a_group_the_groups_are_shown(run):
    result = run()
    assert result.exit_code == 0
    assert [line.split("\t")[:2] for line in result.stdout.splitlines()[1:]] == [
        ["full", "0 of 8"],
        ["eval", "0 of 5"],
    ]


def test_list_shows_each_file_plainly_when_it_is_no_terminal(run):
    result = run("--list")
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert rows[0] == ["file", "state", "pinned by", "size", "licence", "used by"]
    assert len(rows) == 1 + len(load_manifest().files)
    i3d = next(row for row in rows if row[0] == "eval/i3d.safetensors")
    assert i3d[1:4] == ["missing", "weights.toml", "50.8 MB"]
    unet = next(row for row in rows if row[0] == "full/unet/config.json")
    assert unet[1:4] == ["missing", "-", "?"]
    assert "\x1b" not in result.stdout


def test_list_as_json_has_every_field(run):
    result = run("--list", "--json", "eval")
    entries = json.loads(result.stdout)
    assert {entry["group"] for entry in entries} == {"eval"}
    assert {"name", "state", "pinned", "bytes", "licence", "used_by", "source", "path"} <= set(
        entries[0]
    )


def test_an_unknown_group_is_a_wrong_usage_that_names_the_groups(run):
    error = run("--list", "fulll").exception
    assert isinstance(error, EmoError)
    assert (error.exit_code, error.hint) == (2, "Groups: full, eval, all.")


def test_verify_fails_when_a_file_is_damaged(run, index, tmp_path, monkeypatch):
    packed = index.archives["net-1.0-py3-none-any.whl"] = wheel({"net/a.dat": BIG})
    file = package_file("eval/a.dat", "net-1.0-py3-none-any.whl", packed, "net/a.dat", BIG)
    manifest = manifest_of(file)
    monkeypatch.setattr("emo_cli.download.load_manifest", lambda: manifest)
    result = run("eval", "--quiet")
    assert result.stdout.strip() == str(tmp_path / "emo" / "eval" / "a.dat")
    assert run("--verify").exit_code == 0
    (tmp_path / "emo/eval/a.dat").write_bytes(BIG[:-1] + b"?")
    result = run("--verify")
    assert "damaged" in result.stdout
    assert isinstance(result.exception, EmoError)
    assert "emo download eval" in result.exception.hint


def test_endpoint_home_and_offline_mode_come_from_the_environment(hub, tmp_path):
    """In a process of its own: the hub's library reads its environment when it is imported."""
    program = (
        "import sys; from pathlib import Path\n"
        "from emo_cli.download import download; from emo_cli.errors import EmoError\n"
        "from emo_cli.weights import HubSource, Manifest, WeightFile, weights_path\n"
        f"source = HubSource(repository={REPOSITORY!r}, path='net/big.safetensors',"
        " branch='main', commit='')\n"
        "file = WeightFile(name='full/big', source=source, sha256='', bytes=None, convert='',"
        " licence='', used_by='')\n"
        "manifest = Manifest(groups={'full': ''}, files=(file,))\n"
        "try: download(['full'], manifest=manifest)\n"
        "except EmoError as error: sys.exit(error.message)\n"
        "print(weights_path('full/big', manifest=manifest))\n"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf-home"),
        "EMO_HOME": str(tmp_path / "emo-home"),
    }
    environment.pop("HF_HUB_CACHE", None)

    def run_with(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program]
        return subprocess.run(
            command, env={**environment, **more}, capture_output=True, text=True, timeout=60
        )

    offline = run_with(HF_HUB_OFFLINE="1")
    assert offline.returncode == 1
    assert "offline mode is on" in offline.stderr
    assert hub.requests == []
    online = run_with()
    path = Path(online.stdout.strip())
    assert path.is_relative_to(tmp_path / "hf-home")
    assert path.read_bytes() == BIG
    assert (tmp_path / "emo-home" / "weights.lock.json").exists()
    assert run_with(HF_HUB_OFFLINE="1").stdout == online.stdout
