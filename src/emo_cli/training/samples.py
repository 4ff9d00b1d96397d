"""One training clip: pictures, sound and labels, and the files that a shard keeps of it.

    KEY.mp4   H.264, 25 fps, a key frame every GOP frames, no B-frames: packet k is frame k
    KEY.flac  16 kHz mono, 640 samples a frame; absent where the video has no sound
    KEY.npz   labels
    KEY.json  where it comes from, and what was measured

Legend: `T` frames, `S` side of a picture in pixels, `V` = 478 landmarks. Coordinates are pixels of
the clip, x right, y down.
"""

from __future__ import annotations

import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.ffmpeg_process import FFmpegProcess, file_url
from emo_cli.raw_video import FPS
from emo_cli.sound import SAMPLE_RATE_HZ
from emo_cli.video import PICTURE_FILTER

Split = Literal["train", "val"]

GOP = 12  # what a random start costs: 6 frames on the mean
H264 = {
    "c:v": "libx264",
    "preset": "medium",
    "crf": 12,
    "threads": 1,
    "bf": 0,
    "g": GOP,
    "sc_threshold": 0,
    "flags:v": "+bitexact",
    "fflags": "+bitexact",
    "movflags": "+faststart",
    "video_track_timescale": FPS,
}
# swscale's bilinear + accurate_rnd + full_chroma_int; its default darkens by one level.
EXACT_RGB: dict[str, Any] = {"src_colorspace": "ITU709", "interpolation": 0x2 | 0x40000 | 0x2000}


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What is known of each frame; a maker that knows it exactly gives it, else MediaPipe.

    `boxes` [T, 4] x0, y0, x1, y1; `poses` [T, 4, 4] of the head, y down, upright = 1, centimetres;
    `rotation` [T] degrees of head rotation since the frame before (EMO's w; the first frame has
    the second's); `landmarks` [T, V, 3]; `opening` [T] of the lips, in units of the mouth's width.
    """

    boxes: np.ndarray
    poses: np.ndarray
    rotation: np.ndarray
    landmarks: np.ndarray
    opening: np.ndarray

    @property
    def num_frames(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, kw_only=True)
class PackedSample:
    """A clip as a shard takes it: its files by suffix, and its line of the index."""

    key: str
    parts: dict[str, bytes]
    entry: dict[str, Any]


def pack_sample(
    *,
    key: str,
    identity: str,
    split: Split,
    frames: np.ndarray,
    labels: Labels,
    sound: np.ndarray | None,
    source: dict[str, Any],
) -> PackedSample:
    """A clip's files: frames uint8 RGB [T, S, S, 3] at 25 fps, sound float32 [T * 640] or None.

    key: unique in the dataset, letters, digits, "-" and "_" only. source: JSON values, kept as
    they are. Raises: EmoError when ffmpeg fails.
    """
    assert key.replace("-", "").replace("_", "").isalnum() and key.isascii() and len(key) <= 90
    assert len(frames) == labels.num_frames
    meta = {"identity": identity, "split": split, "frames": len(frames), **source}
    parts = {"mp4": encode_frames(frames)}
    if sound is not None:
        assert len(sound) == len(frames) * SAMPLE_RATE_HZ // FPS
        parts["flac"] = _encode_sound(sound)
    parts["npz"] = pack_labels(labels, frames.shape[1])
    parts["json"] = (json.dumps(meta) + "\n").encode()
    entry = {"identity": identity, "split": split, "frames": len(frames)}
    return PackedSample(key=key, parts=parts, entry=entry)


def encode_frames(frames: np.ndarray, options: dict[str, Any] = H264) -> bytes:
    """uint8 RGB [T, S, S, 3] -> an mp4 of H.264, near lossless unless ffmpeg's options say else."""
    import ffmpeg

    num_frames, height, width, _ = frames.shape
    with tempfile.TemporaryDirectory(prefix="emo-") as folder:
        path = Path(folder) / "clip.mp4"
        source = ffmpeg.input(
            "pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=FPS
        )
        process = FFmpegProcess(
            ffmpeg.output(source["v:0"], file_url(path), **({"vf": PICTURE_FILTER} | options))
        )
        try:
            process.write(np.ascontiguousarray(frames).data.cast("B"))
            process.finish()
        except BaseException:
            process.kill()
            raise
        return path.read_bytes()


def decode_frames(mp4: bytes, wanted: list[int], name: str) -> np.ndarray:
    """Those frames of a clip, in that order, uint8 RGB [n, S, S, 3].

    Raises: EmoError when a frame cannot be had: the shard is damaged.
    """
    import av

    found: dict[int, np.ndarray] = {}
    try:
        with av.open(io.BytesIO(mp4), mode="r", format="mp4") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # loaders run side by side
            for first, last in _runs(wanted):
                container.seek(first, stream=stream)
                for frame in container.decode(stream):
                    index = frame.pts or 0
                    if index >= first:
                        found[index] = frame.to_ndarray(format="rgb24", **EXACT_RGB)
                    if index >= last:
                        break
        return np.stack([found[index] for index in wanted])
    except (av.error.FFmpegError, KeyError) as error:
        raise damaged(name, f"its pictures cannot be decoded ({error})") from error


def _runs(wanted: list[int]) -> list[tuple[int, int]]:
    """First and last of each stretch that is quicker decoded than sought anew."""
    runs: list[tuple[int, int]] = []
    for index in sorted(set(wanted)):
        if runs and index - runs[-1][1] <= GOP:
            runs[-1] = (runs[-1][0], index)
        else:
            runs.append((index, index))
    return runs


def _encode_sound(samples: np.ndarray) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples.clip(-1, 1), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_sound(flac: bytes, name: str) -> np.ndarray:
    """The sound of a clip, float32 [T * 640].

    Raises: EmoError when it is damaged.
    """
    import soundfile

    try:
        return soundfile.read(io.BytesIO(flac), dtype="float32")[0]
    except soundfile.SoundFileError as error:
        raise damaged(name, f"its sound cannot be decoded ({error})") from error


def pack_labels(labels: Labels, size: int) -> bytes:
    """Labels of a clip of `size` pixels as an npz."""
    centre = np.array([size / 2, size / 2, 0], np.float32)
    return pack_arrays(
        boxes=labels.boxes.astype(np.float32),
        poses=labels.poses.astype(np.float32),
        rotation=labels.rotation.astype(np.float32),
        # From the middle of the picture: half precision is finest around zero, 0.06 px at 128.
        landmarks=(labels.landmarks - centre).astype(np.float16),
        opening=labels.opening.astype(np.float32),
    )


def unpack_labels(npz: bytes, size: int, name: str) -> Labels:
    """The inverse of `pack_labels`, landmarks float32 in pixels.

    Raises: EmoError when the file is damaged or lacks a label.
    """
    arrays = unpack_arrays(npz, name)
    centre = np.array([size / 2, size / 2, 0], np.float32)
    try:
        return Labels(
            boxes=arrays["boxes"],
            poses=arrays["poses"],
            rotation=arrays["rotation"],
            landmarks=arrays["landmarks"].astype(np.float32) + centre,
            opening=arrays["opening"],
        )
    except KeyError as error:
        raise damaged(name, f"it has no label {error}") from error


def pack_arrays(**arrays: np.ndarray) -> bytes:
    """Arrays by name as an npz, not compressed: noise does not compress."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpack_arrays(npz: bytes, name: str) -> dict[str, np.ndarray]:
    """Arrays by name; their checksums are verified.

    Raises: EmoError when they are damaged.
    """
    import zipfile

    try:
        with np.load(io.BytesIO(npz), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise damaged(name, f"its arrays cannot be read ({error})") from error


def damaged(name: str, how: str) -> EmoError:
    """The error for a sample that is not what the index says."""
    return EmoError(
        f"{name} is damaged: {how}", "Copy the dataset again, or remove it and prepare it again."
    )
