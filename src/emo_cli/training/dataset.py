"""Prepared clips as a map-style dataset: a sample is a pure function of its draw.

Only the index is held in memory (some 200 bytes a clip); the files of a sample are read
by their offsets, from a local folder or whatever fsspec knows (s3://, gs://, https://).

Legend: `n` motion frames, `f` clip frames, `m` window, `S` side of a picture in pixels, `V` = 478
landmarks, `L*D` width of the sound features, `C h w` a latent.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from emo_cli.errors import EmoError
from emo_cli.face_points import FACE_POINTS, eye_shape, lip_shape
from emo_cli.training.draws import Draw, begins_video, derive_seed
from emo_cli.training.face_parts import (
    LIDS_MOVE,
    blink_frames,
    held_lids,
    lids_shut,
    start_at_blink,
    union_mask,
)
from emo_cli.training.samples import (
    Labels,
    Split,
    damaged,
    decode_frames,
    decode_sound,
    unpack_labels,
)
from emo_cli.training.shard_reader import ShardReader
from emo_cli.training.side_folder import SideFolder
from emo_cli.training.variation import (
    AS_IT_IS,
    Variation,
    another_frame,
    draw_look,
    frame_by_mouth,
    vary_frames,
    vary_labels,
)

LANCZOS = Image.Resampling.LANCZOS


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a stage wants of each sample; `image` wants one frame and no sound.

    `features` and `latents` name passes of `emo train prepare` ("features-3f02b6c9d1"); without
    them a sample has neither.
    """

    motion_frames: int
    clip_frames: int
    window: int
    size: int
    sound: bool = False  # only clips with sound
    features: str | None = None
    latents: str | None = None
    pictures: bool = True  # False: latents alone, nothing is decoded
    reference_picture: bool = False  # True: the reference frame is decoded nevertheless
    first_clips: float = 0.0  # share of samples that begin a video: the reference lies before them
    blinks: float = 0.0  # share of samples that are sought where eyes shut; others lie anywhere
    held_lids: float = 0.0  # share of samples whose motion latents have eyes that are half shut

    @property
    def num_frames(self) -> int:
        return self.motion_frames + self.clip_frames


class NoUsableClip(EmoError):
    """A split without a clip that is long enough or has the sound that a stage needs."""


