"""Datasets of puppets: `emo train prepare --stills STILLS --drivers CLIPS --out DATASET`."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.faces import FaceFinder
from emo_cli.picture import read_picture
from emo_cli.raw_video import FPS, probe, read_frames, read_sound
from emo_cli.training.draws import derive_seed
from emo_cli.training.prepare_records import Records
from emo_cli.training.prepare_video import Dropped
from emo_cli.training.puppets.clip import make_clip, still_of_picture
from emo_cli.training.puppets.driver import Driver, read_driver
from emo_cli.training.puppets.ict import FaceShapes, read_face_shapes
from emo_cli.training.puppets.jobs import (
    PUPPETS,
    SPEECH,
    Job,
    Puppets,
    missing_jobs,
    phones_of,
    plan_jobs,
)
from emo_cli.training.puppets.sound import (
    QUIET_AFTER,
    QUIET_BEFORE,
    as_recorded,
    quiet_frames,
    with_quiet_ends,
)
from emo_cli.training.puppets.visemes import viseme_driver
from emo_cli.training.samples import PackedSample, pack_sample
from emo_cli.training.shards import ShardWriter
from emo_cli.training.splits import identity
from emo_cli.video_workers import Failed, Finished, MakeTool, VideoWorkers

SHORTEST, LONGEST = 16, 250  # frames of a clip
Say = Callable[[str], None]
Progress = Callable[[int, int], None]  # clips in the dataset, clips wanted


def write_puppets(
    puppets: Puppets,
    *,
    workers: int = 1,
    say: Say = lambda line: None,
    progress: Progress = lambda done, total: None,
    make_finder: MakeTool = FaceFinder,
) -> int:
    """Bring a dataset to its number of clips; only those that are missing are made.

    Returns how many were written; a still or driver that cannot be used is reported by `say`, and
    its clips are left out. What has failed otherwise is tried again by the next run. Raises:
    EmoError when there are no pictures or no clips, the folder cannot be written, or no worker
    can work.
    """
    if left_out := puppets.count - len(plan_jobs(puppets)):
        say(f"{left_out} clips are left out: held-out stills need held-out drivers, others others")
    written = 0
    records = Records(puppets.out, PUPPETS)
    make_tool = functools.partial(_tool, make_finder, workers)
    with ShardWriter(puppets.out, puppets.about()) as writer:
        jobs = missing_jobs(puppets)  # now that the writer has cut off what a kill left behind
        done = puppets.count - len(jobs)
        with VideoWorkers(min(workers, len(jobs)), make_tool, _work) as pool:
            for job, event in pool.run(iter(jobs), proven=writer.num_samples > 0):
                if isinstance(event, PackedSample):
                    writer.add(event)
                    written += 1
                elif isinstance(event, Dropped | Failed):
                    what = "failed" if isinstance(event, Failed) else "dropped"
                    say(f"{what} {job.key} ({job.files}): {event.reason}")
                record = records.read(job.record, job.files)
                record.note(event)
                records.write(job.record, record)
                done += isinstance(event, Finished | Failed)
                progress(done, puppets.count)
    return written


def make_sample(job: Job, finder: FaceFinder) -> PackedSample | str:
    """A job's clip as a shard takes it, or why it cannot be made."""
    try:
        still = still_of_picture(read_picture(job.still), job.plan, finder, job.size)
        if still is None:
            return "no face that looks at the camera"
        spoken = _synthesised if job.driver.suffix == SPEECH else _filmed
        driver, sound = spoken(job, finder)
        pauses = None if sound is None else quiet_frames(sound)
        clip = make_clip(still, driver, job.plan, pauses)
        if sound is not None:
            sound = as_recorded(sound, derive_seed(job.plan.seed, "recording"))
        return pack_sample(
            key=job.key,
            identity=identity(job.still),
            split=job.split,
            frames=clip.frames,
            labels=clip.labels,
            sound=sound,
            source=clip.source | {"still": job.still.name, "driver": job.driver.name},
        )
    except EmoError as error:
        return error.message


@contextlib.contextmanager
def _tool(make_finder: MakeTool, workers: int) -> Iterator[FaceFinder]:
    """What a worker process opens once."""
    import torch

    if workers > 1:
        torch.set_num_threads(1)
    with make_finder() as finder:
        yield finder


def _work(
    job: Job, finder: FaceFinder, beat: Callable[[], None]
) -> Iterator[PackedSample | Dropped]:
    made = make_sample(job, finder)
    yield Dropped(key=None, step="puppet", reason=made) if isinstance(made, str) else made


@functools.lru_cache(maxsize=1)
def _shapes(path: Path) -> FaceShapes:
    with FaceFinder() as finder:
        return read_face_shapes(path, finder)


def _filmed(job: Job, finder: FaceFinder) -> tuple[Driver, np.ndarray | None]:
    """Motion and sound of a driving clip.

    Raises: EmoError when it cannot be read or shows no face throughout.
    """
    clip = probe(job.driver)
    count = min(LONGEST, round(clip.duration_s * FPS))
    driver = read_driver(read_frames(job.driver, 0, count), finder)
    if driver is None:
        raise EmoError("no face throughout the clip", "Choose clips of one person who talks.")
    sound = read_sound(job.driver, 0, driver.num_frames) if clip.has_sound else None
    return driver, sound


def _synthesised(job: Job, _: FaceFinder) -> tuple[Driver, np.ndarray | None]:
    """Motion and sound of synthesised speech.

    Raises: EmoError when sound or phonemes cannot be read.
    """
    import soundfile

    assert job.shapes is not None
    try:
        length_s = soundfile.info(str(job.driver)).duration
        driver = viseme_driver(
            _shapes(job.shapes),
            phones_of(job.driver),
            length_s,
            derive_seed(job.plan.seed, "habit"),
        )
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise EmoError(f"no speech with phonemes: {error}", "Synthesise it again.") from error
    driver = Driver(moves=driver.moves[: LONGEST - QUIET_BEFORE[1] - QUIET_AFTER[1]])
    if driver.num_frames < SHORTEST:
        raise EmoError(f"shorter than {SHORTEST} frames", "Synthesise longer sentences.")
    sound = read_sound(job.driver, 0, driver.num_frames)
    assert sound is not None  # soundfile has read it
    return with_quiet_ends(driver, sound, derive_seed(job.plan.seed, "rest"))
