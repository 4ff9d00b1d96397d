"""How a puppet's head moves: turns at a chosen speed, sways, breath, gaze and blinks.

Legend: `T` frames at 25 fps; degrees; lengths in shares of the face's height (forehead to chin).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emo_cli.blinks import BLINK
from emo_cli.eyes import glances
from emo_cli.face_motion import rotation_between_frames, rotation_matrices
from emo_cli.training.puppets.mesh import Array

# Beyond these a still betrays itself: yaw, pitch, roll in degrees.
FARTHEST = np.array([12.0, 8.0, 15.0])
USUAL = np.array([1.0, 0.9, 0.4])  # shares of FARTHEST: people seldom roll their heads far
SWAY = np.array([0.012, 0.008])  # standard deviation of the head's own shift, x and y
# Some heads roam sideways, up and down, or both: what a face region is for (EMO fig. 7).
ROAMING_SHARE = 0.35
ROAM = np.array([[0.07, 0.0], [0.0, 0.05], [0.06, 0.04]])  # standard deviations, x and y
BREATH = 0.006
# People blink where they pause (Nakano, Kitazawa 2010), and elsewhere.
PAUSE = 5  # frames of a pause at least
BLINK_AFTER = 2  # frames of it
CLOSEST_BLINKS = 20  # frames
BLINK_WITHIN = (20, 100)  # frames from one blink to the next where no pause brings it
LONG_BLINKS, LONGEST_BLINK = 0.15, 12  # share of those that stay shut, for so many frames at most
SHALLOWEST_BLINK = 0.7
GAZE_SPREAD = np.array([0.006, 0.003])  # standard deviation of where the eyes rest


@dataclass(frozen=True, kw_only=True)
class Motion:
    """All that moves a puppet but its speech.

    `turns` [T, 3] yaw, pitch, roll relative to the still; `shift` [T, 2] of the head; `breath`
    [T] lift of the shoulders; `gaze` [T, 2] of the irises, added to their hold on the camera;
    `blink` [T] 0 open .. 1 shut; `brows` [T] lift, 0 at rest.
    """

    turns: Array
    shift: Array
    breath: Array
    gaze: Array
    blink: Array
    brows: Array

    @functools.cached_property
    def rotations(self) -> Array:
        """[T, 3, 3], relative to the still."""
        return rotation_matrices(self.turns)

    @property
    def speed(self) -> Array:
        """True degrees of rotation from each frame to the next, [T - 1]."""
        return rotation_between_frames(self.rotations)[1:]


def rest(num_frames: int) -> Motion:
    """No motion at all: the still itself."""
    zeros = functools.partial(np.zeros, dtype=np.float32)
    return Motion(
        turns=zeros((num_frames, 3)),
        shift=zeros((num_frames, 2)),
        breath=zeros(num_frames),
        gaze=zeros((num_frames, 2)),
        blink=zeros(num_frames),
        brows=zeros(num_frames),
    )


def make_motion(
    num_frames: int,
    speed: float,
    seed: int,
    reach: float = 1.0,
    pauses: NDArray[np.bool_] | None = None,
) -> Motion:
    """A motion whose rotation is `speed` degrees a frame on the mean, a pure function of `seed`.

    speed 0..2; `reach` 0..1 shrinks the farthest turns, for stills that are turned already;
    `pauses` [T]: where the speech pauses, which brings blinks (None: nowhere).
    """
    pauses = np.zeros(num_frames, bool) if pauses is None else pauses
    rng = np.random.default_rng(seed)
    frames = np.arange(num_frames)
    breath_s, phase = rng.uniform(2.8, 4.5), rng.random()
    breath = BREATH * np.sin(2 * np.pi * (frames / (25 * breath_s) + phase))
    turns = _walk(num_frames, speed, reach, rng)
    spread = SWAY * rng.uniform(0.4, 1.2)
    if rng.random() < ROAMING_SHARE:
        spread = spread + ROAM[rng.integers(len(ROAM))]
    sway = spread * np.stack([_drift(num_frames, 30, rng) for _ in "xy"], 1)
    return Motion(
        turns=turns.astype(np.float32),
        # The head rides a little on the breath.
        shift=(sway - 0.3 * breath[:, None] * [0, 1]).astype(np.float32),
        breath=breath.astype(np.float32),
        gaze=(GAZE_SPREAD * glances(num_frames, rng)).astype(np.float32),
        blink=_blinks(pauses, rng),
        brows=(0.012 * rng.random() * _drift(num_frames, 10, rng)).astype(np.float32),
    )


def _walk(
    num_frames: int, speed: float, reach: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A closed random curve of turns, walked so that the mean rotation is `speed` exactly."""
    curve = _curve(rng) * FARTHEST * USUAL * reach * min(1.0, 0.3 + 0.7 * speed)
    lengths = np.cumsum(rotation_between_frames(rotation_matrices(curve)).astype(np.float64))
    lengths -= lengths[0]
    place = np.arange(num_frames)
    swing, period = rng.uniform(0.1, 0.6), rng.uniform(20, 45)
    pace = 1 + swing * np.sin(2 * np.pi * (place / period + rng.random()))
    steps = np.concatenate([[0.0], np.cumsum(pace[1:] / pace[1:].mean())])
    start, stride = rng.random() * lengths[-1], speed
    turns = curve[:1].repeat(num_frames, 0)
    for _ in range(25):  # a step cuts corners of the curve: lengthen it until the mean is met
        walked = (start + steps * stride) % lengths[-1]
        turns = np.stack([np.interp(walked, lengths, axis) for axis in curve.T], 1)
        if num_frames < 2 or speed == 0:
            break
        stride *= speed / max(rotation_between_frames(rotation_matrices(turns))[1:].mean(), 1e-9)
    return turns


