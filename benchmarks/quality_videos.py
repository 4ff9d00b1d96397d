"""Makes the videos that `mini_quality.py` judges, as `emo generate` does, and watches them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from quality_measures import PictureReading

import emo_cli
from emo_cli.config import GenerateOptions
from emo_cli.engine import Engine
from emo_cli.faces import FaceFinder
from emo_cli.files import sha256_of
from emo_cli.generate import Request, make_video
from emo_cli.metrics.contract import Extractor, Frame, VideoFeatures, VideoInfo
from emo_cli.metrics.identity import IdentityExtractor
from emo_cli.metrics.motion import MotionExtractor
from emo_cli.metrics.region import RegionExtractor
from emo_cli.output_file import report_path
from emo_cli.raw_video import probe, read_frames, read_sound

THUMBNAIL = 128  # px
THUMBNAIL_EVERY = 8  # frames
CHUNK = 16  # frames
NO_END = 1_000_000_000  # frames


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What was seen of one video."""

    name: str
    features: Mapping[str, VideoFeatures]  # by extractor
    picture: Mapping[str, np.ndarray]  # curves of PictureReading
    sound: np.ndarray | None
    thumbnails: Sequence[np.ndarray]
    num_frames: int

    def curve(self, extractor: str, name: str) -> np.ndarray:
        """One of the extractor's arrays."""
        return self.features[extractor].arrays[name]


class Watcher:
    """Looks at videos with the extractors of `emo eval`; use it with `with`."""

    def __init__(self) -> None:
        self._finder = FaceFinder()
        self._identity, self._motion = IdentityExtractor(), MotionExtractor()
        self._region = RegionExtractor()

    def __enter__(self) -> Watcher:
        self._identity.digest  # noqa: B018  (missing weights are told before an hour of work)
        self._finder.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._finder.__exit__()

    def generated(self, path: Path, portrait: Path) -> Watched:
        """A video made of this portrait."""
        return self._watch(path, portrait, (self._identity, self._motion, self._region))

    def real(self, path: Path) -> Watched:
        """A video of a real speaker: only how he moves."""
        return self._watch(path, None, (self._motion,))

    def _watch(self, path: Path, portrait: Path | None, extractors: Sequence[Extractor]) -> Watched:
        found = probe(path)
        info = VideoInfo(
            path=path,
            fps=found.fps,
            size=(found.width, found.height),
            has_sound=found.has_sound,
            portrait=portrait,
        )
        readings = [extractor.begin(info) for extractor in extractors]
        picture, thumbnails, waiting, count = PictureReading(), [], [], 0
        for frame in read_frames(path, 0, NO_END):
            picture.add(frame)
            if count % THUMBNAIL_EVERY == 0:
                thumbnails.append(thumbnail(frame))
            count += 1
            waiting.append(Frame(frame, next(iter(self._finder.find_in_frame(frame)), None)))
            if len(waiting) == CHUNK:
                for reading in readings:
                    reading.add(waiting)
                waiting = []
        for reading in readings:
            reading.add(waiting)
        sound = read_sound(path, 0, count) if found.has_sound else None
        features = {
            extractor.name: VideoFeatures(key=path.stem, info=info, arrays=reading.finish(sound))
            for extractor, reading in zip(extractors, readings, strict=True)
        }
        return Watched(
            name=path.stem,
            features=features,
            picture=picture.finish(),
            sound=sound,
            thumbnails=thumbnails,
            num_frames=count,
        )


@functools.cache
def code_digest() -> str:
    """Of the package's source files."""
    digest = hashlib.sha256()
    for file in sorted(Path(emo_cli.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


class Studio:
    """Makes videos in a folder, unless the same code and model made the same ones there before."""

    def __init__(self, engine: Engine, folder: Path, watcher: Watcher, **options: Any) -> None:
        self.engine = engine
        self.folder = folder
        self.watcher = watcher
        self._options = options

    def with_engine(self, engine: Engine) -> Studio:
        """The same studio with another model."""
        return Studio(engine, self.folder, self.watcher, **self._options)

    def video(
        self, name: str, portrait: Path, sound: Path, *, variant: str = "", **options: Any
    ) -> Watched:
        """The video of this name, made and watched; `variant` says how the model was changed."""
        out = self.folder / f"{name}.mp4"
        wanted = GenerateOptions(**(self._options | options))
        request = Request(
            portrait=portrait,
            audio=sound,
            out=out,
            options=wanted,
            overwrite=True,
            resume=True,
            quiet=True,
        )
        made_of = {
            "code": code_digest(),
            "dtype": str(self.engine.dtype),
            "model": self.engine.digest + variant,
            "portrait": sha256_of(portrait),
            "sound": sha256_of(sound),
            "options": asdict(wanted),
        }
        stamp = report_path(out).with_suffix(".made.json")
        if not (out.exists() and stamp.exists() and json.loads(stamp.read_text()) == made_of):
            stamp.unlink(missing_ok=True)
            make_video(self.engine, request)
            stamp.write_text(json.dumps(made_of), encoding="utf-8")
        return self.watcher.generated(out, portrait)


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """A small square of a picture's middle, [THUMBNAIL, THUMBNAIL, 3] uint8."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(picture[top : top + side, left : left + side])
    return np.asarray(square.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def write_sheet(path: Path, rows: Sequence[Sequence[np.ndarray]], columns: int = 12) -> None:
    """A contact sheet: of each row the first picture, of the others as many as fit, evenly."""
    columns = min(columns, max(len(row) for row in rows))
    cells = np.full((len(rows), columns, THUMBNAIL, THUMBNAIL, 3), 255, np.uint8)
    for y, row in enumerate(rows):
        others = np.linspace(1, len(row) - 1, min(len(row), columns) - 1).round().astype(int)
        for x, number in enumerate([0, *others]):
            cells[y, x] = row[number]
    sheet = cells.transpose(0, 2, 1, 3, 4).reshape(len(rows) * THUMBNAIL, columns * THUMBNAIL, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)
