"""Where a told head goes, and the field by which it is told."""

import numpy as np
import pytest
import torch

from emo_cli.face_motion import rotation_between_frames, rotation_matrices
from emo_cli.head_flow import HeadMoves, head_flow, moved_pictures
from emo_cli.head_path import FARTHEST, head_path
from emo_cli.training.head_moves import head_moves
from emo_cli.training.puppets.mesh import DEPTH, EARS, NUM_POINTS

BOX, INSIDE = (70.0, 60.0, 190.0, 210.0), (64.0, 52.0, 196.0, 218.0)


def moves_of(turns=((0, 0, 0),), scale=1.0, shift=(0.0, 0.0)):
    count = len(turns)
    return HeadMoves(
        rotation_matrices(np.array(turns, float)), np.full(count, scale), np.tile(shift, (count, 1))
    )


def field_at(flow, x, y):
    """The first frame's field (x, y) at the latent pixel nearest to a place in pixels."""
    return flow[0, :, int(y // 8), int(x // 8)]


def test_a_longer_video_begins_as_a_shorter_one_of_the_same_seed():
    whole = head_path(np.zeros(3000), 7, 0.3, BOX, INSIDE)
    for longer, shorter in zip(whole, head_path(np.zeros(301), 7, 0.3, BOX, INSIDE), strict=True):
        assert np.array_equal(longer[:301], shorter)
    assert not np.array_equal(head_path(np.zeros(3000), 8, 0.3, BOX, INSIDE).turns, whole.turns)
    assert np.allclose(whole.turns[0], np.eye(3)) and not whole.shifts[0].any()


@pytest.mark.parametrize("speed", [0.1, 0.3, 0.6])
def test_a_path_has_the_speed_that_is_asked_for_and_keeps_within_bounds(speed):
    turns = head_path(np.zeros(6000), 0, speed, BOX, INSIDE).turns
    rotation = rotation_between_frames(turns)
    assert rotation[1:].mean() == pytest.approx(speed, rel=0.1)
    yaw = np.degrees(np.arctan2(turns[:, 0, 2], turns[:, 2, 2]))
    assert np.abs(yaw).max() <= FARTHEST[0] and rotation.max() < 5 * speed
    assert np.abs(np.diff(rotation[1:])).max() < speed  # no jumps


def test_no_speed_is_a_still_head():
    turns, scales, _ = head_path(np.zeros(50), 0, 0.0, BOX, INSIDE)
    assert np.allclose(turns, np.eye(3)) and (scales == 1).all()


def test_a_wide_region_is_for_sideways_and_a_tall_one_for_up_and_down():
    def travel(region):
        return np.ptp(head_path(np.zeros(3000), 0, 0.2, BOX, region).shifts, axis=0)

    box, wide, tall = travel(INSIDE), travel((10.0, 52.0, 250.0, 218.0)), travel((64, 15, 196, 255))
    height = BOX[3] - BOX[1]
    assert wide[0] > box[0] + 0.1 * height and wide[1] == pytest.approx(box[1])
    assert tall[1] > box[1] + 0.1 * height and tall[0] == pytest.approx(box[0])


def test_a_region_without_room_brings_no_sway():
    tight = head_path(np.zeros(3000), 0, 0.2, BOX, BOX)
    outside = head_path(np.zeros(3000), 0, 0.2, BOX, (80.0, 70.0, 180.0, 200.0))
    assert np.array_equal(tight.shifts, outside.shifts)  # what is left is the turn about the neck


def test_the_field_leads_back_to_the_portrait():
    shifted = head_flow(moves_of(shift=(16.0, -8.0)), BOX, 256, 32)
    assert shifted.shape == (1, 2, 32, 32) and shifted.dtype == np.float32
    assert field_at(shifted, 130, 135) == pytest.approx([-2, 1])  # in latent pixels
    assert not field_at(shifted, 4, 250).any()  # the surroundings rest
    grown = head_flow(moves_of(scale=1.25), BOX, 256, 32)
    assert field_at(grown, 180, 132)[0] == pytest.approx(-(180 - 130) * 0.2 / 8, abs=0.1)
    assert not head_flow(moves_of(), BOX, 256, 32).any()


def test_what_lies_nearest_moves_farthest_when_the_head_turns():
    flow = head_flow(moves_of([(10.0, 0, 0)]), BOX, 256, 32)  # yaw: the nose goes to the left
    nose, ear = field_at(flow, 130, 135), field_at(flow, 204, 135)
    assert nose[0] > 1 and abs(ear[0]) < nose[0] / 3 and abs(nose[1]) < 0.1
    rolled = head_flow(moves_of([(0, 0, 10.0)]), BOX, 256, 32)
    assert field_at(rolled, 185, 135)[1] < -0.5 < 0.5 < field_at(rolled, 75, 135)[1]


def test_landmarks_tell_the_moves_that_made_them():
    rng = np.random.default_rng(0)
    face = rng.uniform((70, 60, -60), (190, 210, 20), (NUM_POINTS, 3))
    turn = rotation_matrices(np.array([[6.0, -3.0, 4.0]]))[0]
    low, high = face.min(0), face.max(0)
    centre = np.append((low + high)[:2] / 2, face[list(EARS), 2].mean())
    turned = 1.1 * (face - centre) @ turn.T + centre + [5, -7, 0]
    flat = np.array([1, 1, 1 / DEPTH])
    moves, box = head_moves(np.stack([turned * flat] * 3), face * flat)
    assert np.allclose(moves.turns, turn, atol=1e-5) and np.allclose(moves.scales, 1.1, atol=1e-5)
    assert np.allclose(moves.shifts, [5, -7], atol=1e-3)
    assert np.allclose(box, [*low[:2], *high[:2]])


def test_pictures_are_fetched_from_where_the_field_points():
    pictures = torch.rand(2, 3, 32, 32)
    flow = torch.zeros(2, 3, 2, 8, 8)
    flow[:, 1, 0], flow[:, 1, 1] = 0.5, -0.25  # from two pixels to the right, one above
    flow[1, 2, 0] = 0.125  # half a pixel
    found = moved_pictures(pictures, flow).pictures
    assert found.shape == (2, 3, 3, 32, 32)
    assert torch.allclose(found[:, 0], pictures, atol=1e-5)
    assert torch.allclose(found[:, 1, :, 1:, :-2], pictures[:, :, :-1, 2:], atol=1e-5)
    assert torch.allclose(found[0, 2], pictures[0], atol=1e-5)
    assert not torch.allclose(found[1, 2], pictures[1], atol=0.1)
    assert found.min() >= pictures.min() and found.max() <= pictures.max()


def test_beyond_its_borders_a_picture_is_mirrored():
    """Hair that the picture cuts off: its last row, again and again, would be stripes."""
    pictures = torch.rand(1, 3, 32, 32)
    flow = torch.zeros(1, 1, 2, 8, 8)
    flow[:, :, 1] = -1  # from four pixels above
    found = moved_pictures(pictures, flow).pictures[0, 0]
    assert torch.allclose(found[:, 4:], pictures[0, :, :-4], atol=1e-5)
    assert torch.allclose(found[:, :4], pictures[0, :, :4].flip(1), atol=1e-5)


def test_a_larger_picture_is_moved_as_the_smaller_one_is():
    x = torch.linspace(0, 3, 128)
    larger = (x.sin() * (x[:, None] / 2).cos()).expand(1, 3, 128, 128)
    flow = torch.zeros(1, 5, 2, 8, 8)  # more frames than are moved at once
    flow[:, :, 0] = torch.linspace(0, 1, 5)[:, None, None]
    small, large = (
        moved_pictures(picture, flow).pictures
        for picture in (torch.nn.functional.avg_pool2d(larger, 4), larger)
    )
    assert large.shape == (1, 5, 3, 128, 128)
    again = torch.nn.functional.avg_pool2d(large.flatten(0, 1), 4).unflatten(0, (1, 5))
    inner = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(again[inner], small[inner], atol=0.01, rtol=0)
    assert (small[:, 4] - small[:, 0]).abs().max() > 0.2


def test_a_head_nods_with_what_is_said():
    nods = np.zeros(300)
    nods[100] = 1.0
    calm, faster = (
        [head_path(x, 0, speed, BOX, INSIDE).turns for x in (nods, 0 * nods)]
        for speed in (0.2, 1.0)
    )
    degrees = rotation_between(calm[1][100], calm[0][100])
    assert degrees == pytest.approx(1.8, abs=0.02)
    assert np.array_equal(np.delete(calm[0], 100, 0), np.delete(calm[1], 100, 0))
    chin = np.array([0.0, 1.0, 0.0])
    assert (calm[0][100] @ chin)[2] > (calm[1][100] @ chin)[2]  # it goes back: the head goes down
    assert rotation_between(faster[1][100], faster[0][100]) == pytest.approx(2.7, abs=0.03)


def rotation_between(one, other):
    return float(np.degrees(np.arccos((np.trace(one.T @ other) - 1) / 2)))
