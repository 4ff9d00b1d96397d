"""`emo train prepare` as it is typed. Faces are magenta squares."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from click.testing import Result
from made_faces import RATE, MagentaFinder, face_frames, tone, write_video
from made_video import SIZE
from test_dataset import made_clip
from typer.testing import CliRunner

from emo_cli.cli import app
from emo_cli.training import prepare as module
from emo_cli.training.precompute import add_sound_features
from emo_cli.training.shards import ShardWriter


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


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_video(raw / "a.mkv", face_frames(50), sound=tone(2 * RATE))
    (raw / "b.mp4").write_bytes(b"garbage")
    for name in ("p.png", "q.png", "talk.mp4"):
        (tmp_path / name).touch()
    puppets = ("--stills", tmp_path / "p.png", "--stills", tmp_path / "q.png", "--count", 7)
    result = typed(
        raw, "--out", out, *puppets, "--drivers", tmp_path / "talk.mp4", "--held-out", 0,
        "--audio-model", "mini", "--dry-run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "7 of 7 puppet clips are to do" in result.output
    assert "2 videos: 0 are finished, 1 to do (0.00 h, 0 without sound)" in result.output
    assert "probe" in result.output and "raw/b.mp4" in result.output
    assert "sound features: all clips are to do, once they are made" in result.output
    assert not out.exists()


def test_a_dry_run_counts_the_clips_without_sound_features_or_latents(
    tmp_path: Path, small_model: Path
) -> None:
    made = ("--audio-model", small_model, "--latents", small_model)
    result = typed("--out", tmp_path, *made, "--dry-run")
    assert result.exit_code == 1 and "is no dataset" in str(result.exception)
    with ShardWriter(tmp_path, {"size": SIZE, "fps": 25}) as writer:
        for key in ("a", "b", "mute"):
            writer.add(made_clip(key, 20, sound=key != "mute"))
    add_sound_features(tmp_path, small_model)
    with ShardWriter(tmp_path, {"size": SIZE, "fps": 25}) as writer:
        writer.add(made_clip("late", 20))
    before = sorted(tmp_path.rglob("*"))
    result = typed("--out", tmp_path, *made, "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "sound features: 1 of 3 clips are to do",
        "latents: 4 of 4 clips are to do",
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dataset_is_not_prepared_into_a_url(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = typed(tmp_path / "raw", "--out", "s3://bucket/clips")
    assert getattr(result.exception, "exit_code", 0) == 2
    assert "s3:/bucket/clips is no folder here" in str(result.exception)
    assert not (tmp_path / "s3:").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--rotation", "0.5"), "--rotation is for puppets"),
        (("--rotation", "2.1", "--stills", "a", "--drivers", "b"), "Invalid value"),
        (("--rotation", "0.04", "--stills", "a", "--drivers", "b"), "Invalid value"),
    ],
)
def test_a_rotation_is_for_puppets_and_within_what_they_can_do(
    tmp_path: Path, words: tuple[str, ...], problem: str
) -> None:
    result = typed(tmp_path, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2 or getattr(result.exception, "exit_code", 0) == 2
    assert problem in result.output + str(result.exception)
