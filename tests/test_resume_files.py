import json
import subprocess
import sys
from pathlib import Path

import made_video
import pytest
import torch
from made_video import MUX, latents_after, make_video, tone, write_sound

from emo_cli.errors import EmoError
from emo_cli.files import write_atomically
from emo_cli.work_folder import WorkFolder, work_path

NUM_FRAMES = 300  # 25 clips: two whole segments and a half one


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write_sound(tmp_path / "sound.wav", tone(11.99), 44_100)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.mp4"


@pytest.fixture
def stopped(out: Path, sound: Path) -> Path:
    """An output whose run was stopped at clip 23, after two whole segments."""
    with pytest.raises(KeyboardInterrupt):
        make_video(out, sound, NUM_FRAMES, stop_at_clip=23)
    return out


def run_and_kill(out: Path, sound: Path, clip: int) -> None:
    command = [sys.executable, made_video.__file__, out, sound, str(NUM_FRAMES), str(clip)]
    assert subprocess.run(command).returncode == -9
    assert not out.exists() and not out.with_suffix(".json").exists()


def test_a_video_killed_three_times_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, out: Path, sound: Path
) -> None:
    whole = tmp_path / "whole.mp4"
    make_video(whole, sound, NUM_FRAMES)
    run_and_kill(out, sound, clip=14)
    run_and_kill(out, sound, clip=22)
    run_and_kill(out, sound, clip=MUX)
    note = make_video(out, sound, NUM_FRAMES)
    assert note == f"going on after {NUM_FRAMES} finished frames"
    assert out.read_bytes() == whole.read_bytes()
    assert not work_path(out).exists()


def test_a_run_goes_on_after_the_last_finished_segment(stopped: Path) -> None:
    with WorkFolder.open(stopped, {"seed": 7}) as work:
        assert (work.next_clip, work.frames_done) == (20, 240)
        assert work.motion_latents is not None
        assert work.motion_latents.dtype == torch.bfloat16
        assert torch.equal(work.motion_latents, latents_after(19))


def test_leftovers_of_a_killed_run_are_swept_away(stopped: Path) -> None:
    orphan = work_path(stopped) / "segment.123.part"
    orphan.write_bytes(b"half a segment")
    with WorkFolder.open(stopped, {"seed": 7}) as work:
        assert work.next_clip == 20
    assert not orphan.exists()


def test_another_fingerprint_starts_over_and_says_what_changed(stopped: Path) -> None:
    with WorkFolder.open(stopped, {"seed": 8}) as work:
        assert work.next_clip == 0 and work.motion_latents is None
        assert work.note == "seed changed since the interrupted run: starting over"


def test_another_ffmpeg_starts_over(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emo_cli.work_folder.ffmpeg_version", lambda: "ffmpeg version 4.4")
    with WorkFolder.open(stopped, {"seed": 7}) as work:
        assert work.next_clip == 0 and "ffmpeg changed" in work.note


def test_a_fingerprint_with_tuples_matches_itself(out: Path, sound: Path) -> None:
    fingerprint = {"region": (1, 2), "speed": 0.1}
    with pytest.raises(KeyboardInterrupt):
        make_video(out, sound, NUM_FRAMES, stop_at_clip=15, fingerprint=fingerprint)
    with WorkFolder.open(out, fingerprint) as work:
        assert work.next_clip == 10


def test_no_resume_starts_over(stopped: Path) -> None:
    with WorkFolder.open(stopped, {"seed": 7}, resume=False) as work:
        assert work.next_clip == 0 and work.note == ""


@pytest.mark.parametrize("name", ["00001.h264", "00001.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_segment_and_all_after_it_are_made_again(
    stopped: Path, name: str, damage: str
) -> None:
    path = work_path(stopped) / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-9] if damage == "truncated" else b"\0" * 30 + data[30:])
    with WorkFolder.open(stopped, {"seed": 7}) as work:
        assert work.next_clip == 10
        assert torch.equal(work.motion_latents, latents_after(9))
    assert not path.exists()


def test_two_processes_cannot_write_the_same_output(tmp_path: Path, out: Path) -> None:
    with (
        WorkFolder.open(out, {}),
        WorkFolder.open(tmp_path / "other.mp4", {}),
        pytest.raises(EmoError, match="another emo is writing out.mp4"),
    ):
        WorkFolder.open(out, {})
    WorkFolder.open(out, {}).close()


def test_a_run_that_finished_no_segment_leaves_nothing(out: Path, sound: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_video(out, sound, NUM_FRAMES, stop_at_clip=4)
    assert [path.name for path in out.parent.iterdir()] == ["sound.wav"]


def test_a_failed_start_keeps_earlier_segments(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("EMO_FFMPEG", "no-such-program")
        with pytest.raises(EmoError, match="EMO_FFMPEG"):
            WorkFolder.open(stopped, {"seed": 7})
    with WorkFolder.open(stopped, {"seed": 7}) as work:
        assert work.next_clip == 20


def test_an_output_that_appeared_meanwhile_is_kept_and_so_are_the_segments(
    stopped: Path, sound: Path
) -> None:
    stopped.write_text("somebody else's")
    with pytest.raises(EmoError, match="exists"):
        make_video(stopped, sound, NUM_FRAMES)
    assert stopped.read_text() == "somebody else's"
    assert make_video(stopped, sound, NUM_FRAMES, overwrite=True).startswith("going on after 300")
    assert stopped.read_bytes()[4:8] == b"ftyp"


def test_a_full_disk_at_the_end_of_a_segment_is_one_line(
    out: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(part: Path, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("emo_cli.work_folder.move_into_place", full)
    with pytest.raises(EmoError, match="No space left on device"):
        make_video(out, sound, NUM_FRAMES)
    assert not out.exists()


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmoError, match="cannot write"):
        WorkFolder.open(tmp_path / "file" / "out.mp4", {})


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, b"old")

    def fail(*_: object) -> None:
        raise OSError("power")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_report_lies_beside_the_video(out: Path, sound: Path) -> None:
    make_video(out, sound, 30)
    assert json.loads(out.with_suffix(".json").read_text()) == {"seed": 7}
