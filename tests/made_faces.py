"""Videos of a "face" that is a magenta checkerboard, and a finder that sees those: no MediaPipe."""

from __future__ import annotations

import os
import signal
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from emo_cli.faces import Face
from emo_cli.training.samples import Labels

HEIGHT, WIDTH = 120, 160
FACE = 40  # a face is FACE wide and high
RATE = 16_000
BLOCK = 640  # samples in a packet
DEADLY = (0, 0, 250)  # a picture of this colour kills the finder's process


class MagentaFinder:
    """Sees each magenta blob as a face, turned by a tenth of a degree per pixel of its place."""

    def __enter__(self) -> MagentaFinder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def find(self, picture: np.ndarray) -> list[Face]:
        if (
            np.abs(picture.astype(int) - DEADLY).mean() < 10
        ) and "EMO_TEST_SURVIVE" not in os.environ:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.find_in_frame(picture)

    def find_in_frame(self, picture: np.ndarray) -> list[Face]:
        red, green, blue = (picture[..., i].astype(int) for i in range(3))
        seen = (red - green > 70) & (blue - green > 70)
        columns = np.flatnonzero(np.diff(np.pad(seen.sum(0) > 3, 1).astype(int)))
        faces = []
        for x0, x1 in zip(columns[::2], columns[1::2], strict=True):
            rows = np.flatnonzero(seen[:, x0:x1].any(1))
            faces.append(made_face((float(x0), float(rows[0]), float(x1), float(rows[-1] + 1))))
        return faces


def made_face(box: tuple[float, float, float, float]) -> Face:
    """A face whose 478 landmarks lie on the diagonal of its box."""
    share = np.linspace(0, 1, 478)[:, None]
    corners = np.array([(box[0], box[1], 0.0), (box[2], box[3], 5.0)])
    points = corners[0] * (1 - share) + corners[1] * share
    angle = np.radians(box[0] / 10)
    turn = np.array(
        [(np.cos(angle), -np.sin(angle), 0), (np.sin(angle), np.cos(angle), 0), (0, 0, 1)]
    )
    return Face(box=box, landmarks=points.astype(np.float32), rotation=turn.astype(np.float32))


def face_frames(
    num_frames: int, *, speed: float = 0.5, faces: int = 1, grey: int = 90, face: int = FACE
) -> np.ndarray:
    """uint8 [T, H, W, 3]: faces that move right by `speed` pixels a frame over a grey ground."""
    frames = np.full((num_frames, HEIGHT, WIDTH, 3), grey, np.uint8)
    y, x = np.mgrid[:face, :face] // 5 % 2
    pattern = np.where((x ^ y)[..., None], (250, 20, 250), (190, 60, 190)).astype(np.uint8)
    for i in range(num_frames):
        for number in range(faces):
            left = round(20 + 70 * number + speed * i)
            frames[i, 35 : 35 + face, left : left + face] = pattern
    return frames


def tone(num_samples: int, level: float = 0.3) -> np.ndarray:
    """A hum, float32 [S] at 16 kHz."""
    return (level * np.sin(np.arange(num_samples) * 0.05)).astype(np.float32)


def write_video(
    path: Path,
    frames: np.ndarray,
    *,
    fps: int = 25,
    sound: np.ndarray | None = None,
    sound_starts_s: float = 0.0,
) -> Path:
    """A video file of frames [T, H, W, 3] and, if given, sound at 16 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        track = container.add_stream("libx264", rate=fps, options={"crf": "10", "g": "12"})
        track.height, track.width = frames.shape[1:3]
        track.pix_fmt = "yuv420p"
        hum = container.add_stream("pcm_s16le", rate=RATE) if sound is not None else None
        if hum is not None and sound is not None:
            hum.layout = "mono"
            for start in range(0, len(sound), BLOCK):
                block = (sound[None, start : start + BLOCK] * 32767).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(block, "s16", "mono")
                frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
                frame.pts = round(sound_starts_s * RATE) + start
                container.mux(hum.encode(frame))
            container.mux(hum.encode(None))
        for picture in frames:
            container.mux(track.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(track.encode(None))
    return path


def made_labels(num_frames: int) -> Labels:
    """Labels whose values say their frame."""
    time = np.arange(num_frames, dtype=np.float32)
    boxes = np.stack([10 + time, 20 + 0 * time, 30 + time, 50 + 0 * time], -1)
    return Labels(
        boxes=boxes,
        poses=np.tile(np.eye(4, dtype=np.float32), (num_frames, 1, 1)),
        rotation=time / 10,
        landmarks=np.stack([made_face(tuple(box)).landmarks for box in boxes]),
        opening=time / 100,
    )
