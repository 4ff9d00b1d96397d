"""The benchmark that judges a model by the list it must hold: its measures, its lines, a run."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from made_faces import write_video
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import mini_quality  # noqa: E402
import quality_footage  # noqa: E402
import quality_lines  # noqa: E402
import quality_material  # noqa: E402
import quality_videos  # noqa: E402
from quality_footage import Footage, Talk, silenced_speed_layers  # noqa: E402
from quality_measures import (  # noqa: E402
    REACH,
    PictureReading,
    Word,
    agreement,
    correlation,
    correlations,
    count_blinks,
    drift,
    join_ratio,
    read_alignment,
    shut_lips,
    silence_and_speech,
    syllable_envelope,
)
from quality_videos import Watched, thumbnail, write_sheet  # noqa: E402

from emo_cli.engine import Engine  # noqa: E402
from emo_cli.errors import EmoError  # noqa: E402
from emo_cli.metrics.contract import VideoFeatures, VideoInfo  # noqa: E402
from emo_cli.metrics.identity import IdentityExtractor  # noqa: E402

NAN = float("nan")


def curve(seed: int, count: int = 75) -> np.ndarray:
    return np.convolve(np.random.default_rng(seed).random(count + 4), np.ones(5) / 5, "valid")


def test_lips_that_come_late_are_found_late():
    real = curve(0)
    for offset in (-3, 0, 4):
        rows = correlations(np.roll(real, offset), real)
        assert int(rows.argmax()) - REACH == offset
        assert rows.max() > 0.9


def test_one_offset_must_fit_all_videos():
    early, late = np.zeros(2 * REACH + 1), np.zeros(2 * REACH + 1)
    early[REACH - 1], late[REACH + 1] = 1.0, 1.0
    assert agreement([early, late])[0] == pytest.approx(0.5)


def test_agreement_beyond_what_nobody_sees_does_not_count():
    row = np.zeros(2 * REACH + 1)
    row[REACH + 5], row[REACH] = 0.9, 0.2
    assert agreement([row]) == (pytest.approx(0.2), 5)


def test_lips_that_never_move_agree_with_nothing():
    assert correlation(np.full(20, 0.1), curve(1, 20)) == 0
    assert np.isnan(correlation(np.full(20, NAN), curve(1, 20)))
    assert np.isnan(agreement([correlations(np.full(75, NAN), curve(1))])[0])


def test_frames_without_a_face_are_left_out_of_a_correlation():
    a = curve(2)
    holes = a.copy()
    holes[10:30] = NAN
    assert correlation(holes, 3 * a + 1) == pytest.approx(1)


def test_the_envelope_follows_a_voice_and_not_a_hum():
    time_s = np.arange(32_000) / 16_000
    syllables = (np.sin(2 * np.pi * 4 * time_s) > 0).astype(np.float32)
    voice = syllables * np.sin(2 * np.pi * 700 * time_s)
    envelope = syllable_envelope((voice + np.sin(2 * np.pi * 50 * time_s)).astype(np.float32), 50)
    wanted = syllables.reshape(50, 640).mean(1)
    assert correlation(envelope, wanted) > 0.85
    assert syllable_envelope(np.zeros(1000, np.float32), 50).max() < 1e-6


def test_a_blink_is_short_and_opens_again():
    eyes = np.full(100, 0.3)
    eyes[20:24] = 0.1  # a blink
    eyes[50:70] = 0.1  # asleep
    eyes[98:] = 0.1  # not yet open again
    eyes[10] = NAN
    assert count_blinks(eyes) == 1
    assert count_blinks(np.full(9, NAN)) == 0


def test_clip_borders_are_compared_with_what_lies_inside():
    change = np.ones(36)
    change[[0, 12, 24]] = NAN, 3, 3
    assert join_ratio([change, change], 12) == pytest.approx(3)


def test_drift_compares_the_last_seconds_with_the_first():
    rows = np.concatenate([np.full(125, 2.0), np.full(500, 9.0), np.full(125, 3.0)])
    assert drift(rows) == pytest.approx(1.5)


WORDS = [Word("sil", 0, 20), Word("bin", 20, 30), Word("at", 30, 40), Word("sil", 40, 75)]


def test_silence_lies_before_and_after_the_words(tmp_path: Path):
    path = tmp_path / "a.align"
    path.write_text("0 20000 sil\n20000 30000 bin\n30000 40000 at\n40000 75000 sil\n")
    assert read_alignment(path) == WORDS
    mouth = np.zeros(75)
    mouth[17:46] = 0.5
    mouth[20:40] = 0.2
    assert silence_and_speech(mouth, WORDS) == (0, pytest.approx(0.2))


def test_lips_must_meet_only_where_a_word_begins_with_b_p_or_m():
    mouth = np.full(75, 0.2)
    mouth[21], mouth[30] = 0.01, 0.0
    assert shut_lips(mouth, WORDS) == [pytest.approx(0.01)]
    assert shut_lips(mouth, [Word("m", 20, 30)]) == []  # a letter's name: "em"
    assert shut_lips(mouth, [Word("me", 20, 30)]) == [pytest.approx(0.01)]


def test_the_background_is_the_upper_corners():
    reading = PictureReading()
    picture = np.zeros((100, 100, 3), np.uint8)
    for level in (0, 10):
        frame = picture.copy()
        frame[60:, 30:70] = 200 if level else 0  # the person
        frame[:50, :15] = level
        reading.add(frame)
    curves = reading.finish()
    assert curves["background"][1] == pytest.approx(5, abs=1e-3)
    assert np.isnan(curves["change"][0])
    assert curves["sharpness"][1] > curves["sharpness"][0]
    assert curves["brightness"][1] > 0


def watched(name: str = "a", frames: int = 50, **arrays: np.ndarray) -> Watched:
    """A video of which only some curves are known; the others are quiet."""
    box = np.tile(np.array([20, 20, 40, 40], np.float32), (frames, 1))
    all_arrays = {
        "similarity": np.full(frames, 0.95),
        "distance": np.full(frames, 0.3),
        "reference": np.array(-1),
        "velocity": np.full(frames, 1.0),
        "mouth": np.full(frames, 0.01),
        "eyes": np.full(frames, 0.3),
        "boxes": box,
        "region": np.array([19, 19, 41, 41], np.float32),
        "source": np.array(0),
    } | arrays
    info = VideoInfo(path=Path(f"{name}.mp4"), fps=25, size=(64, 64), has_sound=True)
    features = {
        extractor: VideoFeatures(key=name, info=info, arrays=all_arrays)
        for extractor in ("identity", "motion", "region")
    }
    flat = np.ones(frames)
    picture = dict.fromkeys(("change", "brightness", "sharpness", "background"), flat)
    return Watched(
        name=name,
        features=features,
        picture=picture | {k: v for k, v in arrays.items() if k in picture},
        sound=np.zeros(frames * 640, np.float32),
        thumbnails=[],
        num_frames=frames,
    )


def verdicts(lines: list[quality_lines.Line]) -> dict[str, bool | None]:
    return {line.key: line.met for line in lines}


def test_a_frame_without_a_face_counts_against_the_portrait():
    distance = np.full(100, 0.3)
    distance[:10] = NAN
    lines = quality_lines.identity_lines([watched(distance=distance)])
    assert {line.key: line.value for line in lines} == {
        "faces": pytest.approx(90),
        "same_person": pytest.approx(90),
        "face_distance": pytest.approx(0.3),
    }
    assert verdicts(lines) == {"faces": False, "same_person": False, "face_distance": True}


def test_no_face_anywhere_meets_nothing():
    nothing = np.full(75, NAN)
    video = watched("a", 75, distance=nothing, mouth=nothing, eyes=nothing, velocity=nothing)
    footage = Footage(
        clip_frames=12,
        talks=[Talk(video=video, real=watched("r", 75, mouth=curve(3)), words=WORDS)],
        silent=[video],
        voices={"x": video},
        speeds={speed: [video, video] for speed in (None, *quality_footage.SPEEDS)},
        regions={
            region: [watched(region, 75, boxes=np.full((75, 4), NAN))]
            for region in quality_footage.REGIONS
        },
        long=watched("l", 1500, similarity=np.full(1500, NAN)),
    )
    found = verdicts(quality_lines.judge(footage))
    faceless = found.keys() - {
        "joins", "background", "drift_brightness", "drift_sharpness", "plosives"
    }  # fmt: skip
    assert not any(found[key] for key in faceless)
    assert found["drift_brightness"] and found["joins"]


def test_lips_that_follow_the_sound_are_met():
    real = curve(4) / 10
    real[:15] = real[48:] = 0.01
    talk = Talk(
        video=watched("a", 75, mouth=np.roll(real, 1)),
        real=watched("r", 75, mouth=real),
        words=WORDS,
    )
    found = verdicts(quality_lines.sync_lines([talk]))
    assert found == {"sync_r": True, "sync_offset": True, "plosives": None}
    late = Talk(video=watched("a", 75, mouth=np.roll(real, 4)), real=talk.real, words=WORDS)
    assert not verdicts(quality_lines.sync_lines([late]))["sync_offset"]


def speeds_footage(*means: float) -> Footage:
    def videos(centre: float, spread: float) -> list[Watched]:
        rows = (centre - spread, centre + spread)
        return [watched(str(row), velocity=np.full(50, row)) for row in rows]

    speeds = {None: videos(1.0, 0.5)}
    speeds |= {
        speed: videos(m, 0.1) for speed, m in zip(quality_footage.SPEEDS, means, strict=True)
    }
    return Footage(clip_frames=12, speeds=speeds)


def test_speed_must_rise_at_every_step_and_by_the_papers_factor():
    good = verdicts(quality_lines.speed_lines(speeds_footage(0.9, 1.0, 1.2, 1.4)))
    assert good == {"speed_rises": True, "speed_factor": True, "vmv": True}
    bad = verdicts(quality_lines.speed_lines(speeds_footage(0.9, 1.0, 0.99, 1.1)))
    assert bad == {"speed_rises": False, "speed_factor": False, "vmv": True}


def test_regions_are_met_when_wide_sways_and_tall_nods():
    def moving(right: float, down: float) -> list[Watched]:
        boxes = np.tile(np.array([20.0, 20, 40, 40]), (50, 1))
        boxes[25:] += (right, down, right, down)
        return [watched(boxes=boxes, region=np.array([0, 0, 64, 64], np.float32))]

    footage = Footage(clip_frames=12)
    footage.regions = {
        "box": moving(1, 1), "wide": moving(5, 1), "tall": moving(1, 1.2), "all": moving(5, 5)
    }  # fmt: skip
    found = verdicts(quality_lines.region_lines(footage))
    assert found == {"region": True, "region_wide": True, "region_tall": False}


def test_a_value_that_could_not_be_had_is_never_met():
    line = quality_lines.at_most("x", "x", NAN, 1)
    assert line.value is None and line.met is False


def test_a_sheet_keeps_each_rows_first_picture(tmp_path: Path):
    cells = [np.full((128, 128, 3), i, np.uint8) for i in range(30)]
    write_sheet(tmp_path / "sheets" / "a.png", [cells, cells[:2]], columns=4)
    sheet = np.asarray(Image.open(tmp_path / "sheets" / "a.png"))
    assert sheet.shape == (256, 512, 3)
    assert [int(sheet[0, 128 * i, 0]) for i in range(4)] == [0, 1, 15, 29]
    assert [int(sheet[128, 128 * i, 0]) for i in range(4)] == [0, 1, 255, 255]
    assert thumbnail(np.zeros((50, 200, 3), np.uint8)).shape == (128, 128, 3)


@pytest.fixture(scope="module")
def made_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the benchmark wants it: one held-out person, one held-out clip, one sound."""
    data = tmp_path_factory.mktemp("data")
    for folder in ("portraits/london", "audio"):
        (data / folder).mkdir(parents=True)
    portrait = ROOT / "examples" / "portrait.jpg"
    for name in ("001_neutral", "002_neutral", "002_smile"):
        shutil.copy(portrait, data / "portraits" / "london" / f"{name}.jpg")
    shutil.copy(ROOT / "examples" / "speech.wav", data / "audio" / "voice.wav")
    with Image.open(portrait) as picture:
        face = np.asarray(picture.convert("RGB").resize((128, 128)))
    rng = np.random.default_rng(0)
    sound = 0.1 * rng.standard_normal(24 * 640).astype(np.float32)
    for name in ("bbas2p", "aaaa1a"):
        clip = data / "grid_s1" / f"{name}.mp4"
        write_video(clip, np.stack([face] * 24), sound=sound)
        clip.with_suffix(".align").write_text("0 8000 sil\n8000 16000 bin\n16000 24000 sil\n")
    return data


