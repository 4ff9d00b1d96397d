"""Which videos belong together: the same place in their folders, without the ending.

A video's key is its path inside its folder, with `/` between parts and without the suffix:
`GENERATED/anna/take1.mp4` and `REAL/anna/take1.mkv` both have the key `anna/take1`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from emo_cli.errors import EmoError
from emo_cli.raw_video import VIDEO_SUFFIXES

PICTURE_SUFFIXES = {".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True, kw_only=True)
class VideoFolder:
    """One system's videos, or the real ones."""

    name: str
    folder: Path
    videos: Mapping[str, Path]  # by key, sorted


def open_videos(name: str, folder: Path) -> VideoFolder:
    """All videos below a folder.

    Raises: EmoError when it is no folder, holds no video, or two videos with one key.
    """
    found = by_key(folder, VIDEO_SUFFIXES)
    if not found:
        raise EmoError(f"there is no video in {folder}", "Name a folder that holds videos.")
    return VideoFolder(name=name, folder=folder, videos=found)


def open_portraits(folder: Path) -> dict[str, Path]:
    """All pictures below a folder, by key.

    Raises: EmoError when it is no folder, holds no picture, or two pictures with one key.
    """
    found = by_key(folder, PICTURE_SUFFIXES)
    if not found:
        raise EmoError(f"there is no picture in {folder}", "Name a folder that holds portraits.")
    return found


def portrait_of(key: str, portraits: Mapping[str, Path]) -> Path | None:
    """The picture with the video's key, else the one whose key it begins with, up to a `_`:
    `emo generate` names its videos PORTRAIT_SOUND. The longest such name wins."""
    if key in portraits:
        return portraits[key]
    for end in reversed([i for i, letter in enumerate(key) if letter == "_"]):
        if key[:end] in portraits:
            return portraits[key[:end]]
    return None


def keep_common(folders: Collection[VideoFolder]) -> list[VideoFolder]:
    """The folders, each with only the videos that all of them have.

    Raises: EmoError when there is none.
    """
    shared = set.intersection(*(set(folder.videos) for folder in folders))
    if not shared:
        raise EmoError(
            "no video has the same name in all folders",
            "Name them alike (sub-folders count, endings do not), or leave --paired out.",
        )
    return [
        VideoFolder(
            name=folder.name,
            folder=folder.folder,
            videos={key: path for key, path in folder.videos.items() if key in shared},
        )
        for folder in folders
    ]


def missing_keys(keys: Collection[str], wanted: Collection[str]) -> list[str]:
    """What of `wanted` is not among `keys`, sorted."""
    return sorted(set(wanted) - set(keys))


def by_key(root: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """Files below a folder with one of these endings, by their place in it, sorted.

    Raises: EmoError when it is no folder, or two files differ by their endings only.
    """
    if not root.is_dir():
        problem = "is not a folder" if root.exists() else "does not exist"
        raise EmoError(f"{root} {problem}", "Check the path.")
    found: dict[str, Path] = {}
    for path in _files(root, suffixes):
        key = path.relative_to(root).with_suffix("").as_posix()
        if key in found:
            raise EmoError(
                f"{found[key]} and {path.name} have one name but for the ending",
                "Remove or rename one of them: names pair generated with real videos.",
            )
        found[key] = path
    return dict(sorted(found.items()))


def _files(root: Path, suffixes: Collection[str]) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            # Hidden: what an interrupted run of emo or of a copying program left.
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):
                yield Path(folder, name)
