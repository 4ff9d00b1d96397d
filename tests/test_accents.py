"""What in a sound a portrait underlines."""

import numpy as np
import pytest

from emo_cli.accents import BEAT, LEAST, NEXT, PEAK, accents


def test_some_of_the_syllables_that_stand_out_are_underlined():
    loud = np.full(3000, 0.01)
    spoken = np.arange(50, 2950, 50)
    loud[spoken] = 0.3
    loud[spoken + 25] = 0.05  # quiet beside the others
    found = accents(loud, 3, "nods")
    high = found[spoken]
    assert set(np.flatnonzero(found)) <= {f + i for f in spoken for i in range(-PEAK, len(BEAT))}
    raised = high[high > 0]
    assert 0.4 < len(raised) / len(spoken) < 0.8
    assert raised.min() >= LEAST and raised.max() <= 1
    for frame in spoken[high > 0]:
        around = found[frame - PEAK : frame - PEAK + len(BEAT)]
        assert around == pytest.approx(found[frame] * BEAT, abs=1e-6)
    assert not np.array_equal(accents(loud, 4, "nods"), found)
    assert not np.array_equal(accents(loud, 3, "brows"), found)


def test_syllables_close_to_one_another_are_not_all_underlined():
    loud = np.full(400, 0.01)
    loud[10::4] = 0.3
    found = accents(loud, 0, "nods")
    assert 0 < (np.diff(np.flatnonzero(np.diff(found, prepend=0) > 0.05)) > 3).sum() < 400 / NEXT
    assert found.max() <= 1


def test_a_hum_and_silence_have_none():
    assert not accents(np.full(500, 0.2), 1, "nods").any()
    assert not accents(np.zeros(500), 1, "nods").any()


def test_nothing_is_underlined_in_the_first_frame():
    for at in range(10):
        loud = np.full(50, 0.01)
        loud[at] = 0.3
        found = np.stack([accents(loud, seed, "nods") for seed in range(8)])
        assert not found[:, 0].any() and found.any() == (at > PEAK)


def test_a_longer_sound_begins_as_a_shorter_one():
    loud = np.random.default_rng(0).random(600)
    # A syllable is known by the frame behind it and announced by a few before it.
    assert np.array_equal(accents(loud[:301], 7, "nods")[:296], accents(loud, 7, "nods")[:296])