def test_only_what_was_held_out_is_judged_with(made_data: Path, tmp_path: Path):
    material = quality_material.find_material(made_data, tmp_path)
    assert [path.name for path in material.portraits] == ["002_neutral.jpg"]
    assert [len(pictures) for pictures in material.portrait_sets] == [2]
    assert [path.name for path in material.clips] == ["bbas2p.mp4"]


def test_a_folder_without_the_data_is_an_error(tmp_path: Path):
    with pytest.raises(EmoError, match="no held-out portraits"):
        quality_material.find_material(tmp_path, tmp_path)


def test_voices_are_cut_where_they_are_fullest(tmp_path: Path, made_data: Path):
    import soundfile

    samples = np.zeros(16_000 * 4)
    samples[20_000:36_000] = 0.3 * np.sin(np.arange(16_000) * 2 * np.pi * 500 / 16_000)
    soundfile.write(tmp_path / "late.wav", samples, 16_000)
    material = quality_material.find_material(made_data, tmp_path)
    found = {v.name: v for v in quality_material.voices(material, 1.0)}
    assert "speech" in found
    object.__setattr__(material, "sounds", (tmp_path / "late.wav",))
    (late,) = quality_material.voices(material, 1.0)
    assert late.start_s == pytest.approx(1.25, abs=0.1)


