"""Raw videos to shards. Faces are magenta squares, but in the tests named after shared data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from made_faces import (
    DEADLY,
    HEIGHT,
    RATE,
    WIDTH,
    MagentaFinder,
    face_frames,
    tone,
    write_video,
)
from PIL import Image, ImageFilter

from emo_cli import video_workers
from emo_cli.errors import EmoError
from emo_cli.face_motion import rotation_between_frames
from emo_cli.raw_video import Crop, probe, read_frames, read_sound
from emo_cli.training.annotations import read_list, split_rule
from emo_cli.training.prepare import PrepareOptions, look, prepare
from emo_cli.training.prepare_video import PackedSample, VideoTask, WantedSpan, prepare_video
from emo_cli.training.samples import Labels, decode_frames, decode_sound, unpack_labels
from emo_cli.training.shots import Stretch, divide, find_shots, within
from emo_cli.training.splits import name_hash
from emo_cli.training.tracks import Track, follow_face, stable_crop
from emo_cli.video_workers import Finished, VideoWorkers

SIZE = 64


def run(raw: Path, out: Path, **options: object) -> dict:
    return prepare(
        PrepareOptions(raw=(raw,), out=out, size=SIZE, **options),  # type: ignore[arg-type]
        make_finder=MagentaFinder,
    )


def index_of(dataset: Path) -> list[dict]:
    return [json.loads(line) for line in (dataset / "index.jsonl").read_text().splitlines()]


def reasons_of(dataset: Path) -> dict[str, str]:
    """What became of each video's clips, or of the video."""
    found = {}
    for path in (dataset / "videos").rglob("*.json"):
        record = json.loads(path.read_text())
        found[Path(record["video"]).name] = record["dropped"] or ", ".join(record["clips"].values())
    return found


def events_of(path: Path, *, size: int = SIZE, finder: object = None) -> list:
    span = read_list_free_span()
    task = VideoTask(name="v", path=path, spans=(span,), size=size)
    return list(prepare_video(task, finder or MagentaFinder()))  # type: ignore[arg-type]


def read_list_free_span() -> WantedSpan:
    from emo_cli.training.prepare import WHOLE

    return WantedSpan(span=WHOLE, identity="someone", split="train")


def clips_among(events: list) -> list[PackedSample]:
    return [event for event in events if isinstance(event, PackedSample)]


def labels_in(sample: PackedSample, size: int = SIZE) -> Labels:
    return unpack_labels(sample.parts["npz"], size, sample.key)


