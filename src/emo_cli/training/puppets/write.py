"""Datasets of puppets: `emo train prepare --stills STILLS --drivers CLIPS --out DATASET`.

A driver is a video of one person who talks, or synthesised speech: NAME.wav beside NAME.phones.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.faces import FaceFinder
from emo_cli.picture import read_picture
from emo_cli.sound import SAMPLE_RATE_HZ
from emo_cli.training.annotations import HELD_OUT_SHARE
from emo_cli.training.draws import derive_seed, epoch_order
from emo_cli.training.pictures import IMAGE_SUFFIXES
from emo_cli.training.puppets.clip import Plan, make_clip, make_plan, still_of_picture
from emo_cli.training.puppets.driver import Driver, read_driver
from emo_cli.training.puppets.ict import FaceShapes, read_face_shapes
from emo_cli.training.puppets.visemes import viseme_driver
from emo_cli.training.raw_video import FPS, VIDEO_SUFFIXES, probe, read_frames, read_sound
from emo_cli.training.samples import PackedSample, Split, pack_sample
from emo_cli.training.shards import INDEX, ShardWriter, read_lines
from emo_cli.training.splits import identity, is_held_out

SHORTEST, LONGEST = 16, 250  # frames of a clip
SPEECH = ".wav"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip to make: who, who lends the speech, and what is drawn."""

    key: str
    still: Path
    driver: Path
    shapes: Path | None  # ICT-FaceKit's, for synthesised speech
    split: Split
    plan: Plan
    size: int


def write_puppets(
    stills: list[Path],
    drivers: list[Path],
    folder: Path,
    *,
    count: int,
    size: int,
    seed: int,
    say: Say,
    shapes: Path | None = None,
    workers: int = 1,
) -> int:
    """Bring a dataset to `count` puppet clips; only those that are missing are made.

    stills, drivers: files and folders; `shapes` is needed where drivers are speech. A held-out
    still speaks with a held-out driver's motion and belongs to the split "val". Returns how many
    clips were written; a still or driver that cannot be used is reported and its clips are left
    out.

    Raises: EmoError when there are no pictures or no clips, or the folder cannot be written.
    """
    jobs = plan_jobs(stills, drivers, shapes, count=count, size=size, seed=seed)
    written = 0
    # What `emo train prepare` says of videos: puppets and people may share a dataset.
    about = {
        "size": size,
        "fps": FPS,
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "split_by": None,
        "held_out_share": HELD_OUT_SHARE,
    }
    with ShardWriter(folder, about) as writer:
        known = {line["key"] for line in read_lines(folder)} if (folder / INDEX).exists() else set()
        missing = [job for job in jobs if job.key not in known]
        for job, made in _make_all(missing, workers):
            if isinstance(made, str):
                say(f"dropped {job.key} ({job.still.name}, {job.driver.name}): {made}")
                continue
            writer.add(made)
            written += 1
            say(f"{job.key}: {job.still.name} speaks {job.driver.name}")
    return written


def plan_jobs(
    stills: list[Path],
    drivers: list[Path],
    shapes: Path | None = None,
    *,
    count: int,
    size: int,
    seed: int,
) -> list[Job]:
    """All clips of a dataset, in order: every still comes once before any comes twice.

    Raises: EmoError when a folder holds nothing of use, or speech comes without shapes.
    """
    pictures = _files(stills, IMAGE_SUFFIXES, "picture", "--stills")
    found = _files(drivers, VIDEO_SUFFIXES | {SPEECH}, "clip", "--drivers")
    clips = [clip for clip in found if clip.suffix != SPEECH or _phones(clip).exists()]
    if shapes is None and any(clip.suffix == SPEECH for clip in clips):
        raise EmoError(
            "synthesised speech needs mouth shapes", "Name ICT-FaceKit's file with --shapes."
        )
    lent = {held_out: [c for c in clips if is_held_out(c) == held_out] for held_out in (0, 1)}
    jobs = []
    for index in range(count):
        turn, place = divmod(index, len(pictures))
        still = pictures[epoch_order(seed, turn, len(pictures))[place]]
        held_out = is_held_out(still)
        # Where all clips are on one side, the still alone decides.
        choice = lent[held_out] or clips
        turn, place = divmod(index, len(choice))
        jobs.append(
            Job(
                key=f"puppet-{seed}-{index:06d}",
                still=still,
                driver=choice[epoch_order(seed + 1, turn, len(choice))[place]],
                shapes=shapes,
                split="val" if held_out else "train",
                plan=make_plan(seed, index),
                size=size,
            )
        )
    return jobs