def test_silenced_speed_layers_come_back(small_model: Path):
    engine = Engine(small_model)
    before = {k: v.clone() for k, v in engine.model.state_dict().items()}
    with silenced_speed_layers(engine):
        now = engine.model.state_dict()
        silent = {k for k in now if not now[k].any() and before[k].any()}
        assert silent and all("attn_speed.to_out" in key for key in silent)
    assert all(v.equal(before[k]) for k, v in engine.model.state_dict().items())


class FakeStudio:
    """Notes what is asked for and hands out a quiet video."""

    def __init__(self, engine: object) -> None:
        self.engine = engine
        self.folder = Path()
        self.watcher = self
        self.asked: list[tuple[str, Path, Path, dict]] = []

    def video(self, name: str, portrait: Path, sound: Path, **options: object) -> Watched:
        self.asked.append((name, portrait, sound, options))
        video = watched(name, 1500 if name.startswith("long") else 75)
        return dataclasses.replace(video, thumbnails=[np.zeros((128, 128, 3), np.uint8)] * 2)

    def real(self, clip: Path) -> Watched:
        return self.video("real", clip, clip)


@pytest.fixture
def filmed(made_data: Path, small_model: Path, tmp_path: Path):
    """Every film, of two portraits, by a studio that makes nothing."""
    studio = FakeStudio(Engine(small_model))
    studio.folder = tmp_path
    shooting = quality_footage.Shooting(
        studio=studio,
        material=quality_material.find_material(made_data, tmp_path),
        count=1,
        sheets=tmp_path / "sheets",
        without_speed=None,
    )
    footage = Footage(clip_frames=12)
    for film in quality_footage.FILMS.values():
        film(shooting, footage)
    return studio, footage, tmp_path


