"""`emo train prepare`: raw videos to training shards, as often as you like to run it.

    find -> probe -> shots -> track -> crop at 25 fps, 16 kHz -> labels -> filters -> shard

`prepare_video.py` does the steps of one video in a process of its own; here their clips come
together, are written, and are noted. To go on after an interruption, run the same command again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_cli.errors import EmoError
from emo_cli.faces import FaceFinder
from emo_cli.files import walk_files
from emo_cli.raw_video import FPS, VIDEO_SUFFIXES, probe
from emo_cli.sound import SAMPLE_RATE_HZ
from emo_cli.training.annotations import (
    Span,
    Spans,
    WhoIs,
    read_identities,
    read_list,
    rows_digest,
    split_rule,
)
from emo_cli.training.prepare_records import Record, Records, count_up, video_name
from emo_cli.training.prepare_video import Dropped, VideoTask, WantedSpan, prepare_video
from emo_cli.training.samples import PackedSample
from emo_cli.training.shards import ShardWriter, refuse_others, write_json
from emo_cli.training.splits import HELD_OUT_SHARE
from emo_cli.video_workers import Failed, Finished, MakeTool, VideoWorkers

REPORT = "report.json"
WHOLE = Span(start_s=0.0, stop_s=None, identity="")


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What to prepare, and how."""

    raw: tuple[Path, ...]
    out: Path
    size: int = 512  # side of a clip's pictures
    workers: int = 1
    list: Path | None = None
    split_by: str | None = None
    held_out_share: float = HELD_OUT_SHARE  # of identities, where a rule of ours decides


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come; `videos` counts those finished in earlier runs too."""

    videos: int
    num_videos: int
    clips: int  # kept in this run
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RawVideo:
    """A file to prepare: where it is, and "FOLDER/PATH IN IT", which names it."""

    path: Path
    label: str
    num_bytes: int

    @property
    def name(self) -> str:
        return video_name(self.label, self.num_bytes)


def prepare(
    options: PrepareOptions,
    *,
    make_finder: MakeTool = FaceFinder,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Prepare what is missing; returns the report, which also lies in the dataset's folder.

    Raises: EmoError when there is no video, for a list, pattern or CSV that will not do, a full
    disk, or a machine where faces cannot be found. A broken video raises nothing.
    """
    wanted = _Wanted(options)
    num_videos = sum(1 for _ in wanted.videos())
    if num_videos == 0:
        names = ", ".join(map(str, options.raw))
        raise EmoError(f"there is no video in {names}", "Name folders that hold videos, or videos.")
    records = Records(options.out)
    with (
        ShardWriter(options.out, wanted.about()) as writer,
        VideoWorkers(options.workers, make_finder, prepare_video) as workers,
    ):
        records.catch_up()
        work = _Run(wanted, records, writer)
        for task, event in workers.run(work.tasks(), proven=writer.num_samples > 0):
            work.take(task, event)
            progress(work.progress(num_videos))
    report = count_up(records.all(), options.out)
    write_json(options.out / REPORT, report)
    return report


class _Run:
    """One run over all videos: what is left to do, and what comes of it."""

    def __init__(self, wanted: _Wanted, records: Records, writer: ShardWriter) -> None:
        self._wanted = wanted
        self._records = records
        self._writer = writer
        self._open: dict[str, Record] = {}  # of the videos in work
        self._started = time.monotonic()
        self._videos = self._clips = 0

    def tasks(self) -> Iterator[VideoTask]:
        """What the videos still lack, one at a time; last what has failed before."""
        failed: dict[str, tuple[VideoTask, Record]] = {}
        for video in self._wanted.videos():
            record = self._records.read(video.name, video.label)
            task = None if record.finished else self._wanted.task(video, record)
            if task is None or task.name in self._open or task.name in failed:
                self._videos += 1
                if task is None and not record.finished:
                    why = self._wanted.why_not(video)
                    record.note(Dropped(key=None, step="list", reason=why))
                    self._records.write(video.name, record)
            elif record.failed:
                failed[task.name] = task, record
            else:
                yield self._begin(task, record)
        for task, record in failed.values():
            yield self._begin(task, record)

    def _begin(self, task: VideoTask, record: Record) -> VideoTask:
        record.dropped = None
        self._open[task.name] = record
        return task

    def take(self, task: VideoTask, event: Any) -> None:
        """Write and note what a worker says."""
        if isinstance(event, PackedSample):
            self._writer.add(event)  # before the record: `catch_up` mends what a kill leaves
            self._clips += 1
        self._open[task.name].note(event)
        self._records.write(task.name, self._open[task.name])
        if isinstance(event, Finished | Failed):
            del self._open[task.name]
            self._videos += 1

    def progress(self, num_videos: int) -> Progress:
        """How far the run has come."""
        return Progress(
            videos=self._videos,
            num_videos=num_videos,
            clips=self._clips,
            seconds=time.monotonic() - self._started,
        )


