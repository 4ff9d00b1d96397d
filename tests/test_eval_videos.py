"""`emo eval`: folders of videos, one decoding pass, the cache of features. No real metric."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_metrics import (
    DIE_AT,
    LOG,
    Drift,
    TintDistance,
    fake_extractors,
    missing_extractors,
    newer_extractors,
)
from made_faces import MagentaFinder, face_frames, tone, write_video
from PIL import Image

from emo_cli.errors import EmoError
from emo_cli.metrics import decode
from emo_cli.metrics.cache import Entry, entry_path, read_entry, write_entry
from emo_cli.metrics.contract import VideoInfo
from emo_cli.metrics.evaluate import EvalOptions, Evaluation, evaluate
from emo_cli.metrics.pairing import keep_common, open_portraits, open_videos, portrait_of
from emo_cli.metrics.result_json import as_json

RATE = 16_000


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """real/ and slow/ of three videos each, dark/ of two, of other rates and sizes."""
    root = tmp_path_factory.mktemp("videos")
    for i in range(3):
        name = f"deep/clip{i}" if i == 2 else f"clip{i}"
        sound = tone(RATE // 2)
        write_video(root / f"real/{name}.mkv", face_frames(12, speed=2 + i), sound=sound)
        write_video(root / f"slow/{name}.mp4", face_frames(12, speed=0.5 + i))
    for i in range(2):
        frames = face_frames(20, speed=3, grey=40)[:, : 100 + 20 * i]
        write_video(root / f"dark/clip{i}.mp4", frames, fps=50)
    return root


def run(root: Path, cache: Path, *methods: str, real: str | None = "real", **rest) -> Evaluation:
    options = {key: rest.pop(key) for key in ("paired", "portraits") if key in rest}
    return evaluate(
        EvalOptions(
            methods=tuple(open_videos(name, root / name) for name in methods),
            real=open_videos("real videos", root / real) if real else None,
            cache=cache,
            workers=rest.pop("workers", 1),
            **{"portraits": {}, **options},
        ),
        **{
            "metrics": [TintDistance(), Drift()],
            "make_extractors": fake_extractors,
            "make_finder": MagentaFinder,
            **rest,
        },
    )


def values_of(result: Evaluation) -> dict[str, dict[str, float | None]]:
    return {one.name: dict(one.values) for one in result.sets}


def lines(log: Path) -> list[str]:
    return sorted(log.read_text().splitlines()) if log.exists() else []


# --- figures, cache, workers


def test_each_video_is_read_once_and_a_second_run_reads_none(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    first = run(videos, tmp_path / "cache", "slow", "dark", workers=2)
    assert len(lines(tmp_path / "log")) == 8  # two extractors, one pass each
    second = run(videos, tmp_path / "cache", "slow", "dark")
    assert len(lines(tmp_path / "log")) == 8
    assert values_of(first) == values_of(second)
    assert first.methods[0].values["fid"] is not None


def test_the_number_of_workers_changes_no_figure(videos: Path, tmp_path: Path) -> None:
    one = run(videos, tmp_path / "one", "slow", "dark", workers=1)
    many = run(videos, tmp_path / "many", "dark", "slow", workers=3)
    assert values_of(one) == values_of(many)
    entries = [sorted((tmp_path / name).rglob("*.npz")) for name in ("one", "many")]
    names = [[path.relative_to(path.parents[2]) for path in paths] for paths in entries]
    assert len(names[0]) == 16 and names[0] == names[1]


def test_renamed_videos_are_known_by_their_contents(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(videos, tmp_path / "cache", "slow")
    for i, path in enumerate(sorted((videos / "slow").rglob("*.mp4"))):
        (tmp_path / "other").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "other" / f"renamed{i}.mp4")
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    run(tmp_path, tmp_path / "cache", "other", real=None, metrics=[Drift()])
    assert lines(tmp_path / "log") == []


def test_features_of_another_version_of_an_extractor_are_not_used(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(videos, tmp_path / "cache", "slow")
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    run(videos, tmp_path / "cache", "slow", make_extractors=newer_extractors)
    assert len(lines(tmp_path / "log")) == 6


def test_one_file_in_two_folders_is_read_once(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    result = run(videos, tmp_path / "cache", "real")
    assert len(lines(tmp_path / "log")) == 3
    assert result.methods[0].values["fid"] == 0.0


def test_the_size_of_chunks_changes_nothing(videos: Path, tmp_path: Path) -> None:
    found = []
    path = videos / "slow" / "clip0.mp4"
    info = VideoInfo(path=path, fps=25, size=(160, 120), has_sound=False)
    tools = decode.Tools(
        extractors={e.name: e for e in fake_extractors()},
        find=lambda picture: next(iter(MagentaFinder().find_in_frame(picture)), None),
    )
    before = decode.CHUNK_FRAMES
    for count in (1, 5, 16):
        decode.CHUNK_FRAMES = count
        target = tmp_path / f"{count}.npz"
        task = decode.ReadingTask(info=info, missing={"place": target})
        assert list(decode.read_video(task, tools, lambda: None)) == []
        entry = read_entry(target)
        assert entry is not None and (entry.num_frames, entry.num_faceless) == (12, 0)
        found.append(entry.arrays["place"].tolist())
    decode.CHUNK_FRAMES = before
    assert found[0] == found[1] == found[2]


def test_a_damaged_entry_is_made_again(videos: Path, tmp_path: Path) -> None:
    first = run(videos, tmp_path / "cache", "slow")
    entries = sorted((tmp_path / "cache").rglob("*.npz"))
    assert len(entries) == 12
    for path in entries:
        path.write_bytes(path.read_bytes()[: random.Random(0).randrange(1, 200)])
    assert values_of(run(videos, tmp_path / "cache", "slow")) == values_of(first)


def test_an_entry_keeps_its_arrays_and_counts(tmp_path: Path) -> None:
    path = entry_path(tmp_path, extractor="x", digest="1", contents=["video", "", ""])
    assert path != entry_path(tmp_path, extractor="x", digest="1", contents=["video", "p", ""])
    arrays = {"file": np.arange(6.0).reshape(2, 3), "allow_pickle": np.array(3)}
    write_entry(path, Entry(arrays=arrays, num_frames=7, num_faceless=None))
    entry = read_entry(path)
    assert entry is not None
    assert (entry.num_frames, entry.num_faceless) == (7, None)
    assert {name: array.tolist() for name, array in entry.arrays.items()} == {
        "file": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]],
        "allow_pickle": 3,
    }
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_worker_that_dies_takes_only_its_own_video_with_it(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIE_AT, "clip1.mp4")
    result = run(videos, tmp_path / "cache", "slow")
    assert result.methods[0].videos.skipped == {"clip1": "its worker died (SIGKILL)"}
    assert sorted(result.methods[0].per_video["drift"]) == ["clip0", "deep/clip2"]
    monkeypatch.delenv(DIE_AT)
    assert run(videos, tmp_path / "cache", "slow").num_skipped == 0  # the next run tries again


def test_sound_and_frames_reach_extractors_at_16_khz_and_25_fps(
    videos: Path, tmp_path: Path
) -> None:
    result = run(videos, tmp_path / "cache", "dark")
    assert result.real is not None
    feature = next(iter(result.real.videos.features("tint")))
    assert len(feature.arrays["tint"]) == 12
    assert float(feature.arrays["loudness"]) == pytest.approx(0.3 / np.sqrt(2), rel=0.05)
    silent = next(iter(result.methods[0].videos.features("tint")))
    assert len(silent.arrays["tint"]) == 10  # 20 frames at 50 per second
    assert np.isnan(silent.arrays["loudness"])
    said = "\n".join(result.notes)
    assert "dark: 2 of 2 videos resampled to 25 fps from 50" in said
    assert "dark: 2 sizes, 160x100 to 160x120 px" in said
    assert "dark: 2 of 2 videos have no sound" in said


# --- bad input


def test_an_unreadable_video_is_skipped_and_counted(videos: Path, tmp_path: Path) -> None:
    shutil.copytree(videos / "slow", tmp_path / "bad")
    (tmp_path / "bad" / "garbage.mp4").write_bytes(b"no video")
    whole = (tmp_path / "bad" / "clip0.mp4").read_bytes()
    (tmp_path / "bad" / "half.mp4").write_bytes(whole[: len(whole) // 2])
    shutil.copytree(videos / "real", tmp_path / "real")
    result = run(tmp_path, tmp_path / "cache", "bad")
    assert sorted(result.methods[0].videos.skipped) == ["garbage", "half"]
    assert len(as_json(result)["methods"]["bad"]["skipped"]) == 2
    assert result.num_skipped == 2


def test_a_folder_without_a_usable_video_is_an_error(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    with pytest.raises(EmoError, match="there is no video in"):
        open_videos("bad", tmp_path / "bad")
    with pytest.raises(EmoError, match="does not exist"):
        open_videos("bad", tmp_path / "nowhere")
    (tmp_path / "bad" / "garbage.mp4").write_bytes(b"no video")
    with pytest.raises(EmoError, match="no video in .* can be used; garbage: unreadable"):
        run(tmp_path, tmp_path / "cache", "bad", real=None, metrics=[Drift()])


def test_a_missing_network_is_told_before_any_video_is_looked_at(
    videos: Path, tmp_path: Path
) -> None:
    def progress(what: str, done: int, total: int) -> None:
        raise AssertionError(what)

    with pytest.raises(EmoError) as caught:
        run(
            videos,
            tmp_path / "cache",
            "slow",
            make_extractors=missing_extractors,
            progress=progress,
        )
    assert "emo download eval" in caught.value.hint


def test_a_metric_that_cannot_be_had_says_why_and_spares_the_others(
    videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(videos / "slow" / "clip0.mp4", tmp_path / "one")
    os.symlink(videos / "real", tmp_path / "real")
    result = run(tmp_path, tmp_path / "cache", "one")
    assert result.methods[0].values["fid"] is None
    assert result.methods[0].values["drift"] is not None
    assert result.methods[0].notes == ("fid: needs two videos",)
    with pytest.raises(EmoError, match="needs two videos"):
        run(tmp_path, tmp_path / "cache", "one", metrics=[TintDistance()])


def test_frames_without_a_face_are_counted(tmp_path: Path) -> None:
    frames = face_frames(10)
    frames[3:5] = 90
    write_video(tmp_path / "x" / "a.mp4", frames)
    result = run(tmp_path, tmp_path / "cache", "x", real=None, metrics=[Drift()])
    assert (result.methods[0].num_frames, result.methods[0].num_faceless) == (10, 2)


# --- names


def test_names_pair_across_endings_and_sub_folders(videos: Path, tmp_path: Path) -> None:
    result = run(videos, tmp_path / "cache", "slow", "dark")
    assert result.missing["slow"] == {"not among the real videos": [], "not generated": []}
    assert result.missing["dark"]["not generated"] == ["deep/clip2"]
    assert not result.same_videos
    both = run(videos, tmp_path / "cache", "slow", "dark", paired=True)
    assert both.same_videos and both.real is not None
    assert [item.key for item in both.real.videos.items] == ["clip0", "clip1"]


def test_folders_without_a_shared_name_cannot_be_paired(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shutil.copy(videos / "slow" / "clip0.mp4", tmp_path / "other" / "else.mp4")
    folders = [open_videos("a", tmp_path / "other"), open_videos("b", videos / "slow")]
    with pytest.raises(EmoError, match="no video has the same name"):
        keep_common(folders)


def test_two_videos_of_one_name_are_refused_and_hidden_files_left_alone(tmp_path: Path) -> None:
    for name in ("a.mp4", ".a.mp4.part", ".hidden.mp4", "a.txt"):
        (tmp_path / name).touch()
    assert list(open_videos("x", tmp_path).videos) == ["a"]
    (tmp_path / "a.mov").touch()
    with pytest.raises(EmoError, match="one name but for the ending"):
        open_videos("x", tmp_path)


def test_portraits_are_found_by_name_or_by_the_beginning_of_the_name(tmp_path: Path) -> None:
    for name in ("anna.png", "anna_b.png", "sub/eve.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    portraits = open_portraits(tmp_path)

    def found(key: str) -> str | None:
        path = portrait_of(key, portraits)
        return path.name if path else None

    assert found("anna") == found("anna_song") == "anna.png"
    assert found("anna_b_song") == "anna_b.png"
    assert found("sub/eve_x_y") == "eve.jpg"
    assert found("annabel") is None and found("eve") is None


def test_a_portrait_is_told_to_extractors_and_its_absence_to_the_user(
    videos: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "clip0.png")
    portraits = open_portraits(tmp_path)
    result = run(
        videos, tmp_path / "cache", "slow", real=None, metrics=[Drift()], portraits=portraits
    )
    with_portrait = [item.info.portrait for item in result.methods[0].videos.items]
    assert with_portrait == [tmp_path / "clip0.png", None, None]
    assert "2 videos without a portrait, such as clip1, deep/clip2" in "\n".join(result.notes)


# --- stopping and going on

KILLED = """
import os, sys
from pathlib import Path
from fake_metrics import Drift, TintDistance, fake_extractors
from made_faces import MagentaFinder
from emo_cli.metrics.evaluate import EvalOptions, evaluate
from emo_cli.metrics.pairing import open_videos

def progress(what, done, total):
    if (what, done) == ("reading", 2):
        os.kill(os.getpid(), 9)

if __name__ == "__main__":
    root, cache = map(Path, sys.argv[1:])
    evaluate(
        EvalOptions(methods=(open_videos("slow", root / "slow"),),
                    real=open_videos("real videos", root / "real"),
                    portraits={}, cache=cache, workers=1),
        metrics=[TintDistance(), Drift()], make_extractors=fake_extractors,
        make_finder=MagentaFinder, progress=progress,
    )
"""


def test_a_run_that_was_killed_goes_on_where_it_was(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    command = [sys.executable, tmp_path / "killed.py", videos, tmp_path / "cache"]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -9
    time.sleep(0.5)  # the worker sees the closed pipe and ends
    begun = lines(tmp_path / "log")
    assert 2 <= len(begun) < 6
    result = run(videos, tmp_path / "cache", "slow")
    again = len(lines(tmp_path / "log")) - len(begun)
    assert again <= 4  # the two that were done are not read again
    assert values_of(result) == values_of(run(videos, tmp_path / "fresh", "slow"))