def _curve(rng: np.random.Generator) -> NDArray[np.float64]:
    """[4096, 3], closed and smooth, each axis within -1..1."""
    around = np.linspace(0, 1, 4096)[:, None]
    waves = [
        np.sin(2 * np.pi * (k * around + rng.random(3))) * rng.normal(size=3) / k for k in (1, 2, 3)
    ]
    curve = np.sum(waves, axis=0)
    return curve / np.abs(curve).max(0) * rng.uniform(0.4, 1.0, 3)


def _drift(num_frames: int, sigma: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Smooth noise of mean 0 and standard deviation about 1; sigma in frames."""
    reach = int(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    noise = rng.normal(size=num_frames + 2 * reach)
    return np.convolve(noise, kernel / np.sqrt((kernel**2).sum()), "valid")


def _blinks(pauses: NDArray[np.bool_], rng: np.random.Generator) -> Array:
    """Blinks [T]: one a little after each pause of speech begins, others anywhere."""
    num_frames = len(pauses)
    blink = np.zeros(num_frames + LONGEST_BLINK + len(BLINK), np.float32)
    next_allowed, next_anywhere = 0, int(rng.integers(*BLINK_WITHIN))
    for frame in range(num_frames):
        if frame < next_allowed or not (frame == next_anywhere or _paused(pauses, frame)):
            continue
        held = int(rng.integers(LONGEST_BLINK)) if rng.random() < LONG_BLINKS else 0
        shape = np.insert(BLINK, 2, np.ones(held, np.float32))
        shape = shape * np.float32(rng.uniform(SHALLOWEST_BLINK, 1.0))
        blink[frame : frame + len(shape)] = shape
        next_allowed = frame + held + CLOSEST_BLINKS
        next_anywhere = next_allowed + int(rng.integers(*BLINK_WITHIN)) - BLINK_WITHIN[0]
    return blink[:num_frames]


def _paused(pauses: NDArray[np.bool_], frame: int) -> bool:
    """Whether a pause, long enough, began `BLINK_AFTER` frames before; not where a clip begins."""
    begin = frame - BLINK_AFTER
    if begin < 1 or pauses[begin - 1]:
        return False
    rest = pauses[begin : begin + PAUSE]
    return len(rest) == PAUSE and bool(rest.all())
