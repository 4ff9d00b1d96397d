"""What a portrait does of its own accord."""

import dataclasses

import numpy as np

from emo_cli.accents import accents
from emo_cli.acting import act
from emo_cli.blinks import blinks
from emo_cli.eyes import brow_lifts, gaze
from emo_cli.portrait import prepare_portrait


def test_all_of_it_is_as_long_as_the_sound_and_of_one_seed(portrait):
    still = prepare_portrait(portrait, size=256, face=None, face_region="box")
    loud = np.random.default_rng(0).random(60)
    acting = act(still, loud, 5, 0.3)
    assert np.array_equal(acting.lids, blinks(60, 5))
    assert np.array_equal(acting.brows, brow_lifts(accents(loud, 5, "accents"), 5))
    assert np.array_equal(acting.gaze, gaze(acting.head.turns, 5)) and acting.gaze.any()
    part = acting.part(slice(12, 24))
    assert np.array_equal(part.gaze, acting.gaze[12:24])
    assert np.array_equal(part.head.shifts, acting.head.shifts[12:24])
    assert {len(values) for values in (part.lids, part.brows, *part.head)} == {12}
    faster = act(still, loud, 5, 1.0)
    assert np.ptp(faster.gaze[:, 0]) > np.ptp(acting.gaze[:, 0])
    quiet = act(still, np.zeros(60), 5, 0.3)
    assert not np.array_equal(quiet.head.turns, acting.head.turns)  # nods
    tall = dataclasses.replace(still, mask=np.ones_like(still.mask))
    assert not np.array_equal(act(tall, loud, 5, 0.3).head.shifts, acting.head.shifts)
