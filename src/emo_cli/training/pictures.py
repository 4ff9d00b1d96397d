"""Pictures to train on: images and frames of videos, decoded once into a flat file of uint8.

Legend: `H W` a picture's own size, `S` the size of a crop; arrays are RGB uint8 [H, W, 3].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emo_cli.errors import EmoError
from emo_cli.files import find_files, write_atomically
from emo_cli.raw_video import VIDEO_SUFFIXES
from emo_cli.training.splits import is_held_out

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
FRAMES_PER_VIDEO = 2  # frames of one clip show nearly the same
LONGEST_KEPT = 512  # pixels of the shorter side; larger pictures are reduced

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # PIL's and PyAV's

Uint8Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Stored:
    """Where one picture lies in the cache, and what it was made from."""

    file: str
    source: int  # which of the folders named on the command line
    held_out: bool
    offset: int
    height: int
    width: int


class PictureCache:
    """Decoded pictures, mapped from disk: memory does not grow with their number."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "pictures.json").read_text(encoding="utf-8"))
        self.digest: str = index["digest"]
        self.source_names: list[str] = index["sources"]
        self.stored = [Stored(**entry) for entry in index["pictures"]]
        self.pixels = np.memmap(folder / "pictures.bin", dtype=np.uint8, mode="r")

    def __getitem__(self, stored: Stored) -> Uint8Array:
        """The picture, [H, W, 3] uint8, not copied."""
        end = stored.offset + stored.height * stored.width * 3
        return self.pixels[stored.offset : end].reshape(stored.height, stored.width, 3)

    def files(self, source: int, *, held_out: bool) -> list[list[Stored]]:
        """Pictures of one source, grouped by the file they come from."""
        groups: dict[str, list[Stored]] = {}
        for stored in self.stored:
            if stored.source == source and stored.held_out == held_out:
                groups.setdefault(stored.file, []).append(stored)
        return list(groups.values())


def open_picture_cache(
    sources: list[Path], folder: Path, say: Callable[[str], None]
) -> PictureCache:
    """The cache in `folder`, made first if it is not there or was made from other files.

    Raises: EmoError when a source is missing or holds no picture or video, or none can be read.
    """
    files = [find_pictures(source) for source in sources]
    digest = hashlib.sha256()
    for source, found in zip(sources, files, strict=True):
        digest.update(f"{source.name}/\n".encode())
        for path in found:
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
    index = folder / "pictures.json"
    if index.exists() and json.loads(index.read_text())["digest"] == digest.hexdigest():
        return PictureCache(folder)
    say(f"decoding {sum(map(len, files))} pictures and videos")
    folder.mkdir(parents=True, exist_ok=True)
    index.unlink(missing_ok=True)
    entries = _write_pixels(files, folder / "pictures.bin", say)
    if not entries:
        raise EmoError("none of the files can be read", "Name folders with pictures or videos.")
    values = {
        "digest": digest.hexdigest(),
        "sources": [source.name for source in sources],
        "pictures": entries,
    }
    write_atomically(index, json.dumps(values))  # last: an index means a complete cache
    return PictureCache(folder)


def find_pictures(source: Path) -> list[Path]:
    """All pictures and videos under a folder, sorted; or the one file that was named."""
    kinds = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return find_files(source, kinds, what="picture and no video", option="--pictures")


def random_crop(picture: Uint8Array, size: int, seed: int) -> NDArray[np.float32]:
    """A crop as the model will meet it, [3, S, S] in [-1, 1], a pure function of the seed.

    As large as a window of S pixels on the picture reduced to 256 pixels, times 0.8 to 1.25;
    nearer the middle, where faces are; mirrored half of the time; colours a little shifted.
    """
    rng = np.random.default_rng(seed)
    height, width, _ = picture.shape
    scale = min(height, width) / 256 * np.exp(rng.uniform(np.log(0.8), np.log(1.25)))
    side = min(size * scale, height, width)
    left, top = ((length - side) * rng.random(2).mean() for length in (width, height))
    reduced = Image.fromarray(picture).resize(
        (size, size),
        rng.choice([Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]),
        box=(left, top, left + side, top + side),
    )
    colours = np.asarray(reduced, dtype=np.float32) / 127.5 - 1
    colours = colours[:, :: rng.choice([-1, 1])]
    colours = colours * rng.uniform(0.9, 1.1, 3) * rng.uniform(0.9, 1.1)
    colours = colours + rng.uniform(-0.06, 0.06, 3) + rng.uniform(-0.06, 0.06)
    return np.ascontiguousarray(colours.clip(-1, 1).transpose(2, 0, 1), dtype=np.float32)


def whole_picture(picture: Uint8Array, size: int) -> NDArray[np.float32]:
    """The largest centred square at size x size, [3, S, S] in [-1, 1]."""
    height, width, _ = picture.shape
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    reduced = Image.fromarray(picture).resize(
        (size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
    )
    return np.asarray(reduced, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1


def _write_pixels(
    files: list[list[Path]], path: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    with path.open("wb") as out:
        for source, found in enumerate(files):
            for file in found:
                try:
                    pictures = list(_decode(file))
                except UNREADABLE as error:
                    say(f"dropped {file}: {error}")
                    continue
                for picture in pictures:
                    entry = {"file": str(file), "source": source, "held_out": is_held_out(file)}
                    height, width, _ = picture.shape
                    entry |= {"offset": out.tell(), "height": height, "width": width}
                    entries.append(entry)
                    out.write(picture.tobytes())
    return entries


def _decode(file: Path) -> Iterator[Uint8Array]:
    if file.suffix.lower() in IMAGE_SUFFIXES:
        with Image.open(file) as image:
            yield np.asarray(_reduced(image.convert("RGB")))
        return
    import av

    with av.open(str(file)) as container:  # PyAV's errors are OSError or ValueError
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        for part in range(FRAMES_PER_VIDEO):
            share = (2 * part + 1) / (2 * FRAMES_PER_VIDEO)
            frame = _frame_at(container, stream, share)
            yield np.asarray(_reduced(Image.fromarray(frame.to_ndarray(format="rgb24"))))


def _frame_at(container: Any, stream: Any, share: float) -> Any:
    """The first frame at or after a share of the duration; decodes from the key frame before."""
    target = int((stream.duration or 0) * share) + (stream.start_time or 0)
    container.seek(target, stream=stream)
    frame = None
    for frame in container.decode(stream):
        if frame.pts is None or frame.pts >= target:
            break
    if frame is None:
        raise ValueError("no frame can be decoded")
    return frame


def _reduced(image: Image.Image) -> Image.Image:
    scale = LONGEST_KEPT / min(image.size)
    if scale >= 1:
        return image
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)
