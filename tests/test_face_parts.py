"""Where mouth and eyes are, when the eyes shut, and samples that are sought there."""

import dataclasses

import numpy as np
import pytest
import torch
from made_faces import made_labels
from made_video import SIZE, numbered_frames

from emo_cli.face_points import FACE_POINTS, eye_shape, lip_shape
from emo_cli.training.dataset import ClipDataset, Needs
from emo_cli.training.draws import Draw
from emo_cli.training.face_parts import (
    BLINK_WEIGHT,
    EYES,
    JAW,
    OUTER_LIPS,
    box_share,
    eye_shares,
    lids_shut,
    seen_most,
)
from emo_cli.training.precompute import add_latents
from emo_cli.training.samples import pack_sample
from emo_cli.training.shards import ShardWriter


def face(openings):
    """Landmarks [F, 478, 3] of eyes 20 px wide, so high in each frame, above a mouth."""
    landmarks = torch.zeros(len(openings), 478, 3)
    for middle, (outer, inner, upper, lower) in zip((40.0, 88.0), EYES, strict=True):
        landmarks[:, outer, :2] = torch.tensor([middle - 10, 48])
        landmarks[:, inner, :2] = torch.tensor([middle + 10, 48])
        half = torch.tensor(openings) / 2
        landmarks[:, upper, 0] = landmarks[:, lower, 0] = middle
        landmarks[:, upper, 1], landmarks[:, lower, 1] = 48 - half, 48 + half
    landmarks[:, OUTER_LIPS, 0] = torch.linspace(48, 80, len(OUTER_LIPS))
    landmarks[:, OUTER_LIPS, 1] = torch.linspace(92, 100, len(OUTER_LIPS))
    landmarks[:, JAW, 0] = torch.linspace(34, 94, len(JAW))
    landmarks[:, JAW, 1] = 90 + 20 * torch.linspace(-1, 1, len(JAW)).square().neg().add(1)
    return landmarks


def test_box_share_is_the_overlap_with_each_latent_pixel():
    share = box_share(torch.tensor([[4.0, 8.0, 20.0, 16.0]]), size=64, latent_size=8)[0]
    expected = torch.zeros(8, 8)
    expected[1, :3] = torch.tensor([0.5, 1.0, 0.5])
    torch.testing.assert_close(share, expected)


def test_lids_count_as_shut_beside_how_open_these_eyes_usually_are():
    steady = [8.0] * 13
    shut = lids_shut(face([*steady, 4.8, 0.5, 7.8]))
    torch.testing.assert_close(shut[13:], torch.tensor([0.5, 1.0, 0.0]))
    narrow = lids_shut(face([2.0, *[2.0] * 13, 1.2, 0.1]))
    torch.testing.assert_close(narrow[-2:], torch.tensor([0.5, 1.0]))
    assert not shut[:13].any() and not lids_shut(face([8.0])).any()


def test_a_blink_weighs_more_than_open_eyes_and_leaves_the_mouth_alone():
    openings = [8.0] * 16
    openings[10] = 0.0
    parts = seen_most(face(openings), clip_frames=12, size=128, latent_size=16)
    mouth, eyes = parts["mouth"], parts["eyes"]
    assert mouth.shape == eyes.shape == (12, 16, 16)
    blink, before = eyes[10 - 4], eyes[0]
    assert blink.max() == pytest.approx(BLINK_WEIGHT) and before.max() == 1
    at = torch.nonzero(before)
    assert at[:, 0].max() < 8 < torch.nonzero(mouth[0])[:, 0].min()  # rows: eyes above the mouth
    assert torch.equal(mouth[0], mouth[6])