def look(options: PrepareOptions) -> dict[str, Any]:
    """What `prepare` would find, without writing anything: `--dry-run`.

    Raises: EmoError as `prepare` does.
    """
    wanted = _Wanted(options)
    refuse_others(options.out, wanted.about())
    records = Records(options.out)
    counts = {"videos": 0, "finished": 0, "to_do": 0, "without_sound": 0, "hours": 0.0}
    reasons: dict[str, dict[str, Any]] = {}

    def drop(video: RawVideo, reason: str) -> None:
        row = reasons.setdefault(reason, {"videos": 0, "clips": 0, "examples": []})
        row["videos"] += 1
        row["examples"] = [*row["examples"], video.label][:3]

    for video in wanted.videos():
        counts["videos"] += 1
        record = records.read(video.name, video.label)
        if record.finished:
            counts["finished"] += 1
        elif wanted.task(video, record) is None:
            drop(video, f"list: {wanted.why_not(video)}")
        else:
            try:
                found = probe(video.path)
                counts["to_do"] += 1
                counts["hours"] += found.duration_s / 3600
                counts["without_sound"] += not found.has_sound
            except EmoError as problem:
                drop(video, f"probe: {problem.message}")
    return counts | {"reasons": reasons}


class _Wanted:
    """The raw videos, and what of each is wanted."""

    def __init__(self, options: PrepareOptions) -> None:
        self._options = options
        self._spans: Spans | None = read_list(options.list) if options.list else None
        self._who_is: WhoIs = split_rule(options.split_by, options.held_out_share)
        for path in options.raw:
            if not path.exists():
                raise EmoError(
                    f"{path} does not exist", "Name folders that hold videos, or videos."
                )

    def about(self) -> dict[str, Any]:
        """What all clips of the dataset share."""
        options = self._options
        return {
            "size": options.size,
            "fps": FPS,
            "sample_rate_hz": SAMPLE_RATE_HZ,
            # With two rules in one dataset a person could be on both sides.
            "split_by": options.split_by,
            "split_by_rows": rows_digest(read_identities(options.split_by, options.held_out_share)),
            "held_out_share": options.held_out_share,
            # Finished videos are not looked at again: another list would not reach them.
            "list_rows": rows_digest(self._spans),
        }

    def videos(self) -> Iterator[RawVideo]:
        """All videos, in an order that does not change; memory holds one folder's names."""
        for root in self._options.raw:
            for path in _files(root):
                folder = root.parent if root.is_file() else root
                label = Path(folder.resolve().name, path.relative_to(folder)).as_posix()
                try:
                    num_bytes = path.stat().st_size
                except OSError:
                    num_bytes = -1  # a broken link: probing it will say so
                yield RawVideo(path=path, label=label, num_bytes=num_bytes)

    def task(self, video: RawVideo, record: Record) -> VideoTask | None:
        """What is left to do; None where the list or the split rule does not know the video."""
        spans = [WHOLE] if self._spans is None else self._spans.get(video.path.stem, [])
        wanted = []
        for span in spans:
            known = self._who_is(video.path, span.identity)
            if known is not None:
                wanted.append(WantedSpan(span=span, identity=known[0], split=known[1]))
        if not wanted:
            return None
        return VideoTask(
            name=video.name,
            path=video.path,
            spans=tuple(wanted),
            size=self._options.size,
            shots=record.stretches(),
            done=frozenset(record.clips),
        )

    def why_not(self, video: RawVideo) -> str:
        """Why there is no task for it."""
        if self._spans is not None and video.path.stem not in self._spans:
            return "not in the list"
        return "no identity by --split-by"


def _files(root: Path) -> Iterator[Path]:
    """Video files below a folder, or the file itself, sorted folder by folder."""
    if root.is_file():
        yield root
        return
    yield from (path for path in walk_files(root) if path.suffix.lower() in VIDEO_SUFFIXES)
