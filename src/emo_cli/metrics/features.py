"""Features of whole folders: what lies in the cache, and reading the videos that lack some."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from emo_cli.errors import EmoError
from emo_cli.faces import LANDMARKER
from emo_cli.files import sha256_of
from emo_cli.metrics import decode
from emo_cli.metrics.cache import Entry, entry_path, read_entry
from emo_cli.metrics.contract import Extractor, VideoFeatures, VideoInfo
from emo_cli.metrics.pairing import VideoFolder, portrait_of
from emo_cli.output_file import report_path
from emo_cli.raw_video import probe
from emo_cli.video_workers import Failed, VideoWorkers

# Told what is going on, how many videos are done, and of how many.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One video of a set, and where its features lie, by extractor."""

    key: str
    info: VideoInfo
    entries: Mapping[str, Path]

    @property
    def content(self) -> tuple[Path, ...]:
        """Equal for two videos that are the same file by another name."""
        return tuple(self.entries.values())

    def missing(self) -> dict[str, Path]:
        """The extractors whose features are not there yet."""
        return {name: path for name, path in self.entries.items() if read_entry(path) is None}


@dataclass(frozen=True, kw_only=True)
class VideoSet:
    """The usable videos of a folder, and why the others are not."""

    folder: VideoFolder
    items: tuple[Item, ...]
    skipped: Mapping[str, str]  # reason by key

    def features(self, extractor: str) -> Iterator[VideoFeatures]:
        """What the extractor made of each video, one at a time from disk."""
        for item in self.items:
            yield VideoFeatures(
                key=item.key, info=item.info, arrays=self.entry(item, extractor).arrays
            )

    def entry(self, item: Item, extractor: str) -> Entry:
        """An entry that has been filled. Raises: EmoError when it was taken away meanwhile."""
        entry = read_entry(item.entries[extractor])
        if entry is None:
            raise EmoError(
                f"the features of {item.key} are gone from {item.entries[extractor].parent}",
                "Run the same command again.",
            )
        return entry

    def without(self, reasons: Mapping[tuple[Path, ...], str]) -> VideoSet:
        """The set less the videos whose content has a reason against it."""
        bad = {item.key: reasons[item.content] for item in self.items if item.content in reasons}
        return VideoSet(
            folder=self.folder,
            items=tuple(item for item in self.items if item.key not in bad),
            skipped={**self.skipped, **bad},
        )


def cache_digests(extractors: Iterable[Extractor]) -> dict[str, str]:
    """By name, all that an extractor's features depend on but for the video itself.

    Raises: EmoError when an extractor's network is not here.
    """
    faces = f"{decode.FACES} {_sha256(LANDMARKER)}"
    return {
        extractor.name: " | ".join(
            [extractor.digest, decode.PROTOCOL, *([faces] if extractor.wants_faces else [])]
        )
        for extractor in extractors
    }


def index_videos(
    folder: VideoFolder,
    *,
    portraits: Mapping[str, Path],
    cache: Path,
    digests: Mapping[str, str],
    progress: Progress,
) -> VideoSet:
    """Every video of a folder looked at, none decoded."""
    items: list[Item] = []
    skipped: dict[str, str] = {}
    for i, (key, path) in enumerate(folder.videos.items()):
        try:
            items.append(_item(key, path, portrait_of(key, portraits), cache, digests))
        except EmoError as problem:
            skipped[key] = problem.message
        except OSError as error:
            skipped[key] = f"unreadable: {error.strerror or error}"
        progress(f"{folder.name}: looking", i + 1, len(folder.videos))
    return VideoSet(folder=folder, items=tuple(items), skipped=skipped)


def _item(
    key: str, path: Path, portrait: Path | None, cache: Path, digests: Mapping[str, str]
) -> Item:
    found = probe(path)
    report = report_path(path)
    contents = [
        sha256_of(path),
        _sha256(portrait) if portrait else "",
        sha256_of(report) if report.is_file() else "",
    ]
    info = VideoInfo(
        path=path,
        fps=found.fps,
        size=(found.width, found.height),
        has_sound=found.has_sound,
        portrait=portrait,
    )
    entries = {
        name: entry_path(cache, extractor=name, digest=digest, contents=contents)
        for name, digest in digests.items()
    }
    return Item(key=key, info=info, entries=entries)


@functools.cache
def _sha256(path: Path) -> str:
    return sha256_of(path)


def fill(
    sets: Sequence[VideoSet],
    *,
    make_extractors: decode.MakeExtractors,
    make_finder: decode.MakeFinder = decode.face_finder,
    workers: int,
    progress: Progress,
) -> list[VideoSet]:
    """Decodes what lacks features, each video once; the sets come back less what could not be.

    Raises: EmoError when workers cannot work at all on this machine.
    """
    todo = {
        item.content: decode.ReadingTask(info=item.info, missing=missing)
        for videos in sets
        for item in videos.items
        if (missing := item.missing())
    }
    if not todo:
        return list(sets)
    reasons: dict[Path, str] = {}
    make_tools = partial(decode.open_tools, make_extractors, make_finder)
    done = 0
    progress("reading", 0, len(todo))
    with VideoWorkers(min(workers, len(todo)), make_tools, decode.read_video) as pool:
        for task, event in pool.run(iter(todo.values())):
            if isinstance(event, decode.Skipped | Failed):
                reasons[task.info.path] = event.reason
            if not isinstance(event, decode.Skipped):  # its last event
                done += 1
                progress("reading", done, len(todo))
    bad = {
        content: reasons[task.info.path]
        for content, task in todo.items()
        if task.info.path in reasons
    }
    return [videos.without(bad) for videos in sets]