def test_the_jaw_reaches_from_the_lips_to_below_the_chin_and_follows_it():
    landmarks = face([8.0] * 16)
    landmarks[10, JAW, 1] += 6  # the mouth opens
    jaw = seen_most(landmarks, clip_frames=12, size=128, latent_size=16)["jaw"]
    rows, columns = (torch.nonzero(jaw[0].amax(axis))[:, 0] for axis in (1, 0))
    assert (rows.min(), rows.max()) == (92 // 8, int(110 + 1.8) // 8)
    assert (columns.min(), columns.max()) == (int(34 - 1.8) // 8, int(94 + 1.8) // 8)
    assert jaw[0].max() == 1 and torch.nonzero(jaw[10 - 4].amax(1)).max() == rows.max() + 1


@pytest.fixture
def blinking(tmp_path):
    """A dataset of one clip of 80 frames whose eyes shut in frames 50 to 52."""
    openings = [8.0] * 80
    openings[50:53] = [0.0] * 3
    labels = dataclasses.replace(made_labels(80), landmarks=face(openings).numpy() / 2)
    about = {"size": SIZE, "fps": 25, "sample_rate_hz": 16_000}
    with ShardWriter(tmp_path / "set", about) as writer:
        sample = {"key": "a", "identity": "a", "split": "train", "sound": None, "source": {}}
        writer.add(pack_sample(frames=numbered_frames(0, 80), labels=labels, **sample))
    return tmp_path / "set"


def test_a_share_of_samples_is_sought_where_eyes_shut(blinking):
    def share(blinks):
        needs = Needs(motion_frames=4, clip_frames=12, window=2, size=SIZE, blinks=blinks)
        data = ClipDataset(str(blinking), split="train", needs=needs)
        samples = [data[Draw(0, seed)]["landmarks"] for seed in range(100)]
        assert {len(landmarks) for landmarks in samples} == {16}
        return sum(lids_shut(x).amax().item() > 0.5 for x in samples) / len(samples)

    rare = share(0.0)
    assert 0.1 < rare < 0.45  # 18 of 65 places
    assert share(0.5) == pytest.approx(0.5 + 0.5 * rare, abs=0.12)
    assert share(1.0) == 1


def test_a_sample_says_how_far_its_frames_eyes_are_shut_beside_the_whole_clip(blinking):
    needs = Needs(motion_frames=4, clip_frames=12, window=2, size=SIZE, blinks=1.0)
    data = ClipDataset(str(blinking), split="train", needs=needs)
    for seed in range(20):
        sample = data[Draw(0, seed)]
        heights = sample["landmarks"][4:, 145, 1] - sample["landmarks"][4:, 159, 1]
        assert torch.equal(sample["lids"], (heights < 1e-3).float())
    still = dataclasses.replace(needs, motion_frames=0, clip_frames=1, blinks=0.0)
    picture = ClipDataset(str(blinking), split="train", needs=still)
    lids = torch.cat([picture[Draw(0, seed)]["lids"] for seed in range(200)])
    assert 0 < lids.mean() < 0.2  # also where the only frame's eyes are shut


def test_a_sample_says_how_its_frames_lips_are_and_how_wide_the_clips_usually(blinking):
    needs = Needs(motion_frames=4, clip_frames=12, window=2, size=SIZE)
    data = ClipDataset(str(blinking), split="train", needs=needs)
    whole = lip_shape(data.all_labels(0).landmarks[:, FACE_POINTS])
    for seed in range(5):
        sample = data[Draw(0, seed)]
        assert np.array_equal(
            sample["lips"].numpy(), lip_shape(sample["landmarks"][4:, FACE_POINTS].numpy())
        )
        assert sample["lip_width"].item() == np.median(whole[:, 1])


def test_a_sample_says_how_its_frames_eyes_differ_from_the_references(blinking):
    needs = Needs(motion_frames=4, clip_frames=12, window=2, size=SIZE)
    data = ClipDataset(str(blinking), split="train", needs=needs)
    sample = data[Draw(0, 3)]
    points, still = sample["landmarks"][4:, FACE_POINTS], sample["reference_landmarks"][FACE_POINTS]
    told = eye_shape(points.numpy()) - eye_shape(still.numpy())
    assert np.array_equal(sample["brows"].numpy(), told[:, 0])
    assert np.array_equal(sample["gaze"].numpy(), told[:, 1:])


def test_held_lids_change_the_motion_frames_eyes_alone(blinking, small_model):
    latents = add_latents(blinking, small_model)

    def sample(held):
        needs = Needs(motion_frames=4, clip_frames=12, window=2, size=SIZE, latents=latents,
                      pictures=False, held_lids=held)  # fmt: skip
        return ClipDataset(str(blinking), split="train", needs=needs)[Draw(0, 1)]

    plain, held = sample(0.0), sample(1.0)
    changed = (plain["latents"] != held["latents"]).any(1)
    eyes = eye_shares(plain["landmarks"], SIZE, 8).amax(0) > 0
    assert changed[:4].any() and not changed[4:].any()
    assert not (changed[:4] & ~eyes[:4]).any()
    assert torch.equal(plain["reference_latents"], held["reference_latents"])
