"""What is heard of a puppet: where its speech pauses, quiet around it, music and noise beside it.

Legend: `T` frames at 25 fps; sound is float32 at 16 kHz, [T * 640].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emo_cli.raw_video import FPS
from emo_cli.sound import SAMPLE_RATE_HZ
from emo_cli.training.audio_noise import mixed, music, noise
from emo_cli.training.puppets.driver import Driver
from emo_cli.training.puppets.mesh import Array, smooth_over_time

SAMPLES = SAMPLE_RATE_HZ // FPS  # of sound in a frame
QUIET_SIGMA = 1.0  # frames
QUIET_BEFORE, QUIET_AFTER = (0, 10), (10, 35)  # frames
MUSIC_SHARE, MUSIC_DB = 0.25, (0.0, 15.0)
NOISE_SHARE, NOISE_DB = 0.35, (5.0, 35.0)


def quiet_frames(sound: Array) -> NDArray[np.bool_]:
    """Where speech pauses, [T]: 20 dB below its loud frames, or less."""
    power = np.square(sound[: len(sound) // SAMPLES * SAMPLES].reshape(-1, SAMPLES)).mean(1)
    power = smooth_over_time(power, QUIET_SIGMA)
    return np.asarray(power < 0.01 * np.quantile(power, 0.9))


def with_quiet_ends(driver: Driver, sound: Array, seed: int) -> tuple[Driver, Array]:
    """Motion and sound with up to 0.4 s of rest before and 0.4 to 1.4 s after.

    Synthesised speech ends with its last word; people go on being there.
    """
    rng = np.random.default_rng(seed)
    ends = [int(rng.integers(low, high + 1)) for low, high in (QUIET_BEFORE, QUIET_AFTER)]
    moves = np.pad(driver.moves, [ends, (0, 0), (0, 0)])
    return Driver(moves=moves), np.pad(sound, [end * SAMPLES for end in ends])


def as_recorded(sound: Array, seed: int) -> Array:
    """A quarter of the sounds with music, as singers are heard, a third with noise."""
    rng = np.random.default_rng(seed)
    kind = rng.random()
    if kind < MUSIC_SHARE:
        return mixed(sound, music(len(sound), rng), rng.uniform(*MUSIC_DB))
    if kind < MUSIC_SHARE + NOISE_SHARE:
        return mixed(sound, noise(len(sound), rng), rng.uniform(*NOISE_DB))
    return sound
