"""Puppets: exact labels, a still that stays itself at rest, and datasets of them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from made_faces import DEADLY, MagentaFinder
from PIL import Image
from typer.testing import CliRunner

from emo_cli.blinks import BLINK
from emo_cli.cli import app
from emo_cli.errors import EmoError
from emo_cli.face_motion import lip_opening, rotation_matrices
from emo_cli.faces import Face, FaceFinder
from emo_cli.picture import read_picture
from emo_cli.training.dataset import ClipDataset, Needs
from emo_cli.training.draws import Draw
from emo_cli.training.puppets import visemes
from emo_cli.training.puppets.clip import exact_labels, make_clip, make_plan
from emo_cli.training.puppets.driver import Driver, driver_of_points
from emo_cli.training.puppets.ict import read_face_shapes
from emo_cli.training.puppets.jobs import Puppets, missing_jobs, plan_jobs
from emo_cli.training.puppets.mesh import (
    CHIN,
    DEPTH,
    INNER_LOWER_LIP,
    INNER_UPPER_LIP,
    LEFT_EYE,
    LEFT_IRIS,
    NOSE_BASE,
    NUM_POINTS,
    mouth_scale,
)
from emo_cli.training.puppets.motion import (
    BLINK_WITHIN,
    CLOSEST_BLINKS,
    SHALLOWEST_BLINK,
    make_motion,
    rest,
)
from emo_cli.training.puppets.pose import make_pose
from emo_cli.training.puppets.raster import rasterise
from emo_cli.training.puppets.render import render
from emo_cli.training.puppets.sound import as_recorded, quiet_frames, with_quiet_ends
from emo_cli.training.puppets.still import Still, make_still
from emo_cli.training.puppets.write import write_puppets
from emo_cli.training.samples import encode_frames, unpack_labels
from emo_cli.training.shard_reader import ShardReader
from emo_cli.training.splits import is_held_out

SIZE = 256


@pytest.fixture(scope="module")
def still(portrait: Path) -> Still:
    picture = read_picture(portrait)
    with FaceFinder() as finder:
        made = make_still(picture, finder, SIZE)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def chatter(still: Still) -> Driver:
    """A jaw that falls and rises twice in 24 frames."""
    shut = still.shut
    jaw = np.clip((shut[:, 1] - shut[INNER_UPPER_LIP, 1].mean()) / 20, 0, 1)
    jaw[INNER_LOWER_LIP[1:-1]], jaw[INNER_UPPER_LIP] = 1, 0
    fall = 0.15 * (1 - np.cos(2 * np.pi * np.arange(24) / 12))
    moves = np.zeros((24, NUM_POINTS, 3), np.float32)
    moves[..., 1] = fall[:, None] * jaw
    return Driver(moves=moves)


@pytest.fixture(scope="module")
def as_found(still: Still) -> Still:
    """The example's smile kept as it is: at rest nothing is to move."""
    return dataclasses.replace(still, shut=still.upright(still.points))


def zeros(num_frames: int) -> np.ndarray:
    return np.zeros((num_frames, NUM_POINTS, 3), np.float32)


