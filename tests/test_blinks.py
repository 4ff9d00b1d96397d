"""When a portrait blinks."""

import numpy as np

from emo_cli.blinks import APART, BLINK, FIRST, blinks


def begins(lids):
    """Where eyes that were open begin to shut."""
    return np.flatnonzero((lids[1:] > 0) & (lids[:-1] == 0)) + 1


def test_a_longer_video_begins_as_a_shorter_one_of_the_same_seed():
    whole = blinks(3000, 7)
    assert np.array_equal(blinks(301, 7), whole[:301])
    assert not np.array_equal(blinks(3000, 8), whole)
    assert not np.array_equal(blinks(3000, -7), whole)


def test_eyes_shut_and_open_whole_ten_to_thirty_times_a_minute():
    lids = blinks(15_000, 0)
    times = begins(lids)
    assert 10 < len(times) / 10 < 30
    gaps = np.diff(times)
    assert APART[0] <= gaps.min() and gaps.max() < APART[1]
    assert FIRST[0] <= times[0] < FIRST[1]
    assert all(np.array_equal(lids[at : at + len(BLINK)], BLINK) for at in times[:-1])
