"""Where a portrait's eyes look and when its brows rise."""

import numpy as np
import pytest

from emo_cli import eyes
from emo_cli.eyes import EYE_RADIUS, FARTHEST_GAZE, HIGHEST_BROWS, brow_lifts, gaze
from emo_cli.face_motion import rotation_matrices
from emo_cli.head_path import head_path

BOX, INSIDE = (80.0, 70.0, 180.0, 200.0), (60.0, 50.0, 200.0, 220.0)


def test_eyes_hold_on_to_the_camera_while_the_head_turns(monkeypatch):
    monkeypatch.setattr(eyes, "GLANCES", np.zeros(2))
    monkeypatch.setattr(eyes, "LIDS_REST", 1.0)
    turns = rotation_matrices(np.array([[0, 0, 0], [12, 0, 0], [-9, 5, 0], [8, -6, 5.0]]))
    moved = gaze(turns, 0) / EYE_RADIUS
    assert not moved[0].any() and moved[1, 0] != 0
    ahead = np.concatenate([moved, -np.sqrt(1 - (moved**2).sum(1, keepdims=True))], 1)
    seen = np.einsum("tij,tj->ti", turns, ahead)  # where the eyes look when the head has turned
    assert seen == pytest.approx(np.tile([0, 0, -1], (4, 1)), abs=1e-6)


def test_eyes_go_no_farther_than_a_face_shows_them():
    away = gaze(rotation_matrices(np.array([[0, 0, 0], [60, 0, 0], [0, 50, 0.0]])), 0)
    assert np.linalg.norm(away, axis=1).max() <= FARTHEST_GAZE * EYE_RADIUS + 1e-6
    assert abs(away[1, 0]) == pytest.approx(FARTHEST_GAZE * EYE_RADIUS, rel=0.1)


def test_eyes_rest_and_then_glance_aside():
    still = np.tile(np.eye(3), (3000, 1, 1))
    away = gaze(still, 0)
    jumps = (np.abs(np.diff(away, axis=0)).max(1) > 0).sum()
    assert 3000 / 50 < jumps < 3000 / 6  # each takes two frames
    assert away.std(0) == pytest.approx(eyes.GLANCES * [1, eyes.LIDS_REST], rel=0.35)
    assert not away[0].any()


def test_a_longer_video_begins_as_a_shorter_one_of_the_same_seed():
    turns = head_path(np.zeros(600), 7, 0.3, BOX, INSIDE).turns
    assert np.array_equal(gaze(turns[:301], 7), gaze(turns, 7)[:301])
    assert not np.array_equal(gaze(turns, 8), gaze(turns, 7))
    raised = np.random.default_rng(0).random(600)
    assert np.array_equal(brow_lifts(raised[:301], 7), brow_lifts(raised, 7)[:301])
    assert not np.array_equal(brow_lifts(raised, 8), brow_lifts(raised, 7))


def test_brows_sway_and_rise_with_accents():
    raised = np.zeros(3000)
    raised[100] = 0.5
    lifts, sway = brow_lifts(raised, 3), brow_lifts(np.zeros(3000), 3)
    assert 0.003 < sway.std() < 0.015 and np.abs(np.diff(sway)).max() < 0.002
    assert sway[0] == 0
    assert lifts - sway == pytest.approx(HIGHEST_BROWS * raised, abs=1e-6)