@pytest.mark.parametrize("speed", [0.05, 0.7, 2.0])
def test_a_head_turns_as_fast_as_asked(speed: float) -> None:
    motion = make_motion(75, speed, seed=4)
    turns = motion.rotations[1:] @ motion.rotations[:-1].transpose(0, 2, 1)
    by_trace = np.degrees(np.arccos(np.clip((np.trace(turns, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert by_trace.mean() == pytest.approx(speed, rel=0.02, abs=0.002)


def test_heads_stay_within_what_a_still_can_bear() -> None:
    turns = np.concatenate([make_motion(75, 1.5, seed).turns for seed in range(20)])
    assert (np.abs(turns).max(0) <= [12, 8, 15]).all()
    assert np.abs(turns).max(0).min() > 3


def test_a_head_that_does_not_turn_is_still_alive() -> None:
    motion = make_motion(75, 0.0, seed=1)
    assert motion.speed.max() == 0
    assert all(np.ptp(x, axis=0).max() > 0 for x in (motion.shift, motion.breath, motion.gaze))


def test_motion_is_a_function_of_its_seed() -> None:
    first, same, other = (make_motion(30, 0.5, seed) for seed in (5, 5, 6))
    for field in dataclasses.fields(first):
        assert (getattr(first, field.name) == getattr(same, field.name)).all()
    assert not np.array_equal(first.turns, other.turns)


def test_people_blink_where_their_speech_pauses_and_now_and_then_elsewhere() -> None:
    pauses = np.zeros(100, bool)
    pauses[:10] = pauses[40:44] = pauses[60:70] = pauses[72:80] = True
    in_pauses, others = 0, set()
    for seed in range(40):
        blink = make_motion(100, 0.2, seed, pauses=pauses).blink
        began = np.flatnonzero((blink > 0) & (np.append(0, blink[:-1]) == 0))
        assert (np.diff(began) >= CLOSEST_BLINKS).all()
        in_pauses += 62 in began
        others |= set(began.tolist()) - {62}
    assert in_pauses > 20  # but where a blink has just been
    assert len(others) > 20 and min(others) >= BLINK_WITHIN[0]  # not at the start


def test_some_blinks_are_long_and_some_shallow() -> None:
    pauses = np.zeros(40, bool)
    pauses[5:30] = True
    all_blinks = np.stack([make_motion(40, 0.2, s, pauses=pauses).blink for s in range(80)])
    deepest, length = all_blinks.max(1), (all_blinks[:, :20] > 0).sum(1)
    assert SHALLOWEST_BLINK <= deepest.min() < 0.75 < 0.95 < deepest.max() <= 1
    assert length.min() == len(BLINK) and length.max() > len(BLINK) + 5
    assert 0.5 < (length == len(BLINK)).mean() < 1


def test_some_heads_roam_sideways_or_up_and_down() -> None:
    reach = np.array([np.ptp(make_motion(75, 0.2, seed).shift, axis=0) for seed in range(80)])
    far = reach > [0.08, 0.06]
    assert 0.1 < far.any(1).mean() < 0.5
    assert far[:, 0].any() and far[:, 1].any() and (far[:, 0] != far[:, 1]).any()


def test_speech_pauses_where_its_sound_is_quiet() -> None:
    loudness = np.repeat([0.001, 0.5, 0.3, 0.002], 10 * 640)
    sound = np.random.default_rng(0).normal(size=40 * 640) * loudness
    quiet = quiet_frames(sound.astype(np.float32))
    assert quiet[:8].all() and quiet[32:].all()
    assert not quiet[9:31].any()


def test_synthesised_speech_has_quiet_around_it_where_the_mouth_is_shut() -> None:
    moves, sound = np.ones((20, NUM_POINTS, 3), np.float32), np.ones(20 * 640, np.float32)
    lengths = set()
    for seed in range(8):
        driver, heard = with_quiet_ends(Driver(moves=moves), sound, seed)
        assert len(heard) == driver.num_frames * 640
        loud = heard.reshape(-1, 640).all(1)
        assert loud.sum() == 20 and (driver.moves.all((1, 2)) == loud).all()
        assert 10 <= np.argmax(loud[::-1]) <= 35
        lengths.add(len(loud))
    assert len(lengths) > 3


def test_some_sounds_are_recorded_with_music_or_noise() -> None:
    sound = np.random.default_rng(0).normal(size=16000).astype(np.float32)
    heard = [as_recorded(sound, seed) for seed in range(40)]
    assert 8 < sum(np.array_equal(each, sound) for each in heard) < 25
    for each in heard:  # what is added is never louder than the voice
        assert np.square(each - sound).mean() < 1.01 * np.square(sound).mean()
    assert np.array_equal(heard[0], as_recorded(sound, 0))


def test_an_unmoved_puppet_is_its_still(as_found: Still) -> None:
    frame = render(as_found, make_pose(as_found, zeros(1), rest(1)), np.zeros(1))[0].numpy()
    difference = np.abs(frame.astype(int) - as_found.picture).max(-1)
    mouth = as_found.points[INNER_UPPER_LIP + INNER_LOWER_LIP, :2]
    (x0, y0), (x1, y1) = mouth.min(0).astype(int) - 8, mouth.max(0).astype(int) + 9
    difference[y0:y1, x0:x1] = 0
    assert difference.max() <= 1


def test_labels_of_an_unmoved_puppet_are_the_stills_points(as_found: Still) -> None:
    labels = exact_labels(as_found, make_pose(as_found, zeros(2), rest(2)))
    assert np.allclose(labels.landmarks[0, :, :2], as_found.points[:, :2], atol=1e-3)
    assert np.allclose(labels.poses[0, :3, :3], as_found.rotation, atol=1e-5)
    assert (labels.rotation == 0).all()


def test_a_shut_mouth_is_shut_and_an_open_one_as_open_as_its_label(
    still: Still, chatter: Driver
) -> None:
    labels = exact_labels(still, make_pose(still, chatter.moves, rest(24)))
    assert labels.opening[0] < 0.02
    assert labels.opening[6] > 0.25
    assert labels.opening[6] == pytest.approx(float(lip_opening(labels.landmarks[6])), rel=0.1)


def test_lips_never_pass_through_each_other(still: Still, chatter: Driver) -> None:
    pose = make_pose(still, -chatter.moves, rest(24))
    gap = pose.mesh[:, INNER_LOWER_LIP] - pose.mesh[:, INNER_UPPER_LIP]
    down = still.rotation[:, 1]
    assert (gap @ down).min() > -0.01


def test_an_open_mouth_is_filled_and_nothing_else_changes(still: Still, chatter: Driver) -> None:
    frames = render(still, make_pose(still, chatter.moves[[0, 6]], rest(2)), np.zeros(2)).numpy()
    points = make_pose(still, chatter.moves[[6]], rest(1)).mesh[0]
    x, y = points[[13, 14], :2].mean(0).astype(int)
    assert np.abs(frames[1, y, x].astype(int) - frames[0, y, x]).max() > 30
    forehead = slice(0, int(points[NOSE_BASE, 1]) - 40)
    assert np.abs(frames[1, forehead].astype(int) - frames[0, forehead]).max() <= 3


def test_mediapipe_sees_the_rotation_opening_and_points_of_the_labels(
    still: Still, chatter: Driver
) -> None:
    turns = np.array([[0, 0, 0], [9, 0, 0], [0, 6, 0], [0, 0, 10]], np.float32)
    motion = dataclasses.replace(rest(4), turns=turns)
    pose = make_pose(still, chatter.moves[[0, 0, 0, 3]], motion)
    frames, labels = render(still, pose, motion.blink).numpy(), exact_labels(still, pose)
    with FaceFinder() as finder:
        faces = [finder.find_in_frame(frame)[0] for frame in frames]
    for k, face in enumerate(faces):
        away = np.linalg.norm(face.landmarks[:, :2] - labels.landmarks[k, :, :2], axis=1)
        assert away.mean() < 2.5
        assert float(lip_opening(face.landmarks)) == pytest.approx(labels.opening[k], abs=0.1)
        relative = labels.poses[k, :3, :3].T @ face.rotation
        assert math.degrees(math.acos(min(1, (np.trace(relative) - 1) / 2))) < 4


def test_blinking_covers_the_iris_and_moves_the_lids_points(still: Still) -> None:
    motion = dataclasses.replace(rest(2), blink=np.array([0, 1], np.float32))
    pose = make_pose(still, zeros(2), motion)
    frames = render(still, pose, motion.blink).numpy().astype(int)
    x, y = still.points[LEFT_IRIS[0], :2].astype(int)
    assert np.abs(frames[1] - frames[0])[y - 1 : y + 2, x - 1 : x + 2].mean() > 15
    upper, lower = LEFT_EYE
    assert np.allclose(pose.landmarks[1, upper], pose.landmarks[1, lower])
    mouth = slice(int(still.points[NOSE_BASE, 1]), None)
    assert (frames[1, mouth] == frames[0, mouth]).all()


def test_eyes_hold_on_to_the_camera_while_the_head_turns(still: Still) -> None:
    yaw = np.array([[-8, 0, 0], [8, 0, 0]], np.float32)
    pose = make_pose(still, zeros(2), dataclasses.replace(rest(2), turns=yaw))
    nose = pose.mesh[:, 1, 0] - pose.mesh[:, [33, 263], 0].mean(1)
    turned, looked = nose[1] - nose[0], pose.gaze[1, 0] - pose.gaze[0, 0]
    assert turned * looked < 0  # the iris moves against the nose


def test_frames_do_not_depend_on_the_batch(still: Still, chatter: Driver) -> None:
    motion = make_motion(5, 1.0, seed=2)
    pose = make_pose(still, chatter.moves[3:8], motion)
    together, apart = (render(still, pose, motion.blink, batch=batch) for batch in (5, 1))
    assert (together.int() - apart.int()).abs().max() <= 1


def test_a_clip_is_a_function_of_its_plan(still: Still, chatter: Driver) -> None:
    driver = Driver(moves=chatter.moves[:4])
    first, same, other = (make_clip(still, driver, make_plan(1, index)) for index in (0, 0, 1))
    assert (first.frames == same.frames).all()
    assert (first.labels.landmarks == same.labels.landmarks).all()
    assert not (first.frames == other.frames).all()


def test_512_pixels_show_the_same_as_256(portrait: Path, still: Still, chatter: Driver) -> None:
    picture = read_picture(portrait)
    with FaceFinder() as finder:
        large = make_still(picture, finder, 2 * SIZE)
    assert large is not None
    motion = dataclasses.replace(rest(1), turns=np.array([[6, 3, 2]], np.float32))
    small_frame, large_frame = (
        render(s, make_pose(s, chatter.moves[[4]], motion), motion.blink)[0].numpy()
        for s in (still, large)
    )
    reduced = Image.fromarray(large_frame).resize((SIZE, SIZE), Image.Resampling.BOX)
    assert np.abs(np.asarray(reduced).astype(int) - small_frame).mean() < 3


@pytest.mark.gpu
def test_the_gpu_draws_what_the_cpu_draws(still: Still, chatter: Driver) -> None:
    motion = make_motion(6, 1.0, seed=3)
    pose = make_pose(still, chatter.moves[3:9], motion)
    here, there = (render(still, pose, motion.blink, device=d).cpu() for d in ("cpu", "cuda"))
    assert (here.int() - there.int()).abs().float().mean() < 0.1


def test_the_nearer_triangle_is_drawn_and_its_weights_give_the_place_back() -> None:
    points = torch.tensor([[[1, 1, 5], [30, 2, 5], [4, 28, 5], [0, 0, 9], [31, 0, 9], [31, 31, 9]]])
    points = points.float()
    triangles = torch.tensor([[0, 1, 2], [3, 4, 5]])
    number, weights = rasterise(points, triangles, 32)
    assert number[0, 8, 8] == 0 and number[0, 20, 28] == 1 and number[0, 30, 2] == -1
    assert number[0, 2, 20] == 0  # both lie there
    at = (weights[0, 8, 8, :, None] * points[0, triangles[0]]).sum(0)
    assert torch.allclose(at[:2], torch.tensor([8.5, 8.5]), atol=1e-4)


def test_a_driver_keeps_speech_and_loses_pose(still: Still, chatter: Driver) -> None:
    shape = still.shut + chatter.moves * mouth_scale(still.shut)
    turns = make_motion(24, 1.0, seed=8).rotations
    size = np.linspace(0.9, 1.1, 24)[:, None, None]
    tracked = size * (shape @ turns.transpose(0, 2, 1)) + np.array([100.0, 90.0, 0.0])
    driver = driver_of_points(tracked.astype(np.float32), turns[0])
    opened, wanted = (
        lip_opening((still.shut + m.moves * mouth_scale(still.shut))[..., :2])
        for m in (driver, chatter)
    )
    assert np.corrcoef(opened, wanted)[0, 1] > 0.98
    assert np.abs(driver.moves[:, [10, 168, 33]]).max() < 0.02


@pytest.fixture
def phones(tmp_path: Path) -> Path:
    path = tmp_path / "said.phones"
    path.write_text("pau:0.2 aa:0.4 b:0.5 aa:0.7 uw:0.9 pau:1.2\n")
    return path


def test_lips_meet_in_b_and_rest_in_silence(phones: Path) -> None:
    weights = visemes.mouth_weights(phones, 1.2)
    jaw = weights[:, visemes.CHANNELS.index("jaw")]
    pucker = weights[:, visemes.CHANNELS.index("pucker")]
    assert len(jaw) == 30
    assert jaw[7] > 0.25 and jaw[10:12].min() < 0.06 and jaw[14] > 0.25
    assert pucker.argmax() in range(19, 24)
    assert weights[0].max() < 0.02 and weights[-1].max() < 0.02


def test_every_phoneme_of_the_synthesis_has_a_mouth() -> None:
    assert set(visemes.VISEMES) == set(visemes.PHONEMES)


def test_face_shapes_of_shared_data_move_the_right_points(shared_data: Path) -> None:
    with FaceFinder() as finder:
        shapes = read_face_shapes(shared_data / "ict_facekit_light.npz", finder)
    jaw = shapes.moves["jawOpen"][:, 1]
    assert jaw[CHIN] > 0.2 and jaw[INNER_LOWER_LIP[5]] > 0.2
    assert abs(jaw[INNER_UPPER_LIP[5]]) < 0.1 and abs(jaw[NOSE_BASE]) < 0.05
    pucker = shapes.moves["mouthPucker"][[61, 291], 0]
    assert pucker[0] > 0.02 and pucker[1] < -0.02  # the corners come together


def test_a_file_without_shapes_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "shapes.npz", neutral=np.zeros((3, 3)))
    with FaceFinder() as finder, pytest.raises(EmoError, match="holds no ICT-FaceKit shapes"):
        read_face_shapes(tmp_path / "shapes.npz", finder)


@pytest.fixture
def folders(tmp_path: Path, portrait: Path, still: Still, chatter: Driver) -> Path:
    """Two portraits, one picture without a face, and a clip of someone who talks."""
    stills, clips = tmp_path / "stills", tmp_path / "clips"
    stills.mkdir()
    clips.mkdir()
    picture = Image.fromarray(read_picture(portrait))
    picture.resize((512, 512 * picture.height // picture.width)).save(stills / "anna.png")
    Image.new("RGB", (300, 300), "grey").save(stills / "wall.png")
    pose = make_pose(still, chatter.moves, rest(24))
    (clips / "talk.mp4").write_bytes(encode_frames(render(still, pose, np.zeros(24)).numpy()))
    return tmp_path


def test_prepare_writes_puppets_that_training_reads(folders: Path) -> None:
    out = folders / "dataset"
    command = ["train", "prepare", "--stills", str(folders / "stills")]
    command += ["--drivers", str(folders / "clips"), "--out", str(out)]
    command += ["--size", "256", "--count", "2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "no face that looks at the camera" in result.output + result.stderr
    split = "val" if is_held_out(folders / "stills" / "anna.png") else "train"
    needs = Needs(motion_frames=4, clip_frames=12, window=2, size=256)
    dataset = ClipDataset(str(out), split=split, needs=needs)
    assert len(dataset) == 1
    sample = dataset[Draw(0, 1)]
    assert sample["frames"].shape == (16, 256, 256, 3)
    labels = dataset.all_labels(0)
    assert np.ptp(labels.opening) > 0.1
    puppets = Puppets(
        stills=(folders / "stills",),
        drivers=(folders / "clips",),
        shapes=None,
        out=out,
        count=2,
        size=256,
        seed=0,
    )
    assert missing_jobs(puppets) == []  # a wall stays a wall
    Image.new("RGB", (400, 300), "white").save(folders / "stills" / "wall.png")
    assert [job.still.name for job in missing_jobs(puppets)] == ["wall.png"]


def test_puppets_turn_their_heads_as_fast_as_asked(folders: Path) -> None:
    out = folders / "dataset"
    command = ["train", "prepare", "--stills", str(folders / "stills" / "anna.png")]
    command += ["--drivers", str(folders / "clips"), "--out", str(out), "--size", "256"]
    command += ["--count", "1"]
    result = CliRunner().invoke(app, [*command, "--rotation", "0.5"])
    assert result.exit_code == 0, result.output
    reader = ShardReader(str(out))
    labels = unpack_labels(reader.read(0, "npz"), 256, "x")
    assert labels.rotation[1:].mean() == pytest.approx(0.5, rel=0.02)
    assert json.loads(reader.read(0, "json"))["puppet"]["speed"] == 0.5
    for other in (["--rotation", "1"], [], ["--rotation", "1", "--dry-run"]):
        refused = CliRunner().invoke(app, [*command, *other])
        assert refused.exit_code == 1
        assert "rotation is 0.5, not" in str(refused.exception)


def test_a_chosen_rotation_changes_nothing_else_that_is_drawn() -> None:
    drawn, chosen = make_plan(3, 7), make_plan(3, 7, speed=1.25)
    assert drawn.speed != 1.25
    assert dataclasses.replace(drawn, speed=1.25) == chosen


class FragileFinder(MagentaFinder):
    """Dies of `DEADLY` pictures, and breaks on white ones."""

    def find(self, picture: np.ndarray) -> list[Face]:
        if picture.min() == 255:
            raise ValueError("too bright")
        return super().find(picture)


def test_puppets_that_break_or_kill_their_worker_stop_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stills = tmp_path / "stills"
    stills.mkdir()
    for name, colour in (("deadly", DEADLY), ("white", (255,) * 3), ("grey", (90,) * 3)):
        Image.new("RGB", (300, 300), colour).save(stills / f"{name}.png")
    (tmp_path / "talk.mp4").touch()
    puppets = Puppets(
        stills=(stills,), drivers=(tmp_path / "talk.mp4",), shapes=None, out=tmp_path / "out",
        count=3, size=256, seed=0, held_out_share=0,
    )  # fmt: skip
    said: list[str] = []
    assert write_puppets(puppets, workers=2, say=said.append, make_finder=FragileFinder) == 0
    outcome = {line.split("(")[1].split(",")[0]: line for line in said}
    assert outcome["deadly.png"].startswith("failed puppet-0-00000")
    assert outcome["deadly.png"].endswith("talk.mp4): its worker died (SIGKILL)")
    assert outcome["white.png"].endswith("ValueError: too bright")
    assert outcome["grey.png"].startswith("dropped")
    assert sorted(job.still.name for job in missing_jobs(puppets)) == ["deadly.png", "white.png"]
    monkeypatch.setenv("EMO_TEST_SURVIVE", "1")
    write_puppets(puppets, say=said.append, make_finder=FragileFinder)
    assert [job.still.name for job in missing_jobs(puppets)] == ["white.png"]


def test_a_held_out_still_speaks_with_a_held_out_driver(tmp_path: Path) -> None:
    for name in [f"p{i}.png" for i in range(60)] + [f"c{i}.mp4" for i in range(60)]:
        (tmp_path / name).touch()
    puppets = Puppets(
        stills=(tmp_path,), drivers=(tmp_path,), shapes=None, out=tmp_path / "out",
        count=120, size=256, seed=0,
    )  # fmt: skip
    jobs = plan_jobs(puppets)
    assert {job.split for job in jobs} == {"train", "val"}
    for job in jobs:
        assert is_held_out(job.still) == is_held_out(job.driver) == (job.split == "val")
    assert len({job.still for job in jobs[:60]}) == 60
    assert len({job.key for job in jobs}) == 120


def test_a_still_without_a_driver_on_its_side_is_left_out(tmp_path: Path) -> None:
    for name in [f"p{i}.png" for i in range(60)] + ["c.mp4"]:
        (tmp_path / name).touch()
    puppets = Puppets(
        stills=(tmp_path,), drivers=(tmp_path,), shapes=None, out=tmp_path / "out",
        count=60, size=256, seed=0, held_out_share=0.4,
    )  # fmt: skip
    side = is_held_out(tmp_path / "c.mp4", 0.4)
    jobs = plan_jobs(puppets)
    assert {is_held_out(job.still, 0.4) for job in jobs} == {side} and 10 < len(jobs) < 50
    nobody = plan_jobs(dataclasses.replace(puppets, held_out_share=0.0))
    assert len(nobody) == 60 and {job.split for job in nobody} == {"train"}
    kept = {job.key: job for job in nobody}
    assert all((job.still, job.plan) == (kept[job.key].still, kept[job.key].plan) for job in jobs)


def test_speech_without_shapes_and_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.png").touch()
    (tmp_path / "said.wav").touch()
    (tmp_path / "said.phones").touch()
    puppets = Puppets(
        stills=(tmp_path,), drivers=(tmp_path,), shapes=None, out=tmp_path / "out",
        count=1, size=256, seed=0,
    )  # fmt: skip
    with pytest.raises(EmoError, match="needs mouth shapes"):
        plan_jobs(puppets)
    with pytest.raises(EmoError, match="does not exist"):
        plan_jobs(dataclasses.replace(puppets, drivers=(tmp_path / "nowhere",)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmoError, match="holds no clip"):
        plan_jobs(dataclasses.replace(puppets, drivers=(tmp_path / "empty",)))


def test_rotation_matrices_turn_to_the_stated_side() -> None:
    yaw, pitch, roll = rotation_matrices(np.diag([10.0, 10.0, 10.0]))
    nose = np.array([0, 0, -1.0])
    assert (yaw @ nose)[0] < 0 and (pitch @ nose)[1] > 0
    assert (roll @ np.array([1.0, 0, 0]))[1] > 0
    assert DEPTH > 1
