"""Lip sync: which shift of the sound fits a video's mouth best, and how clearly (EMO sec. 4.2).

The protocol is syncnet_python's: 25 fps, windows of five frames and of 0.2 s of sound, the sound
shifted by up to 15 frames to both sides; the distance of a shift is the mean over all windows of
the L2 distance of their embeddings; offset = the shift of the least distance, distance = the
least, confidence = the median of the 31 less the least. Loudness is normalised first: loud sound
would inflate the confidence (`sync_audio.normalise_loudness`).

Two networks, never mixed and always named: "SyncNet-mini", embedded, ours; and "SyncNet", the
published one, by `emo download eval`. Their figures do not compare: SyncNet-mini's embeddings have
length 1, so its distances lie between 0 and 2. Beyond the ends of the sound syncnet_python takes
distances to zeros, and so does "SyncNet" here; "SyncNet-mini" leaves them out of the mean.

Legend: `N` windows, `D` width of an embedding, 31 shifts of -15 ... 15 frames.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.metrics.contract import Column, Reading, Score, VideoFeatures, VideoInfo

if TYPE_CHECKING:
    from emo_cli.metrics.sync_streams import SyncNetwork

NetworkName = Literal["SyncNet-mini", "SyncNet"]
MINI: NetworkName = "SyncNet-mini"
PUBLISHED: NetworkName = "SyncNet"
NAMES = {MINI: "sync", PUBLISHED: "syncnet"}  # of metric and extractor
PUBLISHED_WEIGHTS = "eval/syncnet.safetensors"

PROTOCOL = 1  # features of another protocol are not used
REACH = 15  # frames that sound is shifted by, to both sides
EPSILON = 1e-6  # torch's pairwise_distance adds it to every difference
LEAST_OVERLAP = 5  # windows; a mean of fewer says nothing


class Sync(NamedTuple):
    """Lip sync of one video, in syncnet_python's words."""

    offset: int  # frames by which the sound comes too early
    distance: float  # the least mean distance: low is good
    confidence: float  # median less least: high is good


def offset_distances(lips: np.ndarray, sound: np.ndarray, *, padded: bool = False) -> np.ndarray:
    """Distance of each window of the mouth to the sound around it, float32 [N, 31].

    lips, sound: [N, D]. Column k holds the sound k - 15 frames later. Beyond the ends there is no
    sound: NaN, or with `padded` the distance to zeros, as syncnet_python has it.
    """
    distances = np.full((len(lips), 2 * REACH + 1), np.nan, np.float32)
    nothing = np.zeros_like(sound[:1])
    for column, shift in enumerate(range(-REACH, REACH + 1)):
        rows = np.arange(len(lips)) + shift
        there = (rows >= 0) & (rows < len(sound))
        heard = np.where(there[:, None], sound[rows.clip(0, len(sound) - 1)], nothing)
        distance = np.linalg.norm(lips - heard + EPSILON, axis=1)
        distances[:, column] = distance if padded else np.where(there, distance, np.nan)
    return distances


def best_offset(distances: np.ndarray) -> Sync:
    """The offset whose mean distance over a video's windows [N, 31], N > 0, is least."""
    known = ~np.isnan(distances)
    enough = known.sum(axis=0) >= min(LEAST_OVERLAP, len(distances))
    sums = np.where(known, distances, 0).sum(axis=0, dtype=np.float64)
    means = np.where(enough, sums / known.sum(axis=0).clip(min=1), np.nan)
    least = int(np.nanargmin(means))
    distance = float(means[least])
    return Sync(REACH - least, distance, float(np.nanmedian(means)) - distance)


