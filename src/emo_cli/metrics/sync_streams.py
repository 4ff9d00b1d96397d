"""A video on its way through a sync network: crops, embeddings, distances.

Frames are embedded in batches of a fixed size, so where a video is cut into parts means nothing;
what is kept of a video is its embeddings, some 0.5 (SyncNet-mini) or 4 kB (SyncNet) a frame.

Legend: `T` frames, `N` windows, `D` width of an embedding, `S` samples at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from emo_cli.metrics.contract import Frame
from emo_cli.metrics.sync import MINI, PUBLISHED, REACH, NetworkName, offset_distances
from emo_cli.metrics.sync_audio import STEPS_PER_FRAME, log_mel, mfcc, normalise_loudness
from emo_cli.metrics.sync_crops import FaceCrops, MouthCrops
from emo_cli.metrics.syncnet import SyncNet
from emo_cli.metrics.syncnet_mini import NUM_BANDS, SyncNetMini

WINDOW = 5  # frames
WINDOW_STEPS = WINDOW * STEPS_PER_FRAME
FRAME_SAMPLES = 640
FRAME_BATCH = 64  # of SyncNet-mini
WINDOW_BATCH = 8  # of SyncNet: 6 MB of pictures
SOUND_BATCH = 512  # windows


class Crops(Protocol):
    """Makes crops of frames, in order; some come later than their frame."""

    faceless: int

    def add(self, frame: Frame) -> Iterator[np.ndarray]:
        """What can be cut now."""
        ...

    def finish(self) -> Iterator[np.ndarray]:
        """The rest."""
        ...


class Lips(Protocol):
    """Embeds crops, in order."""

    def add(self, crop: np.ndarray) -> None: ...

    def finish(self) -> np.ndarray:
        """All windows of the video so far, float32 [N, D]."""
        ...


class SyncNetwork(Protocol):
    """One of the two networks."""

    name: NetworkName
    padded: bool  # distances beyond the ends of the sound are those to zeros

    def crops(self) -> Crops: ...

    def lips(self) -> Lips: ...

    def hear(self, sound: np.ndarray, num_windows: int) -> np.ndarray:
        """Loudness-normalised sound [S] -> its windows, float32 [N, D]."""
        ...


class SyncReading:
    """One video: `contract.Reading`."""

    def __init__(self, network: SyncNetwork) -> None:
        self._network = network
        self._crops, self._lips = network.crops(), network.lips()
        self._num_frames = 0

    def add(self, frames: Sequence[Frame]) -> None:
        """The next frames, in order."""
        for frame in frames:
            self._num_frames += 1
            for crop in self._crops.add(frame):
                self._lips.add(crop)

    def finish(self, sound: np.ndarray | None) -> dict[str, np.ndarray]:
        """`distances` float32 [N, 31]; `network` and `left_out` (why there is none, or "") are
        texts; `frames` and `faceless` are counts."""
        for crop in self._crops.finish():
            self._lips.add(crop)
        distances = np.zeros((0, 2 * REACH + 1), np.float32)
        left_out = self._why_not(sound)
        if not left_out:
            assert sound is not None
            distances = self._distances(normalise_loudness(sound))
        return {
            "distances": distances,
            "network": np.array(self._network.name),
            "left_out": np.array(left_out),
            "frames": np.array(self._num_frames),
            "faceless": np.array(self._crops.faceless),
        }

    def _why_not(self, sound: np.ndarray | None) -> str:
        if sound is None:
            return "no sound"
        if self._crops.faceless == self._num_frames:
            return "no face"
        if self._num_windows(sound) < 1:
            return f"shorter than {WINDOW + 1} frames"
        return ""

    def _num_windows(self, sound: np.ndarray) -> int:
        # One fewer than there are: syncnet_python leaves the last one out, whose sound is not
        # whole.
        return min(self._num_frames, len(sound) // FRAME_SAMPLES) - WINDOW

    def _distances(self, sound: np.ndarray) -> np.ndarray:
        number = self._num_windows(sound)
        lips = self._lips.finish()[:number]
        return offset_distances(
            lips, self._network.hear(sound, number), padded=self._network.padded
        )


class MiniLips:
    """Frames are embedded one by one, and five of them together at the end."""

    def __init__(self, network: SyncNetMini) -> None:
        self._network = network
        self._waiting: list[np.ndarray] = []
        self._frames: list[Tensor] = []

    def add(self, crop: np.ndarray) -> None:
        self._waiting.append(crop)
        if len(self._waiting) == FRAME_BATCH:
            self._embed()

    @torch.inference_mode()
    def finish(self) -> np.ndarray:
        if self._waiting:
            self._embed()
        return self._network.embed_lips(torch.cat(self._frames)[None])[0].numpy()

    @torch.inference_mode()
    def _embed(self) -> None:
        crops = torch.from_numpy(np.stack(self._waiting))
        self._frames.append(self._network.embed_frames(crops))
        self._waiting.clear()


class MiniNetwork:
    """SyncNet-mini as a `SyncNetwork`."""

    name = MINI
    padded = False

    def __init__(self, network: SyncNetMini) -> None:
        self._network = network

    def crops(self) -> Crops:
        return MouthCrops()

    def lips(self) -> Lips:
        return MiniLips(self._network)

    @torch.inference_mode()
    def hear(self, sound: np.ndarray, num_windows: int) -> np.ndarray:
        steps = torch.from_numpy(log_mel(sound, NUM_BANDS))
        parts = _parts_of_sound(steps, num_windows)
        return torch.cat([self._network.embed_sound(part[None])[0] for part in parts]).numpy()


class SyncNetLips:
    """Every window of five frames is embedded by itself."""

    def __init__(self, network: SyncNet) -> None:
        self._network = network
        self._waiting: list[np.ndarray] = []
        self._windows: list[Tensor] = []

    def add(self, crop: np.ndarray) -> None:
        self._waiting.append(crop[:, :, ::-1])  # OpenCV's order of colours
        if len(self._waiting) == WINDOW_BATCH + WINDOW - 1:
            self._embed()

    def finish(self) -> np.ndarray:
        if len(self._waiting) >= WINDOW:
            self._embed()
        return torch.cat(self._windows).numpy()

    @torch.inference_mode()
    def _embed(self) -> None:
        frames = torch.from_numpy(np.stack(self._waiting)).float()  # [n, 224, 224, 3]
        windows = frames.permute(3, 0, 1, 2).unfold(1, WINDOW, 1)  # [3, n-4, 224, 224, 5]
        self._windows.append(self._network.embed_lips(windows.permute(1, 0, 4, 2, 3)))
        del self._waiting[: len(self._waiting) - WINDOW + 1]


class PublishedNetwork:
    """SyncNet as a `SyncNetwork`."""

    name = PUBLISHED
    padded = True

    def __init__(self, network: SyncNet) -> None:
        self._network = network

    def crops(self) -> Crops:
        return FaceCrops()

    def lips(self) -> Lips:
        return SyncNetLips(self._network)

    @torch.inference_mode()
    def hear(self, sound: np.ndarray, num_windows: int) -> np.ndarray:
        embedded = []
        for part in _parts_of_sound(torch.from_numpy(mfcc(sound)), num_windows):
            windows = part.unfold(0, WINDOW_STEPS, STEPS_PER_FRAME)  # [n, 13, 20]
            embedded.append(self._network.embed_sound(windows[:, None]))
        return torch.cat(embedded).numpy()


def _parts_of_sound(steps: Tensor, num_windows: int) -> Iterator[Tensor]:
    """The steps [P, K] of so many windows, of at most `SOUND_BATCH` windows at a time."""
    for first in range(0, num_windows, SOUND_BATCH):
        last = min(first + SOUND_BATCH, num_windows) - 1
        yield steps[first * STEPS_PER_FRAME : last * STEPS_PER_FRAME + WINDOW_STEPS]
