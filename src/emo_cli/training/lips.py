"""How far the lips of a talking person are open, frame by frame: a target and a yardstick."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emo_cli.face_motion import lip_opening
from emo_cli.faces import FaceFinder


def lip_openings(path: Path, finder: FaceFinder) -> NDArray[np.float32]:
    """`lip_opening` in each frame [F] of a video; NaN: no face.

    Raises: OSError or ValueError (PyAV's own errors are both) when the video cannot be decoded.
    """
    import av

    openings = []
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            faces = finder.find_in_frame(frame.to_ndarray(format="rgb24"))
            openings.append(float(lip_opening(faces[0].landmarks)) if faces else float("nan"))
    return np.array(openings, dtype=np.float32)


def stored_lip_openings(path: Path, folder: Path, finder: FaceFinder) -> NDArray[np.float32]:
    """Openings [F] of a video from `folder`, measured and stored there the first time.

    Raises: as `lip_openings`.
    """
    stored = folder / f"{path.parent.name}.{path.stem}.npy"
    if not stored.exists():
        openings = lip_openings(path, finder)
        folder.mkdir(parents=True, exist_ok=True)
        partial = stored.with_suffix(".partial.npy")
        np.save(partial, openings)
        os.replace(partial, stored)
    return np.load(stored)