class SyncExtractor:
    """Distances of mouth and sound, as `sync_streams.SyncReading.finish` gives them."""

    wants_faces = True

    def __init__(self, network: NetworkName = MINI) -> None:
        self.network = network
        self.name = NAMES[network]

    @functools.cached_property
    def digest(self) -> str:
        """Of protocol, network and weights.

        Raises: EmoError when the published network was not downloaded.
        """
        from emo_cli.metrics.syncnet_mini import SHA256

        weights = SHA256 if self.network == MINI else _published_sha256()
        return hashlib.sha256(f"{PROTOCOL} {self.network} {weights}".encode()).hexdigest()

    def begin(self, info: VideoInfo) -> Reading:
        """Start on a video. Raises: EmoError when the network's weights are missing or damaged."""
        from emo_cli.metrics.sync_streams import SyncReading

        return SyncReading(self._loaded)

    @functools.cached_property
    def _loaded(self) -> SyncNetwork:
        from emo_cli.metrics.sync_streams import MiniNetwork, PublishedNetwork
        from emo_cli.metrics.syncnet import load_syncnet
        from emo_cli.metrics.syncnet_mini import load_syncnet_mini

        if self.network == MINI:
            return MiniNetwork(load_syncnet_mini())
        return PublishedNetwork(load_syncnet(_published_path()))

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes load the network themselves."""
        return {"network": self.network, "name": self.name}


def _published_path() -> Path:
    from emo_cli.weights import weights_path

    return weights_path(PUBLISHED_WEIGHTS)


def _published_sha256() -> str:
    from emo_cli.files import sha256_of

    return sha256_of(_published_path())


class SyncMetric:
    """Confidence, distance and offset: means over videos, and the median of the offsets."""

    needs_real = False

    def __init__(self, network: NetworkName = MINI) -> None:
        self.network = network
        self.name = self.extractor = NAMES[network]
        digits = 3 if network == MINI else 2
        self.columns = (
            Column(key="confidence", heading=f"{network} confidence", digits=digits, better="high"),
            Column(key="distance", heading=f"{network} distance", digits=digits, better="low"),
            Column(
                key="offset",
                heading=f"{network} offset",
                digits=1,
                better="real",  # a data set may have one of its own
                unit="frames",
            ),
        )

    def score(
        self, generated: Iterable[VideoFeatures], real: Iterable[VideoFeatures] | None
    ) -> Score:
        """Figures of the generated videos; those of real ones are had by passing them here.

        Videos that cannot be judged are counted in the notes; if none can, the values are None.
        Raises: EmoError when features of another network are among them.
        """
        found: dict[str, Sync] = {}
        left_out: Counter[str] = Counter()
        frames = faceless = 0
        for video in generated:
            arrays = video.arrays
            self._check_network(video)
            frames += int(arrays["frames"])
            faceless += int(arrays["faceless"])
            if reason := str(arrays["left_out"]):
                left_out[reason] += 1
            else:
                found[video.key] = best_offset(arrays["distances"])
        notes = [f"network: {self.network}; an offset above 0: the sound comes too early"]
        notes += _counts(left_out, frames, faceless)
        per_video = {
            column.key: {key: float(getattr(sync, column.key)) for key, sync in found.items()}
            for column in self.columns
        }
        values: dict[str, float | None] = dict.fromkeys(per_video)
        if found:
            for key in ("confidence", "distance"):
                values[key] = math.fsum(per_video[key].values()) / len(found)
            values["offset"] = float(np.median(list(per_video["offset"].values())))
        return Score(values=values, notes=tuple(notes), per_video=per_video)

    def _check_network(self, video: VideoFeatures) -> None:
        network = str(video.arrays["network"])
        if network != self.network:
            raise EmoError(
                f"{video.key} was measured by {network}, the others by {self.network}",
                "Figures of two networks do not compare: remove the cache of features.",
            )


def _counts(left_out: Counter[str], frames: int, faceless: int) -> list[str]:
    notes = [f"{count} videos left out: {reason}" for reason, count in sorted(left_out.items())]
    if faceless:
        notes.append(f"{faceless} of {frames} frames show no face: the last crop was repeated")
    return notes