def test_every_film_has_its_lines_and_its_sheet(filmed):
    _, footage, folder = filmed
    lines = quality_lines.judge(footage)
    assert len(lines) == len({line.key for line in lines}) == 22
    assert {path.stem for path in (folder / "sheets").iterdir()} == {
        "talk", "silence", "voices", "speed", "region", "long"
    }  # fmt: skip


def test_speeds_and_regions_differ_in_nothing_else(filmed):
    studio, _, _ = filmed
    by_film: dict[str, list] = {}
    for name, portrait, sound, options in studio.asked:
        by_film.setdefault(name.split("-")[0], []).append((portrait, sound, options))
    speeds = by_film["speed"]
    assert len({(p, s, o["duration_s"]) for p, s, o in speeds}) == 1
    asked = [o.get("speed", o.get("variant")) for _, _, o in speeds[::2]]
    assert asked == [" without speed layers", 0.1, 0.7, 1.3, 1.9]
    assert [o["face_region"] for _, _, o in by_film["region"]] == ["box", "wide", "tall", "all"]
    _, minute, how = by_film["long"][0]
    assert how == {"duration_s": 60} and soundfile.info(minute).frames == 60 * 16_000


class MeanColour:
    """Stands in for the face network: a run of the benchmark needs no download in a test."""

    digest = "mean colour"

    def cut(self, picture: np.ndarray, face: object) -> np.ndarray:
        return np.asarray(Image.fromarray(picture).resize((4, 4)))

    def embed(self, faces: np.ndarray) -> np.ndarray:
        return faces.mean((1, 2)).astype(np.float32) / 255


def test_a_run_prints_every_line_and_one_json_object(
    made_data: Path, small_model: Path, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setattr(
        quality_videos, "IdentityExtractor", lambda: IdentityExtractor(MeanColour())
    )
    monkeypatch.setattr(quality_footage, "SHORT_S", 0.5)
    command = ["--data", str(made_data), "--out", str(tmp_path), "--model", str(small_model)]
    command += ["--count", "1", "--steps", "1", "--parts", "autoencoder,talk"]
    mini_quality.main(command)
    printed = capsys.readouterr().out.splitlines()
    result = json.loads(printed[-1])
    keys = [line["key"] for line in result["lines"]]
    assert {"psnr", "faces", "sync_r", "only_silence", "joins", "blinks", "size"} < set(keys)
    assert all(any(line["text"] in row for row in printed) for line in result["lines"])
    videos = {path: path.stat().st_mtime_ns for path in (tmp_path / "videos").glob("*.mp4")}
    assert len(videos) == 2
    mini_quality.main([*command[:-1], "talk"])
    assert {p: p.stat().st_mtime_ns for p in videos} == videos, "nothing is made twice"


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        mini_quality.parse(["--data", "x", "--out", "y", "--parts", "talk,blink"])
    assert "no part blink" in capsys.readouterr().err
