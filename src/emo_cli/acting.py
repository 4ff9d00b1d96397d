"""What a portrait does beside its lips while it speaks: blinks, glances, turns of the head.

Shapes: T frames of a video at 25 fps. "Of the eyes": in distances of the eyes' outer corners.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emo_cli.accents import accents
from emo_cli.blinks import blinks
from emo_cli.eyes import brow_lifts, gaze
from emo_cli.head_flow import HeadMoves
from emo_cli.head_path import head_path
from emo_cli.portrait import Portrait, mask_box


class Acting(NamedTuple):
    """Told to models that are told (`UNetConfig.told_lids`, `told_head`, `told_lips`)."""

    lids: NDArray[np.float32]  # [T], 0 open .. 1 shut
    brows: NDArray[np.float32]  # [T], how far they rise, of the eyes
    gaze: NDArray[np.float32]  # [T, 2], moves of the irises, of the eyes, x right and y down
    head: HeadMoves

    def part(self, frames: slice) -> Acting:
        """The same for some of the frames."""
        head = HeadMoves(*(values[frames] for values in self.head))
        return Acting(self.lids[frames], self.brows[frames], self.gaze[frames], head)


def act(portrait: Portrait, loudness: NDArray[np.floating], seed: int, speed: float) -> Acting:
    """As long as the `loudness` [T] of a sound, a pure function of its arguments.

    speed: of the head, degrees a frame.
    """
    nods = accents(loudness, seed, "nods")
    head = head_path(nods, seed, speed, portrait.face_box, mask_box(portrait.mask))
    return Acting(
        lids=blinks(len(loudness), seed),
        brows=brow_lifts(accents(loudness, seed, "accents"), seed),
        gaze=gaze(head.turns, seed),
        head=head,
    )
