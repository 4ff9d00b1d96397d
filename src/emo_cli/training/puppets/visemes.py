"""The mouth of synthesised speech, exactly: phonemes with their times -> a driver.

Each phoneme wants a shape of the mouth and insists on it more or less; neighbours are mixed by
how near they are and how much they insist, so that lips meet in "b" whatever stands beside it.

Legend: `T` frames at 25 fps, `R` steps of RATE_HZ, `K` shapes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from emo_cli.training.puppets.driver import Driver
from emo_cli.training.puppets.ict import FaceShapes
from emo_cli.training.puppets.mesh import Array
from emo_cli.training.speech_synthesis import PHONEMES, phoneme_rows

FPS, RATE_HZ = 25, 200
SIGMA_S = 0.045  # how far in time a phoneme reaches
LEAD_S = 0.02  # lips move before they are heard
BOTH_SIDES = {
    "smile": "mouthSmile",
    "stretch": "mouthStretch",
    "upper": "mouthUpperUp",
    "lower": "mouthLowerDown",
    "press": "mouthPress",
    "dimple": "mouthDimple",
}
ONE = {
    "jaw": "jawOpen",
    "funnel": "mouthFunnel",
    "pucker": "mouthPucker",
    "roll_lower": "mouthRollLower",
    "roll_upper": "mouthRollUpper",
    "shrug": "mouthShrugLower",
}
# Phonemes: how much they insist, and the shapes they want.
_REST = (0.6, {"jaw": 0.0})
_LIPS_MEET = (6.0, {"jaw": 0.0, "press": 0.25, "roll_lower": 0.15, "roll_upper": 0.15})
_TEETH_ON_LIP = (4.0, {"jaw": 0.06, "roll_lower": 0.45, "upper": 0.2, "shrug": 0.2})
_HISS = (1.6, {"jaw": 0.05, "stretch": 0.2, "lower": 0.25, "smile": 0.1})
_HUSH = (2.0, {"jaw": 0.06, "funnel": 0.4, "pucker": 0.15, "lower": 0.1})
_TONGUE_UP = (0.5, {"jaw": 0.12, "lower": 0.1})
_TONGUE_OUT = (1.0, {"jaw": 0.14, "upper": 0.12, "lower": 0.1})
_BACK = (0.3, {"jaw": 0.16})
_ROUND = (2.5, {"jaw": 0.05, "pucker": 0.75, "funnel": 0.15})
VISEMES: dict[str, tuple[float, dict[str, float]]] = {
    "pau": _REST,
    **dict.fromkeys(("b", "m", "p"), _LIPS_MEET),
    **dict.fromkeys(("f", "v"), _TEETH_ON_LIP),
    **dict.fromkeys(("s", "z"), _HISS),
    **dict.fromkeys(("ch", "jh", "sh", "zh"), _HUSH),
    **dict.fromkeys(("d", "l", "n", "t"), _TONGUE_UP),
    **dict.fromkeys(("dh", "th"), _TONGUE_OUT),
    **dict.fromkeys(("g", "hh", "k", "ng"), _BACK),
    "w": _ROUND,
    "uw": (1.6, {"jaw": 0.09, "pucker": 0.6, "funnel": 0.25}),
    "uh": (1.0, {"jaw": 0.17, "funnel": 0.28}),
    "ow": (1.4, {"jaw": 0.24, "funnel": 0.33, "pucker": 0.3}),
    "ao": (1.4, {"jaw": 0.37, "funnel": 0.27}),
    "oy": (1.4, {"jaw": 0.33, "funnel": 0.28}),
    "aa": (1.4, {"jaw": 0.46, "upper": 0.08}),
    "aw": (1.4, {"jaw": 0.42, "funnel": 0.1, "upper": 0.05}),
    "ay": (1.4, {"jaw": 0.4, "stretch": 0.1, "upper": 0.1}),
    "ae": (1.4, {"jaw": 0.38, "stretch": 0.25, "upper": 0.15}),
    "ah": (1.1, {"jaw": 0.3, "upper": 0.06}),
    "ax": (0.6, {"jaw": 0.2}),
    "eh": (1.2, {"jaw": 0.29, "stretch": 0.12, "upper": 0.1}),
    "ey": (1.2, {"jaw": 0.28, "smile": 0.25}),
    "ih": (0.9, {"jaw": 0.2, "smile": 0.15}),
    "iy": (1.2, {"jaw": 0.12, "smile": 0.4, "stretch": 0.15, "lower": 0.2}),
    "y": (1.0, {"jaw": 0.1, "smile": 0.3}),
    "er": (1.0, {"jaw": 0.15, "funnel": 0.25}),
    "r": (1.0, {"jaw": 0.1, "funnel": 0.28}),
}
CHANNELS = (*BOTH_SIDES, *ONE)


def viseme_driver(shapes: FaceShapes, phones: Path, length_s: float, seed: int) -> Driver:
    """The driver of a sound of `length_s` whose phonemes `phones` lists, as speech_synthesis does.

    How widely and how smilingly one speaks is drawn by the seed. Raises: ValueError when `phones`
    is no such file.
    """
    rng = np.random.default_rng(seed)
    weights = mouth_weights(phones, length_s)
    habit = dict.fromkeys(CHANNELS, 1.0)
    habit |= {name: float(rng.uniform(0.75, 1.25)) for name in ("jaw", "funnel", "smile", "lower")}
    weights = weights * np.array([habit[name] for name in CHANNELS], np.float32)
    moves = np.tensordot(weights, np.stack([_moves(shapes, name) for name in CHANNELS]), 1)
    lopsided = rng.normal() * 0.05
    sideways = shapes.moves["jawLeft"] - shapes.moves["jawRight"]
    moves += weights[:, CHANNELS.index("jaw"), None, None] * lopsided * sideways
    return Driver(moves=moves.astype(np.float32))


def mouth_weights(phones: Path, length_s: float) -> Array:
    """[T, K], how much of each of CHANNELS there is in each frame; 0 in silence.

    Raises: ValueError when the file holds no phonemes.
    """
    steps = np.arange(int(length_s * RATE_HZ)) / RATE_HZ
    spoken = phoneme_rows(phones, steps, length_s)
    insists, wants = _table()
    centres = (np.arange(int(length_s * FPS)) + 0.5) / FPS + LEAD_S
    near = np.exp(-0.5 * ((centres[:, None] - steps[None]) / SIGMA_S) ** 2)  # [T, R]
    near *= insists[spoken]
    return (near @ wants[spoken] / near.sum(1, keepdims=True)).astype(np.float32)


def _table() -> tuple[Array, Array]:
    """Of every one of PHONEMES how much it insists [P] and what it wants [P, K]."""
    insists = np.array([VISEMES[name][0] for name in PHONEMES], np.float32)
    wants = [[VISEMES[name][1].get(channel, 0.0) for channel in CHANNELS] for name in PHONEMES]
    return insists, np.array(wants, np.float32)


def _moves(shapes: FaceShapes, channel: str) -> Array:
    if channel in ONE:
        return shapes.moves[ONE[channel]]
    name = BOTH_SIDES[channel]
    return shapes.moves[f"{name}_L"] + shapes.moves[f"{name}_R"]
