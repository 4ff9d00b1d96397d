"""`emo train prepare` as it is typed. Faces are magenta squares."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from click.testing import Result
from made_faces import MagentaFinder, face_frames, write_video
from typer.testing import CliRunner

from emo_cli.cli import app
from emo_cli.training import prepare as module


@pytest.fixture(autouse=True)
def magenta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that see magenta squares as faces."""
    prepare = functools.partial(module.prepare, make_finder=MagentaFinder)
    monkeypatch.setattr(module, "prepare", prepare)


def typed(*words: object) -> Result:
    return CliRunner().invoke(app, ["train", "prepare", *map(str, words)])


def large_face(path: Path) -> Path:
    """A video whose face is large enough for clips of 256 pixels a side."""
    return write_video(path, face_frames(20).repeat(4, 1).repeat(4, 2))


def test_the_share_held_out_is_the_share_asked_for(tmp_path: Path) -> None:
    large_face(tmp_path / "raw" / "a.mp4")
    result = typed(tmp_path / "raw", "--out", tmp_path / "all", "--size", 256, "--held-out", 1)
    assert result.exit_code == 0, result.output
    [line] = (tmp_path / "all" / "index.jsonl").read_text().splitlines()
    assert json.loads(line)["split"] == "val"
    assert "held out for validation" not in result.output


def test_a_dataset_without_validation_says_how_to_get_some(tmp_path: Path) -> None:
    large_face(tmp_path / "raw" / "a.mp4")
    result = typed(tmp_path / "raw", "--out", tmp_path / "none", "--size", 256, "--held-out", 0)
    assert result.exit_code == 0, result.output
    assert "no clip is held out for validation" in result.output
    assert "--held-out 0.2" in result.output


def test_a_dataset_without_a_clip_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.mp4").write_bytes(b"garbage")
    result = typed(tmp_path / "raw", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "no clip could be made" in str(result.exception)
    assert "probe" in result.output  # the reason