class ClipDataset:
    """The clips of one split that a stage can use, in the order of their keys.

    Raises: NoUsableClip; EmoError when there is no dataset, or a shard or the index is cut short.
    """

    def __init__(
        self, path: str, *, split: Split, needs: Needs, variation: Variation = AS_IT_IS
    ) -> None:
        assert not (variation.looks and needs.latents)  # latents are of pictures as they were
        self.needs = needs
        self.variation = variation
        self._clips = ShardReader(str(path))
        self.size = int(self._clips.about["size"])
        self._check_size()
        self._rows = self._choose(split)
        self._features = self._side(needs.features)
        self._latents = self._side(needs.latents)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def digest(self) -> str:
        """sha256 of the chosen keys and lengths: two datasets of the same digest train alike."""
        digest = hashlib.sha256(repr(self.needs).encode())
        for row in self._rows:
            digest.update(f"{self._clips.keys[row]} {self._clips.frames[row]}\n".encode())
        return digest.hexdigest()

    def key(self, index: int) -> str:
        """The key of a clip."""
        return self._clips.keys[self._rows[index]]

    def __getitem__(self, drawn: Draw) -> dict[str, Tensor]:
        """One sample: n + f consecutive frames from a random place, and another frame of the clip.

        `frames` uint8 [n+f, S, S, 3]; `reference` uint8 [S, S, 3]; `boxes` [n+f, 4], `landmarks`
        [n+f, V, 3] and `reference_landmarks` [V, 3] in pixels; `mask` [S, S], 1 in the union of all
        the clip's boxes, grown as a portrait's region; `rotation` [n+f] and `speed` [f+2m] degrees
        per frame; `mean_speed` of the clip; `lids` [f], 0 open .. 1 shut; `lips` [f, 2] as
        `lip_shape` measures them and `lip_width`, the median of the clip; `brows` [f] and
        `gaze` [f, 2], `eye_shape` against the reference's; `has_sound`; where asked
        for, `audio` [f+2m, L*D], zero without sound, `latents` [n+f, C, h, w] and
        `reference_latents` [C, h, w].
        """
        row = self._rows[drawn.index]
        needs = self.needs
        rng = np.random.default_rng(derive_seed(drawn.seed, "frames"))
        total = int(self._clips.frames[row])
        start = int(rng.integers(total - needs.num_frames + 1))
        labels = self._labels(row)
        if derive_seed(drawn.seed, "blink?") / 2**63 < needs.blinks:
            start = start_at_blink(labels.landmarks, needs.num_frames, start, drawn.seed)
        chosen = np.arange(start, start + needs.num_frames)
        reference = another_frame(rng, total, start, needs.num_frames)
        if self.variation.references:
            chosen_by_mouth = frame_by_mouth(labels, start, needs.num_frames, drawn.seed)
            reference = reference if chosen_by_mouth is None else chosen_by_mouth
        if begins_video(drawn.seed, needs.first_clips):
            reference = start + needs.motion_frames - 1
        look = draw_look(derive_seed(drawn.seed, "look")) if self.variation.looks else None
        if look is not None:
            labels = vary_labels(labels, needs.size, look)
        sample = self._label_tensors(labels, chosen, reference)
        sample["has_sound"] = torch.tensor(self._clips.has(row, "flac"))
        wanted = [*chosen.tolist(), reference]
        if needs.pictures:
            pictures = self._pictures(row, wanted)
            if look is not None:
                pictures = torch.from_numpy(vary_frames(pictures.numpy(), look))
            sample["frames"], sample["reference"] = pictures[:-1], pictures[-1]
        elif needs.reference_picture:
            sample["reference"] = self._pictures(row, [reference])[0]
        if self._features is not None:
            sample["audio"] = self._audio(row, start, total)
        if self._latents is not None:
            all_latents = self._latents.read(row)
            latents = all_latents[wanted]
            sample["latents"], sample["reference_latents"] = latents[:-1], latents[-1]
            if derive_seed(drawn.seed, "held lids?") / 2**63 < needs.held_lids:
                self._hold_lids(sample, labels, all_latents, start, drawn.seed)
        return sample

    def sound(self, index: int) -> np.ndarray | None:
        """The sound of a clip, float32 [T * 640] at 16 kHz; None where it has none."""
        row = self._rows[index]
        if not self._clips.has(row, "flac"):
            return None
        return decode_sound(self._clips.read(row, "flac"), self._clips.name(row))

    def all_frames(self, index: int) -> Tensor:
        """All frames of a clip, uint8 [T, S, S, 3]."""
        return self.some_frames(index, list(range(self._clips.frames[self._rows[index]])))

    def some_frames(self, index: int, wanted: list[int]) -> Tensor:
        """Those frames of a clip, uint8 [n, S, S, 3]."""
        return self._pictures(self._rows[index], wanted)

    def has_pictures(self, index: int) -> bool:
        """Whether a clip's frames can be decoded; a packed dataset may hold latents alone."""
        return self._clips.has(self._rows[index], "mp4")

    def all_features(self, index: int) -> Tensor:
        """Sound features of all frames of a clip with sound, fp16 [T, L*D]."""
        assert self._features is not None
        return self._features.read(self._rows[index])

    def all_latents(self, index: int) -> Tensor:
        """Latents of all frames of a clip, fp16 [T, C, h, w]."""
        assert self._latents is not None
        return self._latents.read(self._rows[index])

    def all_labels(self, index: int) -> Labels:
        """Labels of all frames of a clip, coordinates in pixels of `needs.size`."""
        return self._labels(self._rows[index])

    def _check_size(self) -> None:
        needs = self.needs
        if needs.size > self.size or (needs.latents and needs.size != self.size):
            raise EmoError(
                f"the dataset's clips have {self.size} px, the model wants {needs.size}",
                f"Prepare it again with --size {needs.size}.",
            )

    def _choose(self, split: Split) -> np.ndarray:
        clips, needs = self._clips, self.needs
        keep = np.array(clips.splits) == split if len(clips.keys) else np.zeros(0, bool)
        if not keep.any():
            raise NoUsableClip(
                f"{clips.path} holds no clip for '{split}'", "Run `emo train prepare` with videos."
            )
        keep &= clips.frames >= needs.num_frames
        if not keep.any():
            raise NoUsableClip(
                f"no clip of {clips.path} has {needs.num_frames} frames", "Prepare longer videos."
            )
        if needs.sound:
            keep &= np.array([clips.has(row, "flac") for row in range(len(clips.keys))])
        if not keep.any():
            raise NoUsableClip(
                f"no clip of {clips.path} has sound, which this stage needs",
                "VFHQ, for one, trains the stage image only. Prepare videos with sound.",
            )
        rows = np.flatnonzero(keep)
        # By key: the order of the index is that in which workers happened to finish.
        return np.array(sorted(rows, key=lambda row: clips.keys[row]))

    def _side(self, name: str | None) -> SideFolder | None:
        return None if name is None else SideFolder(self._clips, self._rows, name)

    def _labels(self, row: int) -> Labels:
        labels = unpack_labels(self._clips.read(row, "npz"), self.size, self._clips.name(row))
        if labels.num_frames != self._clips.frames[row]:
            raise damaged(self._clips.name(row), "its labels and its pictures differ in number")
        scale = self.needs.size / self.size
        return Labels(
            boxes=labels.boxes * scale,
            poses=labels.poses,
            rotation=labels.rotation,
            landmarks=labels.landmarks * scale,
            opening=labels.opening,
        )

    def _hold_lids(
        self, sample: dict[str, Tensor], labels: Labels, latents: Tensor, start: int, seed: int
    ) -> None:
        """Lets the motion frames' eyes be half shut, by the blink of the clip nearest to them."""
        shut = blink_frames(labels.landmarks)
        if len(shut) == 0:
            return
        motion = self.needs.motion_frames
        blink = latents[int(shut[np.abs(shut - start).argmin()])]
        kept = sample["latents"].clone()
        landmarks = sample["landmarks"][:motion]
        kept[:motion] = held_lids(kept[:motion], landmarks, blink, self.needs.size, seed)
        sample["latents"] = kept

    def _label_tensors(
        self, labels: Labels, chosen: np.ndarray, reference: int
    ) -> dict[str, Tensor]:
        around = self._around(chosen[0], labels.num_frames)
        clip = chosen[self.needs.motion_frames :]
        points = labels.landmarks[:, FACE_POINTS]
        lips = lip_shape(points)
        eyes = eye_shape(points[clip]) - eye_shape(points[reference])
        tensors = {
            "boxes": labels.boxes[chosen],
            "landmarks": labels.landmarks[chosen],
            "reference_landmarks": labels.landmarks[reference],
            "rotation": labels.rotation[chosen],
            "speed": labels.rotation[around],
            "mean_speed": labels.rotation.mean(),
            "lips": lips[clip],
            "lip_width": np.median(lips[:, 1]),
            "brows": eyes[:, 0],
            "gaze": eyes[:, 1:],
            "mask": union_mask(labels.boxes, self.needs.size),
        }
        lids = lids_shut(torch.from_numpy(labels.landmarks), LIDS_MOVE)
        sample = {name: torch.from_numpy(np.asarray(value)) for name, value in tensors.items()}
        return sample | {"lids": lids[clip]}

    def _around(self, start: int, total: int) -> np.ndarray:
        """The clip frames of a sample and `m` more on each side; the clip's ends repeat."""
        needs = self.needs
        first = start + needs.motion_frames
        frames = np.arange(first - needs.window, first + needs.clip_frames + needs.window)
        return frames.clip(0, total - 1)

    def _pictures(self, row: int, wanted: list[int]) -> Tensor:
        frames = decode_frames(self._clips.read(row, "mp4"), wanted, self._clips.name(row))
        size = self.needs.size
        if size != self.size:
            scaled = (Image.fromarray(frame).resize((size, size), LANCZOS) for frame in frames)
            frames = np.stack([np.asarray(picture) for picture in scaled])
        return torch.from_numpy(frames)

    def _audio(self, row: int, start: int, total: int) -> Tensor:
        assert self._features is not None
        around = self._around(start, total)
        if not self._clips.has(row, "flac"):
            return torch.zeros(len(around), self._features.width, dtype=torch.float16)
        return self._features.read(row)[around]