def make_sample(job: Job) -> PackedSample | str:
    """A job's clip as a shard takes it, or why it cannot be made."""
    try:
        picture = read_picture(job.still)
        still = still_of_picture(picture, job.plan, _finder(), job.size)
        if still is None:
            return "no face that looks at the camera"
        if job.driver.suffix == SPEECH:
            driver, sound = _synthesised(job)
        else:
            driver, sound = _filmed(job.driver)
        clip = make_clip(still, driver, job.plan)
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


def _make_all(jobs: list[Job], workers: int) -> Iterator[tuple[Job, PackedSample | str]]:
    """Samples in the jobs' order, at most a few ahead of the one that is written."""
    if workers <= 1:
        yield from ((job, make_sample(job)) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # MediaPipe and torch survive no fork
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        for first in range(0, len(jobs), 4 * workers):
            batch = jobs[first : first + 4 * workers]
            yield from zip(batch, pool.map(make_sample, batch), strict=True)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@functools.lru_cache(maxsize=1)
def _finder() -> FaceFinder:
    """One landmarker for all clips of a process; it ends with the process."""
    return FaceFinder().__enter__()


@functools.lru_cache(maxsize=1)
def _shapes(path: Path) -> FaceShapes:
    return read_face_shapes(path, _finder())


def _filmed(path: Path) -> tuple[Driver, np.ndarray | None]:
    """Motion and sound of a driving clip.

    Raises: EmoError when it cannot be read or shows no face throughout.
    """
    count = min(LONGEST, round(probe(path).duration_s * FPS))
    driver = read_driver(read_frames(path, 0, count), _finder())
    if driver is None:
        raise EmoError("no face throughout the clip", "Choose clips of one person who talks.")
    return driver, read_sound(path, 0, driver.num_frames)


def _synthesised(job: Job) -> tuple[Driver, np.ndarray | None]:
    """Motion and sound of synthesised speech.

    Raises: EmoError when sound or phonemes cannot be read.
    """
    import soundfile

    assert job.shapes is not None
    try:
        length_s = soundfile.info(str(job.driver)).duration
        driver = viseme_driver(
            _shapes(job.shapes), _phones(job.driver), length_s, derive_seed(job.plan.seed, "habit")
        )
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise EmoError(f"no speech with phonemes: {error}", "Synthesise it again.") from error
    driver = Driver(moves=driver.moves[:LONGEST])
    if driver.num_frames < SHORTEST:
        raise EmoError(f"shorter than {SHORTEST} frames", "Synthesise longer sentences.")
    return driver, read_sound(job.driver, 0, driver.num_frames)


def _phones(sound: Path) -> Path:
    return sound.with_suffix(".phones")


def _files(
    sources: list[Path], suffixes: set[str] | frozenset[str], what: str, option: str
) -> list[Path]:
    files = []
    for source in sources:
        if not source.exists():
            raise EmoError(f"{source} does not exist", f"{option} takes folders and files.")
        candidates = sorted(source.rglob("*")) if source.is_dir() else [source]
        files += [path for path in candidates if path.suffix.lower() in suffixes]
    if not files:
        raise EmoError(f"no {what} found", f"{option} takes folders and files.")
    return files