# --- one whole run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad videos, prepared by two processes."""
    base = tmp_path_factory.mktemp("prepared")
    raw = base / "raw"
    good = face_frames(36)
    write_video(raw / "a b's.mkv", good, fps=30, sound=tone(36 * RATE // 30))
    write_video(raw / "ünter" / "mute.mp4", good)
    write_video(raw / "faceless.mp4", face_frames(30, faces=0))
    write_video(raw / "crowd.mp4", face_frames(30, faces=2))
    write_video(raw / "short.mp4", face_frames(12))
    write_video(raw / "silent.mkv", face_frames(30), sound=np.zeros(30 * 640, np.float32))
    write_video(raw / "small.mp4", face_frames(30, face=20))
    (raw / "garbage.mp4").write_bytes(b"no video at all" * 100)
    (raw / "empty.mov").write_bytes(b"")
    (raw / "playlist.mp4").write_text("#EXTM3U\n#EXTINF:3,\n" + str(raw / "a b's.mkv"))
    (raw / "notes.txt").write_text("not a video")
    run(raw, base / "out", workers=2)
    return base


def test_good_videos_become_clips_and_bad_ones_say_why(prepared: Path) -> None:
    found = reasons_of(prepared / "out")
    assert found.pop("a b's.mkv") == "kept"
    assert found.pop("mute.mp4") == "kept"
    assert found.pop("faceless.mp4") == "track: no face"
    assert found.pop("crowd.mp4") == "track: several faces"
    assert found.pop("short.mp4") == "shots: shorter than 16 frames"
    assert found.pop("silent.mkv") == "silence: silent"
    assert found.pop("small.mp4").startswith("size: the crop is smaller")
    assert {name: why.partition(":")[0] for name, why in found.items()} == {
        "garbage.mp4": "probe",
        "empty.mov": "probe",
        "playlist.mp4": "probe",
    }


def test_the_report_counts_what_was_dropped_and_names_examples(prepared: Path) -> None:
    report = json.loads((prepared / "out" / "report.json").read_text())
    assert report["videos"] == {"finished": 10}
    assert sum(report["kept"]["clips"].values()) == 2
    assert sum(report["kept"]["sounding"].values()) == 1
    assert report["reasons"]["track: no face"] == {
        "videos": 0,
        "clips": 1,
        "examples": ["raw/faceless.mp4"],
    }


def test_shards_are_tars_in_webdataset_layout_and_the_index_points_into_them(
    prepared: Path,
) -> None:
    out = prepared / "out"
    lines = index_of(out)
    with tarfile.open(out / "00000.tar") as tar:
        members = {member.name: member for member in tar.getmembers()}
        for line in lines:
            for suffix, (offset, length) in line["parts"].items():
                member = members.pop(f"{line['key']}.{suffix}")
                assert (member.offset_data, member.size) == (offset, length)
    assert not members
    assert [set(line["parts"]) for line in sorted(lines, key=lambda line: line["key"])] == [
        {"mp4", "flac", "npz", "json"},
        {"mp4", "npz", "json"},
    ]


def test_a_second_run_changes_nothing_and_a_new_video_is_added(prepared: Path) -> None:
    out = prepared / "out"
    shard = (out / "00000.tar").read_bytes()
    run(prepared / "raw", out)
    assert (out / "00000.tar").read_bytes() == shard
    write_video(prepared / "raw" / "late.mp4", face_frames(20))
    run(prepared / "raw", out)
    assert len(index_of(out)) == 3
    assert (out / "00000.tar").read_bytes().startswith(shard[: index_of(out)[1]["offset"]])


def test_other_options_for_the_same_dataset_are_refused(prepared: Path) -> None:
    with pytest.raises(EmoError, match=r"size is 64, not 32"):
        prepare(
            PrepareOptions(raw=(prepared / "raw",), out=prepared / "out", size=32),
            make_finder=MagentaFinder,
        )
    with pytest.raises(EmoError, match="split_by is None, not"):
        run(prepared / "raw", prepared / "out", split_by="(.)")


# --- time


def test_any_frame_rate_becomes_25_per_second(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mkv", face_frames(60), fps=30)
    assert sum(shot.count for shot in find_shots(path)) == 50
    assert len(list(read_frames(path, 0, 100))) == 50
    assert probe(path).fps == 30


def test_frames_read_from_the_middle_are_those_of_the_whole(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", face_frames(60, speed=1.0), fps=30)
    whole = list(read_frames(path, 0, 50))
    part = list(read_frames(path, 23, 20, every=4))
    assert [np.array_equal(a, b) for a, b in zip(part, whole[23:43:4], strict=True)] == [True] * 5


@pytest.mark.parametrize("late", [0.0, 0.2])
def test_sound_and_picture_keep_one_clock_also_when_the_sound_begins_late(
    tmp_path: Path, late: float
) -> None:
    frames = face_frames(50)
    frames[20] = 250
    click = np.zeros(2 * RATE, np.float32)
    click[int((0.8 - late) * RATE) :][:640] = 0.8  # while frame 20 is shown
    path = write_video(tmp_path / "x.mkv", frames, sound=click, sound_starts_s=late)
    bright = [frame.mean() for frame in read_frames(path, 5, 40)]
    sound = read_sound(path, 5, 40)
    assert sound is not None and len(sound) == 40 * 640
    loud = np.abs(sound).reshape(40, 640).mean(1)
    assert int(np.argmax(bright)) == int(np.argmax(loud)) == 15
    assert loud[15] > 0.7


def test_the_end_of_a_short_sound_is_silence(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mkv", face_frames(50), sound=tone(RATE))
    sound = read_sound(path, 0, 50)
    assert sound is not None and len(sound) == 2 * RATE
    assert np.abs(sound[: RATE - 100]).max() > 0.2 and not sound[RATE + 100 :].any()


def test_wide_pixels_are_made_square_and_turned_videos_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mkv", face_frames(20))
    from emo_cli.ffmpeg_process import ffmpeg_path

    for name, options in (("wide.mkv", ["-aspect", "8:3"]), ("turned.mp4", [])):
        turn = ["-display_rotation", "90"] if name == "turned.mp4" else []
        command = [ffmpeg_path(), "-loglevel", "error", *turn, "-i", str(path), "-c", "copy"]
        subprocess.run([*command, *options, str(tmp_path / name)], check=True)
    assert next(read_frames(tmp_path / "wide.mkv", 0, 1)).shape == (HEIGHT, 2 * WIDTH, 3)
    assert next(read_frames(tmp_path / "turned.mp4", 0, 1)).shape == (WIDTH, HEIGHT, 3)


# --- shots


def test_a_cut_parts_two_clips_with_keys_of_their_first_frames(tmp_path: Path) -> None:
    frames = np.concatenate([face_frames(30, grey=30), face_frames(25, grey=220)])
    events = events_of(write_video(tmp_path / "x.mp4", frames))
    assert [(c.key, c.entry["frames"]) for c in clips_among(events)] == [
        ("v-0000000", 30),
        ("v-0000030", 25),
    ]


def test_long_shots_are_divided_and_spans_cut_them() -> None:
    parts = divide(Stretch(first=100, count=601))
    assert [(part.first, part.count) for part in parts] == [(100, 200), (300, 200), (500, 201)]
    shots = [Stretch(first=0, count=50), Stretch(first=50, count=50)]
    assert within(shots, 1.0, 3.0) == [Stretch(first=25, count=25), Stretch(first=50, count=25)]


# --- faces


def test_labels_lie_in_the_crop_and_rotation_is_that_between_frames(tmp_path: Path) -> None:
    [clip] = clips_among(events_of(write_video(tmp_path / "x.mp4", face_frames(40, speed=0.5))))
    labels, meta = labels_in(clip), json.loads(clip.parts["json"])
    x, y, side = meta["crop"]
    scale = SIZE / side
    expected = np.array([20 + round(0.5 * 11) - x, 35 - y, 0, 0]) * scale
    assert np.abs(labels.boxes[11, :2] - expected[:2]).max() < 2
    assert labels.landmarks.shape == (40, 478, 3) and labels.poses.shape == (40, 4, 4)
    turned = np.abs(np.diff(labels.boxes[:, 0])) / 10
    assert np.abs(labels.rotation[1:] - turned).max() < 1e-3
    assert labels.rotation[0] == labels.rotation[1]
    frames = decode_frames(clip.parts["mp4"], [11], "x")
    assert MagentaFinder().find_in_frame(frames[0])[0].box[0] == pytest.approx(
        labels.boxes[11, 0], abs=1.5
    )


def test_a_face_that_leaves_ends_the_clip(tmp_path: Path) -> None:
    frames = np.concatenate([face_frames(40, speed=0.2), face_frames(30, faces=0)])
    [clip] = clips_among(events_of(write_video(tmp_path / "x.mp4", frames)))
    assert clip.entry["frames"] == 40


def test_a_face_outside_the_lists_region_does_not_count() -> None:
    frames = list(face_frames(40, faces=2, speed=0)[::4])
    stretch = Stretch(first=0, count=40)
    assert follow_face(frames, stretch, MagentaFinder(), None) == "several faces"
    track = follow_face(frames, stretch, MagentaFinder(), (0.5, 0, 1, 1))
    assert isinstance(track, Track) and track.boxes[:, 0].min() >= 85


def test_the_crop_frames_the_face_as_portraits_are_and_stays_in_the_picture() -> None:
    boxes = np.tile(np.array([[300, 200, 400, 314]], np.float32), (5, 1))
    stretch = Stretch(first=0, count=20)
    crop = stable_crop(Track(stretch=stretch, boxes=boxes, height=720, width=1280), 512)
    assert 114 / crop.side == pytest.approx(0.57, abs=0.005)
    assert (350 - crop.x) / crop.side == pytest.approx(0.5, abs=0.005)
    assert (257 - crop.y) / crop.side == pytest.approx(0.535, abs=0.005)
    near_edge = boxes - np.array([300, 200, 300, 200])
    crop = stable_crop(Track(stretch=stretch, boxes=near_edge, height=720, width=1280), 512)
    assert (crop.x, crop.y) == (0, 0)
    moving = boxes + np.arange(5)[:, None] * np.array([80, 0, 80, 0])
    crop = stable_crop(Track(stretch=stretch, boxes=moving, height=720, width=1280), 512)
    assert crop == Crop(x=300, y=crop.y, side=420)


def test_a_crop_of_nearly_the_wanted_size_is_not_scaled() -> None:
    boxes = np.array([[70, 70, 180, 70 + 0.57 * 249]], np.float32)
    track = Track(stretch=Stretch(first=0, count=20), boxes=boxes, height=256, width=256)
    assert stable_crop(track, 256) == Crop(x=0, y=0, side=256)


def test_rotation_is_the_angle_between_two_heads_about_any_axis() -> None:
    rng = np.random.default_rng(0)
    rotations, angles = [np.linalg.qr(rng.normal(size=(3, 3)))[0]], rng.uniform(0, 3, 9)
    for angle in np.radians(angles):
        axis = rng.normal(size=3)
        x, y, z = axis / np.linalg.norm(axis)
        cross = np.array([(0, -z, y), (z, 0, -x), (-y, x, 0)])
        turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        rotations.append(turn @ rotations[-1])
    measured = rotation_between_frames(np.stack(rotations))
    assert np.abs(measured[1:] - angles).max() < 1e-4
    assert measured[0] == measured[1]


def test_blurred_faces_are_dropped(tmp_path: Path) -> None:
    sharp = face_frames(30)
    soft = [Image.fromarray(frame).filter(ImageFilter.GaussianBlur(4)) for frame in sharp]
    frames = np.stack([np.asarray(frame) for frame in soft])
    events = events_of(write_video(tmp_path / "x.mp4", frames))
    assert events[-1].step == "sharpness"


# --- interruptions


def _slow_run(raw: Path, out: Path) -> subprocess.Popen:
    """A whole `prepare` in a process of its own."""
    return subprocess.Popen([sys.executable, __file__, str(raw), str(out)])


def test_a_killed_run_loses_at_most_the_clips_in_work(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    for i in range(8):
        write_video(raw / f"p{i}.mp4", face_frames(20 + i))
    child = _slow_run(raw, out)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and child.poll() is None:
        if (out / "index.jsonl").exists() and len(index_of(out)) >= 2:
            break
        time.sleep(0.01)
    child.kill()
    child.wait()
    kept = index_of(out)
    assert 2 <= len(kept) < 8
    with (out / "00000.tar").open("ab") as shard:  # as if killed within a write
        shard.write(b"half a sample")
    with (out / "index.jsonl").open("ab") as index:
        index.write(b'{"key": "half')
    run(raw, out)
    lines = index_of(out)
    assert lines[: len(kept)] == kept
    assert sorted(line["frames"] for line in lines) == list(range(20, 28))
    assert len({line["key"] for line in lines}) == 8
    with tarfile.open(out / "00000.tar") as tar:
        assert len(tar.getmembers()) == 24


def test_a_clip_written_but_not_yet_noted_is_not_made_twice(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_video(raw / "p.mp4", face_frames(20))
    run(raw, out)
    [path] = (out / "videos").rglob("*.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"clips": {}, "finished": False}))
    run(raw, out)
    assert len(index_of(out)) == 1


def write_raw(raw: Path, *, deadly: str, fine: str) -> None:
    """Videos of one letter each; the deadly ones kill their worker."""
    for name in deadly + fine:
        frames = face_frames(20)
        if name in deadly:
            frames[:] = DEADLY
        write_video(raw / f"{name}.mp4", frames)


def test_a_video_that_kills_its_worker_stops_nobody_else_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_raw(raw, deadly="a", fine="b")
    report = run(raw, out)
    assert report["videos"] == {"failed": 1, "finished": 1}
    assert report["reasons"]["failed: its worker died (SIGKILL)"]["examples"] == ["raw/a.mp4"]
    monkeypatch.setenv("EMO_TEST_SURVIVE", "1")
    assert run(raw, out)["videos"] == {"finished": 2}


def test_any_number_of_videos_that_kill_their_workers_stop_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_workers, "FRUITLESS_DEATHS", 2)
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_raw(raw, deadly="bcd", fine="aez")
    assert run(raw, out)["videos"] == {"finished": 3, "failed": 3}
    assert run(raw, out)["videos"] == {"finished": 3, "failed": 3}  # nothing else is left


def test_workers_that_all_die_are_an_error_and_the_next_run_begins_with_other_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_workers, "FRUITLESS_DEATHS", 2)
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_raw(raw, deadly="ab", fine="c")
    with pytest.raises(EmoError, match="2 workers died, and nothing has been finished"):
        run(raw, out)
    assert run(raw, out)["videos"] == {"finished": 1, "failed": 2}


def test_videos_are_taken_up_only_when_a_worker_is_free(tmp_path: Path) -> None:
    path = write_video(tmp_path / "x.mp4", face_frames(20))
    drawn = 0

    def tasks():  # type: ignore[no-untyped-def]
        nonlocal drawn
        for i in range(4):
            drawn += 1
            yield VideoTask(name=f"v{i}", path=path, spans=(read_list_free_span(),), size=SIZE)

    ahead, finished = [], 0
    with VideoWorkers(1, MagentaFinder, prepare_video) as workers:
        for _, event in workers.run(tasks()):
            ahead.append(drawn - finished)
            finished += isinstance(event, Finished)
    assert finished == 4 and max(ahead) == 1


def test_two_runs_into_one_dataset_are_refused(tmp_path: Path) -> None:
    from emo_cli.training.shards import ShardWriter

    with (
        ShardWriter(tmp_path, {}),
        pytest.raises(EmoError, match="another process"),
        ShardWriter(tmp_path, {}),
    ):
        pass


# --- what to use, and who is who


def test_a_dry_run_says_what_it_found_and_writes_nothing(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_video(raw / "a.mkv", face_frames(25), sound=tone(RATE))
    (raw / "b.mp4").write_bytes(b"garbage")
    found = look(PrepareOptions(raw=(raw,), out=tmp_path / "out"))
    assert (found["videos"], found["to_do"], found["without_sound"]) == (2, 1, 0)
    assert found["hours"] == pytest.approx(1 / 3600, rel=0.1)
    assert len(found["reasons"]) == 1
    assert not (tmp_path / "out").exists()


def test_an_empty_or_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmoError, match="no video"):
        run(tmp_path, tmp_path / "out")
    with pytest.raises(EmoError, match="does not exist"):
        run(tmp_path / "nowhere", tmp_path / "out")


def test_a_folder_that_may_not_be_read_is_an_error_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "raw" / "a.mp4", face_frames(20))
    (tmp_path / "raw" / "mine").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "mine":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for act in (prepare, look):
        with pytest.raises(EmoError, match="cannot read the folder .*/raw/mine: Permission denied"):
            act(PrepareOptions(raw=(tmp_path / "raw",), out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_pattern_names_identities_and_splits_them_without_overlap() -> None:
    who = split_rule(r"/(\w+?)_\d+\.mp4$", 0.3)
    found = [who(Path(f"/x/p{i // 3}_{i}.mp4"), "") for i in range(90)]
    assert {identity for identity, _ in found} == {f"p{i}" for i in range(30)}  # type: ignore[misc]
    assert len(set(found)) == 30  # each identity in one split
    assert 4 <= sum(split == "val" for _, split in set(found)) <= 15  # type: ignore[misc]
    assert who(Path("/x/nothing.mp4"), "") is None


def test_a_csv_names_identities_and_splits(tmp_path: Path) -> None:
    table = tmp_path / "who.csv"
    table.write_text("video,identity,split\na.mp4,Ann,val\nb,Bob,train\n")
    who = split_rule(str(table), 0.05)
    assert who(Path("x/a.mp4"), "") == ("Ann", "val")
    assert who(Path("x/b.mp4"), "") == ("Bob", "train")
    assert who(Path("x/c.mp4"), "") is None
    table.write_text("video,identity,split\na,Ann,val\nb,Ann,train\n")
    with pytest.raises(EmoError, match="'Ann' is in both splits"):
        split_rule(str(table), 0.05)
    table.write_text("file,name\na,Ann\n")
    with pytest.raises(EmoError, match="cannot read --split-by"):
        split_rule(str(table), 0.05)


def test_without_a_rule_our_own_held_out_clips_stay_out() -> None:
    who = split_rule(None, 0.05)
    assert who(Path("/data/grid_s1/bbas2p.mp4"), "") == ("grid_s1/bbas2p", "val")
    assert who(Path("/data/grid_s1/bbaf2n.mp4"), "") == ("grid_s1/bbaf2n", "train")


def test_the_share_asked_for_is_held_out_and_more_holds_out_the_same_people() -> None:
    videos = [Path(f"/raw/p{i}_{take}.mp4") for i in range(300) for take in "ab"]

    def held_out(share: float) -> set[str]:
        found = {split_rule(None, share)(video, "") for video in videos}
        assert len(found) == 300  # each identity in one split
        return {who for who, split in found if split == "val"}  # type: ignore[misc]

    assert held_out(0) == set() and len(held_out(1)) == 300
    assert 40 < len(held_out(0.2)) < 80
    assert held_out(0.05) < held_out(0.2) < held_out(0.5)
    assert held_out(0.05) == {
        f"raw/p{i}" for i in range(300) if int(name_hash(f"raw/p{i}"), 16) % 20 == 0
    }


def test_hdtf_lists_give_times_regions_and_identities(tmp_path: Path) -> None:
    (tmp_path / "RD_annotion_time.txt").write_text(
        "Radio11.mp4 00:30-01:00 01:30-1:02:30\nWDA_AnnLee_001.mp4 00:00-00:05\n"
    )
    (tmp_path / "RD_crop_wh.txt").write_text("Radio11_0.mp4 360 480 0 480\n")
    (tmp_path / "RD_resolution.txt").write_text("Radio11.mp4 720\n")
    for source in (tmp_path, tmp_path / "RD_annotion_time.txt"):
        spans = read_list(source)
        first, second = spans["Radio11"]
        assert (first.start_s, first.stop_s, second.stop_s) == (30, 60, 3750)
        region = first.region_in(1920, 1080)
        assert region == pytest.approx((540 / 1920, 0, 1260 / 1920, 480 / 720))
        assert second.region is None
        assert spans["WDA_AnnLee_001"][0].identity == "WDA_AnnLee"
        assert spans["Radio11_1"][0].start_s == 0  # the clip as their script cuts it


def test_vfhq_and_celebv_lists_give_times_regions_and_identities(tmp_path: Path) -> None:
    folder = tmp_path / "meta"
    folder.mkdir()
    (folder / "Clip+abc_X+P1+C2+F100-250.txt").write_text(
        "CLIP: x\nH 1080\nW 1920\nFPS 25.0\n\nCROP: 480 270 1440 810\n100 1 2 3\n"
    )
    [span] = read_list(folder)["abc_X"]
    assert (span.start_s, span.stop_s, span.identity) == (4, 10, "abc_X+P1")
    assert span.region_in(1280, 720) == (0.25, 0.25, 0.75, 0.75)
    clips = {
        "k_0": {
            "ytb_id": "vid",
            "duration": {"start_sec": 1.5, "end_sec": 4.0},
            "bbox": {"top": 0.1, "bottom": 0.9, "left": 0.2, "right": 0.7},
        }
    }
    path = tmp_path / "celebvhq_info.json"
    path.write_text(json.dumps({"clips": clips}))
    [span] = read_list(path)["vid"]
    assert (span.start_s, span.stop_s, span.region) == (1.5, 4.0, (0.2, 0.1, 0.7, 0.9))
    assert read_list(path)["k_0"][0].stop_s is None


def test_a_list_chooses_stretches_and_leaves_other_videos_out(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_video(raw / "A_001.mp4", face_frames(75, speed=0.3))
    write_video(raw / "B_001.mp4", face_frames(25))
    times = tmp_path / "X_annotion_time.txt"
    times.write_text("A_001.mp4 00:01-00:02\n")
    report = run(raw, out, list=times)
    [line] = index_of(out)
    assert (line["identity"], line["frames"]) == ("A", 25)
    assert report["reasons"]["list: not in the list"]["examples"] == ["raw/B_001.mp4"]
    times.write_text("A_001.mp4 00:00-00:02\n")  # a finished video is not looked at again
    with pytest.raises(EmoError, match=r"other samples: list_rows is '\w{10}', not '\w{10}'$"):
        run(raw, out, list=times)
    with pytest.raises(EmoError, match="list_rows is .*, not None"):
        run(raw, out)
    with pytest.raises(EmoError, match="list_rows is .*, not None"):
        look(PrepareOptions(raw=(raw,), out=out, size=SIZE))


def test_a_csv_with_other_rows_is_refused_and_the_same_rows_go_on(tmp_path: Path) -> None:
    raw, out, table = tmp_path / "raw", tmp_path / "out", tmp_path / "who.csv"
    write_video(raw / "a.mp4", face_frames(20))
    table.write_text("video,identity,split\na,Ann,val\nb,Bob,train\n")
    run(raw, out, split_by=str(table))
    table.write_text("split,identity,video\ntrain,Bob,b\nval,Ann,a\n")
    assert run(raw, out, split_by=str(table))["videos"] == {"finished": 1}
    table.write_text("video,identity,split\na,Ann,train\nb,Bob,train\n")
    with pytest.raises(EmoError, match="other samples: split_by_rows is"):
        run(raw, out, split_by=str(table))


def test_a_dataset_of_before_takes_over_its_list(tmp_path: Path) -> None:
    raw, out, times = tmp_path / "raw", tmp_path / "out", tmp_path / "X_annotion_time.txt"
    write_video(raw / "A_001.mp4", face_frames(50))
    times.write_text("A_001.mp4 00:00-00:01\n")
    run(raw, out, list=times)
    about = json.loads((out / "dataset.json").read_text())
    del about["list_rows"], about["split_by_rows"]
    (out / "dataset.json").write_text(json.dumps(about))
    assert run(raw, out, list=times)["videos"] == {"finished": 1}
    times.write_text("A_001.mp4 00:00-00:02\n")
    with pytest.raises(EmoError, match="list_rows is"):
        run(raw, out, list=times)


def test_files_that_are_no_list_are_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "x.json"
    wrong.write_text('{"a": 1}')
    with pytest.raises(EmoError, match="no list that emo knows"):
        read_list(wrong)
    with pytest.raises(EmoError, match="names no video"):
        read_list(tmp_path)


# --- the real thing


def test_a_grid_clip_of_shared_data_is_framed_labelled_and_held_out(
    shared_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    path = shared_data / "grid_s1" / "bbas2p.mp4"
    prepare(PrepareOptions(raw=(path,), out=out, size=256))
    [line] = index_of(out)
    assert (line["frames"], line["split"]) == (75, "val")
    data = (out / "00000.tar").read_bytes()
    npz, flac = (data[a : a + n] for a, n in (line["parts"]["npz"], line["parts"]["flac"]))
    labels = unpack_labels(npz, 256, "x")
    heights = (labels.boxes[:, 3] - labels.boxes[:, 1]) / 256
    assert heights.mean() == pytest.approx(0.57, abs=0.03)
    assert 0.05 < labels.rotation.mean() < 0.6 and labels.rotation.max() < 3
    assert 20 < labels.poses[:, 2, 3].mean() < 40  # centimetres before the camera
    assert labels.opening.max() > 3 * np.quantile(labels.opening, 0.1)
    assert len(decode_sound(flac, "x")) == 75 * 640


if __name__ == "__main__":
    os.environ.pop("EMO_TEST_SURVIVE", None)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    prepare(
        PrepareOptions(raw=(Path(sys.argv[1]),), out=Path(sys.argv[2]), size=SIZE),
        make_finder=MagentaFinder,
    )
