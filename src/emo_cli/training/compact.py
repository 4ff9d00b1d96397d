"""A dataset in a few hundred bytes a frame, to be carried to a rented machine, and back again.

    PACK (tar)   about.json    clips, and what made their features
                 video.bin     their pictures, one H.264 stream a clip
                 arrays.xz     sound features, landmarks and labels, by transform coding
                 site.tar.xz   Python packages that the machine may lack

Unpacked, it is a dataset of features and latents as `emo train prepare` makes one: the same stages
read it. Nothing but NumPy, OpenCV and PyTorch is needed for that.

Legend: `T` frames of a clip, `N` frames of all clips, `S` side of a picture, `V` = 478 landmarks.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.training.samples import Labels, pack_arrays, unpack_arrays

FEATURE_STEP = 0.5  # leaves some 0.7 % of the features' variance; they are about unit normal
LANDMARK_STEP = 2.0  # leaves 0.13 px on the mean: it is spread over all points of a face
KEPT = 1.5  # a direction is kept whose variance is that many times what rounding adds
BOX_UNITS = 16  # per pixel


@dataclass(frozen=True, kw_only=True)
class CompactClip:
    """One clip as it travels: its line of about.json, its pictures, features and labels.

    `entry`: key, identity, split, frames; `features` [T, L*D] float32, None without sound.
    """

    entry: dict[str, Any]
    mp4: bytes
    features: np.ndarray | None
    labels: Labels


def code_tracks(tracks: list[np.ndarray], step: float, *, smooth: bool) -> dict[str, np.ndarray]:
    """Tracks [T, D] -> mean [D], basis [D, K] and rounded coordinates, split into bytes.

    The basis is that of principal components: rounding errors of one size in all of them cost the
    fewest bytes. smooth: differences between frames are smaller than values.
    """
    everything = np.concatenate(tracks).astype(np.float32)
    mean = everything.mean(0)
    variance, basis = np.linalg.eigh(np.cov((everything - mean).T, bias=True))
    basis = basis[:, variance > KEPT * step**2 / 12][:, ::-1].astype(np.float16)
    if basis.shape[1] == 0:  # nothing moves
        basis = np.zeros((len(mean), 1), np.float16)
    # By pseudo-inverse: in half precision the basis is not exactly orthonormal.
    inverse = np.linalg.pinv(basis.astype(np.float32)).T
    rounded = [np.rint((track - mean) @ inverse / step).astype(np.int32) for track in tracks]
    if smooth:
        rounded = [np.diff(track, axis=0, prepend=0) for track in rounded]
    codes = np.concatenate(rounded).T  # [K, N]: like beside like compresses
    assert np.abs(codes).max(initial=0) < 2**15
    codes = codes.astype(np.int16)
    return {
        "mean": mean,
        "basis": basis,
        "low": codes.astype(np.uint8),
        "high": (codes >> 8).astype(np.int8),
        "step": np.float32(step),
        "smooth": np.bool_(smooth),
    }


def decode_tracks(coded: dict[str, np.ndarray], lengths: list[int]) -> list[np.ndarray]:
    """The inverse of `code_tracks` but for rounding: float32 [T, D] of each length."""
    codes = (coded["high"].astype(np.int32) * 256 + coded["low"]).T  # [N, K]
    basis = coded["basis"].astype(np.float32).T * coded["step"]
    tracks = []
    for part in np.split(codes, np.cumsum(lengths)[:-1]):
        values = np.cumsum(part, axis=0) if coded["smooth"] else part
        tracks.append(values @ basis + coded["mean"])
    return tracks


def pack_clips(clips: list[CompactClip], size: int) -> bytes:
    """Features and labels of all clips as the bytes of arrays.xz; head poses stay behind."""
    sounding = [clip.features for clip in clips if clip.features is not None]
    arrays = {
        "boxes": np.concatenate(
            [np.rint(clip.labels.boxes * BOX_UNITS).astype(np.int16) for clip in clips]
        ),
        "rotation": np.concatenate([clip.labels.rotation.astype(np.float16) for clip in clips]),
        "opening": np.concatenate([clip.labels.opening.astype(np.float16) for clip in clips]),
    }
    flat = [
        (clip.labels.landmarks - size / 2).reshape(clip.labels.num_frames, -1) for clip in clips
    ]
    for name, coded in (
        ("landmarks", code_tracks(flat, LANDMARK_STEP, smooth=True)),
        ("features", code_tracks(sounding, FEATURE_STEP, smooth=False) if sounding else {}),
    ):
        arrays |= {f"{name}.{part}": np.asarray(value) for part, value in coded.items()}
    return lzma.compress(pack_arrays(**arrays))


def unpack_clips(
    packed: bytes, entries: list[dict[str, Any]], size: int
) -> list[tuple[np.ndarray | None, Labels]]:
    """Features and labels of each entry; poses are NaN, for they did not travel.

    Raises: EmoError when the bytes are damaged or belong to other clips.
    """
    try:
        arrays = unpack_arrays(lzma.decompress(packed), "the pack")
    except lzma.LZMAError as error:
        raise EmoError(f"the pack is damaged: {error}", "Copy it again.") from error
    lengths = [entry["frames"] for entry in entries]
    if len(arrays["boxes"]) != sum(lengths):
        raise EmoError("the pack's labels belong to other clips", "Make the pack again.")
    heard = [entry["frames"] for entry in entries if entry["sound"]]
    features = iter(decode_tracks(_named(arrays, "features"), heard) if heard else [])
    landmarks = decode_tracks(_named(arrays, "landmarks"), lengths)
    stops = np.cumsum(lengths)
    result: list[tuple[np.ndarray | None, Labels]] = []
    for entry, points, stop in zip(entries, landmarks, stops, strict=True):
        rows = slice(stop - entry["frames"], stop)
        labels = Labels(
            boxes=arrays["boxes"][rows].astype(np.float32) / BOX_UNITS,
            poses=np.full((entry["frames"], 4, 4), np.nan, np.float32),
            rotation=arrays["rotation"][rows].astype(np.float32),
            landmarks=(points + size / 2).reshape(entry["frames"], -1, 3),
            opening=arrays["opening"][rows].astype(np.float32),
        )
        result.append((next(features) if entry["sound"] else None, labels))
    return result


def decode_video(mp4: Path, entry: dict[str, Any]) -> np.ndarray:
    """All frames of a clip by OpenCV, uint8 RGB [T, S, S, 3].

    `entry["bias"]` is what OpenCV's conversion was seen to add to each colour: it is taken off.

    Raises: EmoError when frames are missing.
    """
    import cv2

    capture = cv2.VideoCapture(str(mp4))
    frames = []
    while True:
        more, frame = capture.read()
        if not more:
            break
        frames.append(frame[..., ::-1])
    capture.release()
    if len(frames) != entry["frames"]:
        raise EmoError(
            f"{entry['key']} gives {len(frames)} of {entry['frames']} frames",
            "OpenCV needs its FFmpeg part here.",
        )
    return debiased(np.stack(frames), np.array(entry["bias"], np.float32))


def debiased(frames: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, S, S, 3] less a bias [3], rounded."""
    return (frames - bias + 0.5).clip(0, 255).astype(np.uint8)


def _named(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    start = f"{prefix}."
    return {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}
