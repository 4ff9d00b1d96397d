"""How far the face stays inside its region (EMO fig. 7).

The region comes, first that there is: from the report that `emo generate` writes beside a video
(its face box and --face-region); from the portrait, cut to a square as `emo generate` does it,
where the video is a square; from the first frame that shows a face. Without a report the box is
grown as `--face-region box` grows it. The paper gives no figure, only pictures, in which boxes may
reach beyond the region: the locator is a weak condition.

Legend: T frames; a box is (x0, y0, x1, y1) in pixels of the video, x right, y down.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.faces import Box
from emo_cli.metrics.contract import Column, Frame, Score, VideoFeatures, VideoInfo
from emo_cli.metrics.digest import features_digest
from emo_cli.metrics.identity import means_of
from emo_cli.output_file import report_path
from emo_cli.portrait import parse_region, prepare_portrait, region_box

SOURCES = ("report", "portrait", "first frame")


class RegionExtractor:
    """Where the face is, and where the portrait has it.

    Arrays: `boxes` [T, 4] float32, NaN where there is no face; `region` [4] float32, the portrait's
    or the first face's, NaN where there is neither; `source` [], an index into SOURCES.
    """

    name = "region"
    wants_faces = True

    @property
    def digest(self) -> str:
        return features_digest("region 1")

    def begin(self, info: VideoInfo) -> RegionReading:
        """Start on a video. Raises: EmoError when its portrait cannot be read or has no face."""
        return RegionReading(portrait_region(info))


class RegionReading:
    """The boxes so far."""

    def __init__(self, region: Box | None) -> None:
        self._region = region
        self._boxes: list[Box] = []

    def add(self, frames: Sequence[Frame]) -> None:
        """The next frames, in order."""
        nowhere = (np.nan, np.nan, np.nan, np.nan)
        self._boxes += [face.box if face else nowhere for _, face in frames]

    def finish(self, sound: np.ndarray | None) -> dict[str, np.ndarray]:
        """The arrays that `RegionExtractor` names."""
        boxes = np.array(self._boxes, np.float32).reshape(-1, 4)
        shown = boxes[np.isfinite(boxes).all(1)]
        region = self._region
        if region is None and len(shown):
            x0, y0, x1, y1 = shown[0].tolist()
            region = region_box("box", face_box=(x0, y0, x1, y1), crop=(0, 0, 1, 1), size=1)
        return {
            "boxes": boxes,
            "region": np.array(region or (np.nan,) * 4, np.float32),
            "source": np.array(SOURCES.index("portrait" if self._region else "first frame")),
        }


def reported_region(info: VideoInfo) -> Box | None:
    """The region that `emo generate` was given, from its report beside the video; None without."""
    try:
        report: Any = json.loads(report_path(info.path).read_text(encoding="utf-8"))
        if tuple(report["size"]) != info.size:
            return None
        x0, y0, x1, y1 = (float(value) for value in report["face_box"])
        left, top, right, bottom = (int(value) for value in report["crop"])
        region = parse_region(str(report["options"]["face_region"]))
    except (OSError, ValueError, KeyError, TypeError, EmoError):
        return None  # another program's file of that name
    return region_box(
        region, face_box=(x0, y0, x1, y1), crop=(left, top, right, bottom), size=info.size[0]
    )


def portrait_region(info: VideoInfo) -> Box | None:
    """The region of the portrait where the video can be its crop; None without a portrait."""
    width, height = info.size
    if info.portrait is None or width != height:
        return None
    portrait = prepare_portrait(info.portrait, size=width, face=None, face_region="box")
    return region_box("box", face_box=portrait.face_box, crop=portrait.crop, size=width)


class FaceRegion:
    """Share of face boxes inside the region, and how far the face travels."""

    name = "region"
    extractor = "region"
    needs_real = False
    columns: tuple[Column, ...] = (
        Column(key="region_inside", heading="Boxes inside", digits=1, better="none", unit="%"),
        Column(key="region_area", heading="Face area inside", digits=1, better="high", unit="%"),
        Column(key="swing", heading="Sideways", digits=3, better="none", unit="face widths"),
        Column(key="nod", heading="Up and down", digits=3, better="none", unit="face heights"),
    )

    def score(
        self, generated: Iterable[VideoFeatures], real: Iterable[VideoFeatures] | None
    ) -> Score:
        """Means over videos: boxes wholly inside, their area inside, travel of their centres.

        Raises: EmoError when there is no video.
        """
        per_video: dict[str, dict[str, float]] = {column.key: {} for column in self.columns}
        sources = [0, 0, 0]
        for video in generated:
            # Read now: what an extractor found is kept, and a report may come or go meanwhile.
            reported = reported_region(video.info)
            sources[int(video.arrays["source"]) if reported is None else 0] += 1
            region = video.arrays["region"] if reported is None else np.array(reported)
            for key, value in inside_region(video.arrays["boxes"], region).items():
                per_video[key][video.key] = value
        if not sum(sources):
            raise EmoError("there is no video to look for faces in", "Name a folder with videos.")
        stated = (f"{SOURCES[i]} ({count})" for i, count in enumerate(sources) if count)
        notes = [f"face region from: {', '.join(stated)}"]
        if missing := sum(sources) - len(per_video["region_inside"]):
            notes.append(f"{missing} of {sum(sources)} videos show no face")
        return Score(values=means_of(per_video), notes=tuple(notes), per_video=per_video)


def inside_region(boxes: np.ndarray, region: np.ndarray) -> dict[str, float]:
    """Figures of one video, by column, from its boxes [T, 4] and region [4]; none without a face.

    `swing` and `nod`: the way between the outermost centres, in median widths and heights.
    """
    shown = boxes[np.isfinite(boxes).all(1)].astype(np.float64)
    if not len(shown):
        return {}
    low, high = shown[:, :2], shown[:, 2:]
    size = (high - low).clip(1e-6)
    common = (np.minimum(high, region[2:]) - np.maximum(low, region[:2])).clip(0)
    whole = ((low >= region[:2]) & (high <= region[2:])).all(1)
    travel = np.ptp((low + high) / 2, axis=0) / np.median(size, axis=0)
    return {
        "region_inside": 100 * float(whole.mean()),
        "region_area": 100 * float((common.prod(1) / size.prod(1)).mean()),
        "swing": float(travel[0]),
        "nod": float(travel[1]),
    }
