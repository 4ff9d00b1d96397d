"""Mirror, light, crop, and reference frames by their mouth."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from made_faces import made_labels

from emo_cli import cli
from emo_cli.training.dataset import ClipDataset, Needs
from emo_cli.training.draws import Draw
from emo_cli.training.samples import Labels, pack_sample
from emo_cli.training.shards import ShardWriter
from emo_cli.training.variation import (
    Variation,
    another_frame,
    draw_look,
    frame_by_mouth,
    vary_frames,
    vary_labels,
)

FRAMES, SIZE = 30, 128
NEEDS = Needs(motion_frames=4, clip_frames=12, window=2, size=SIZE)
DOT = 40  # pixels, of the square that stands for a face


def dot_frames() -> np.ndarray:
    """A bright square that moves right and down, over a darker ramp."""
    ramp = np.linspace(40, 90, SIZE)[None, :, None]
    frames = np.repeat(np.broadcast_to(ramp, (SIZE, SIZE, 3))[None], FRAMES, 0).copy()
    for number, frame in enumerate(frames):
        x, y = place(number)
        frame[y : y + DOT, x : x + DOT] = 220
    return frames.astype(np.uint8)


def place(number: int) -> tuple[int, int]:
    return 40 + number, 50 + number // 2


def dot_labels() -> Labels:
    corners = np.array([place(number) for number in range(FRAMES)], np.float32)
    boxes = np.concatenate([corners, corners + DOT], 1)
    landmarks = np.zeros((FRAMES, 478, 3), np.float32)
    landmarks[..., :2] = corners[:, None] + DOT / 2
    return dataclasses.replace(made_labels(FRAMES), boxes=boxes, landmarks=landmarks)


def seen_box(frame: np.ndarray) -> list[float]:
    """Where the bright square lies, x0, y0, x1, y1."""
    grey = frame.astype(float).mean(-1)
    bright = grey > (grey.max() + np.median(grey)) / 2
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "set"
    with ShardWriter(folder, {"size": SIZE, "fps": 25}) as writer:
        sample = pack_sample(
            key="a-1",
            identity="a",
            split="train",
            frames=dot_frames(),
            labels=dot_labels(),
            sound=None,
            source={},
        )
        writer.add(sample)
    return folder


def opened(folder: Path, **variation: bool) -> ClipDataset:
    return ClipDataset(str(folder), split="train", needs=NEEDS, variation=Variation(**variation))


@pytest.mark.parametrize("seed", range(8))
def test_labels_follow_the_picture_through_mirror_and_crop(seed: int) -> None:
    look = draw_look(seed)
    frames, labels = vary_frames(dot_frames()[:3], look), vary_labels(dot_labels(), SIZE, look)
    for frame, box, points in zip(frames, labels.boxes, labels.landmarks, strict=False):
        assert seen_box(frame) == pytest.approx(box.tolist(), abs=1.5)
        middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
        assert points[7, :2] == pytest.approx(np.array(middle), abs=1e-3)


def test_looks_mirror_half_of_the_samples_and_change_light_and_colour() -> None:
    looks = [draw_look(seed) for seed in range(200)]
    assert 70 < sum(look.mirror for look in looks) < 130
    grey = np.full((1, SIZE, SIZE, 3), 128, np.uint8)
    means = np.array([vary_frames(grey, look).mean((0, 1, 2)) for look in looks[:40]])
    assert means.mean(1).std() > 5 and (means - means.mean(1, keepdims=True)).std() > 3
    sides = np.array([look.side for look in looks])
    assert sides.min() < 0.95 and sides.max() > 1.05


def test_a_mirrored_head_turns_as_fast_the_other_way() -> None:
    angle = 0.2
    turn = np.eye(4, dtype=np.float32)
    turn[0, 0], turn[0, 2], turn[2, 0], turn[2, 2] = np.cos(angle), np.sin(angle), -np.sin(
        angle), np.cos(angle)  # fmt: skip
    labels = dataclasses.replace(dot_labels(), poses=np.stack([turn] * FRAMES))
    look = next(look for look in map(draw_look, range(99)) if look.mirror)
    mirrored = vary_labels(labels, SIZE, look)
    assert mirrored.poses[0] == pytest.approx(np.linalg.inv(turn), abs=1e-6)
    assert np.array_equal(mirrored.rotation, labels.rotation)


def test_samples_vary_alike_in_all_pictures_and_only_with_their_draw(dataset: Path) -> None:
    varied, plain = opened(dataset, looks=True), opened(dataset)
    sample, again = varied[Draw(0, 5)], varied[Draw(0, 5)]
    assert all(torch.equal(sample[name], again[name]) for name in sample)
    untouched = plain[Draw(0, 5)]
    assert not torch.equal(sample["frames"], untouched["frames"])
    assert torch.equal(sample["rotation"], untouched["rotation"])
    for frame, box in zip(sample["frames"].numpy(), sample["boxes"].numpy(), strict=True):
        assert seen_box(frame) == pytest.approx(box.tolist(), abs=2)
    points = sample["reference_landmarks"].numpy()[0, :2]
    x0, y0, x1, y1 = seen_box(sample["reference"].numpy())
    assert points == pytest.approx(np.array([(x0 + x1) / 2, (y0 + y1) / 2]), abs=2)
    inside = sample["mask"].numpy() > 0
    x0, y0, x1, y1 = sample["boxes"].numpy()[8].astype(int)
    assert inside[y0:y1, x0:x1].all() and not inside.all()


def test_without_variation_draws_are_what_they_were(dataset: Path) -> None:
    """Runs that began before there was any resume: same frames, same digest."""
    plain = ClipDataset(str(dataset), split="train", needs=NEEDS)
    assert plain.digest == opened(dataset, looks=True).digest
    rng = np.random.default_rng(3)
    assert [another_frame(rng, 30, 7, 16) for _ in range(4)] == [27, 1, 2, 3]


def test_references_are_shut_open_and_wide_in_equal_shares() -> None:
    rng = np.random.default_rng(0)
    opening, width = rng.permutation(90) / 90, rng.permutation(90) / 90
    landmarks = np.zeros((90, 478, 3), np.float32)
    landmarks[:, 291, 0] = 20 * width
    labels = Labels(
        boxes=np.tile(np.array([[0.0, 0, 40, 40]], np.float32), (90, 1)),
        poses=np.tile(np.eye(4, dtype=np.float32), (90, 1, 1)),
        rotation=np.zeros(90, np.float32),
        landmarks=landmarks,
        opening=opening,
    )
    chosen = [frame_by_mouth(labels, 40, 16, seed) for seed in range(600)]
    assert not set(chosen) & set(range(40, 56))
    shut, wide_open = np.quantile(opening, 0.36), np.quantile(opening, 0.64)
    grin = np.quantile(width, 0.64)
    shares = [np.mean(opening[chosen] <= shut), np.mean(opening[chosen] >= wide_open),
              np.mean(width[chosen] >= grin)]  # fmt: skip
    assert all(0.38 < share < 0.65 for share in shares)  # a third, and what the others bring
    assert frame_by_mouth(labels, 0, 90, 0) is None


def test_augment_and_window_exclude_each_other(tmp_path: Path, capsys) -> None:
    command = ["train", "video", "--data", "x", "--init", "y", "--out", str(tmp_path / "run")]
    assert cli.run([*command, "--augment", "--window", "16"]) == 2
    assert "--augment varies pictures" in capsys.readouterr().err
