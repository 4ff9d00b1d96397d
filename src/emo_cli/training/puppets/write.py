"""Datasets of puppets: `emo train prepare --stills STILLS --drivers CLIPS --out DATASET`.

A driver is a video of one person who talks, or synthesised speech: NAME.wav beside NAME.phones.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterator, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emo_cli.errors import EmoError
from emo_cli.faces import FaceFinder
from emo_cli.picture import read_picture
from emo_cli.raw_video import FPS, VIDEO_SUFFIXES, probe, read_frames, read_sound
from emo_cli.sound import SAMPLE_RATE_HZ
from emo_cli.training.draws import derive_seed, epoch_order
from emo_cli.training.pictures import IMAGE_SUFFIXES
from emo_cli.training.puppets.clip import (
    Plan,
    make_clip,
    make_plan,
    still_of_picture,
)
from emo_cli.training.puppets.driver import Driver, read_driver
from emo_cli.training.puppets.ict import FaceShapes, read_face_shapes
from emo_cli.training.puppets.sound import (
    QUIET_AFTER,
    QUIET_BEFORE,
    as_recorded,
    quiet_frames,
    with_quiet_ends,
)
from emo_cli.training.puppets.visemes import viseme_driver
from emo_cli.training.samples import PackedSample, Split, pack_sample
from emo_cli.training.shards import INDEX, ShardWriter, read_lines
from emo_cli.training.splits import HELD_OUT_SHARE, identity, is_held_out

SHORTEST, LONGEST = 16, 250  # frames of a clip
SPEECH = ".wav"
Say = Callable[[str], None]
Progress = Callable[[int, int], None]  # clips in the dataset, clips wanted


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


@dataclass(frozen=True, kw_only=True)
class Puppets:
    """A dataset of puppets: `count` clips of side `size` in the folder `out`.

    stills, drivers: files and folders; `shapes` is needed where drivers are speech.
    """

    stills: tuple[Path, ...]
    drivers: tuple[Path, ...]
    shapes: Path | None
    out: Path
    count: int
    size: int
    seed: int
    held_out_share: float = HELD_OUT_SHARE  # of identities


def write_puppets(
    puppets: Puppets,
    *,
    workers: int = 1,
    say: Say = lambda line: None,
    progress: Progress = lambda done, total: None,
) -> int:
    """Bring a dataset to its number of clips; only those that are missing are made.

    Returns how many were written; a still or driver that cannot be used is reported by `say`, and
    its clips are left out. Raises: EmoError when there are no pictures or no clips, or the folder
    cannot be written.
    """
    # What `emo train prepare` says of videos: puppets and people may share a dataset.
    about = {
        "size": puppets.size,
        "fps": FPS,
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "split_by": None,
        "held_out_share": puppets.held_out_share,
    }
    written = 0
    with ShardWriter(puppets.out, about) as writer:
        jobs = missing_jobs(puppets)  # now that the writer has cut off what a kill left behind
        for number, (job, made) in enumerate(_make_all(jobs, workers), 1):
            if isinstance(made, str):
                say(f"dropped {job.key} ({job.still.name}, {job.driver.name}): {made}")
            else:
                writer.add(made)
                written += 1
            progress(puppets.count - len(jobs) + number, puppets.count)
    return written


def missing_jobs(puppets: Puppets) -> list[Job]:
    """The clips that the folder does not hold yet."""
    jobs = plan_jobs(puppets)
    if not (puppets.out / INDEX).exists():
        return jobs
    known = {line["key"] for line in read_lines(puppets.out)}
    return [job for job in jobs if job.key not in known]


def plan_jobs(puppets: Puppets) -> list[Job]:
    """All clips of a dataset, in order: every still comes once before any comes twice.

    A held-out still speaks with a held-out driver's motion and belongs to the split "val", the
    others with the others'; a still without a driver on its side is left out. Raises: EmoError
    when a folder holds nothing of use, or speech comes without shapes.
    """
    pictures = _files(puppets.stills, IMAGE_SUFFIXES, "picture", "--stills")
    found = _files(puppets.drivers, VIDEO_SUFFIXES | {SPEECH}, "clip", "--drivers")
    clips = [clip for clip in found if clip.suffix != SPEECH or _phones(clip).exists()]
    if puppets.shapes is None and any(clip.suffix == SPEECH for clip in clips):
        raise EmoError(
            "synthesised speech needs mouth shapes", "Name ICT-FaceKit's file with --shapes."
        )
    if not clips:
        raise EmoError("no speech has phonemes", "--drivers takes videos and `emo train speech`'s.")
    share, seed, jobs = puppets.held_out_share, puppets.seed, []
    lent = {side: [c for c in clips if is_held_out(c, share) == side] for side in (False, True)}
    for index in range(puppets.count):
        still = _deal(pictures, seed, index)
        held_out = is_held_out(still, share)
        if not lent[held_out]:
            continue
        driver = _deal(lent[held_out], seed + 1, index)
        jobs.append(
            Job(
                key=f"puppet-{seed}-{index:06d}",
                still=still,
                driver=driver,
                shapes=puppets.shapes,
                split="val" if held_out else "train",
                plan=make_plan(seed, index),
                size=puppets.size,
            )
        )
    return jobs


def _deal(files: list[Path], seed: int, index: int) -> Path:
    """File `index` of an endless, shuffled pack."""
    turn, place = divmod(index, len(files))
    return files[epoch_order(seed, turn, len(files))[place]]


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


def _make_all(jobs: list[Job], workers: int) -> Iterator[tuple[Job, PackedSample | str]]:
    """Samples in the jobs' order, at most a few ahead of the one that is written."""
    if workers == 1:
        with FaceFinder() as finder:
            yield from ((job, make_sample(job, finder)) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")  # MediaPipe and torch survive no fork
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_work) as pool:
        for first in range(0, len(jobs), 4 * workers):
            batch = jobs[first : first + 4 * workers]
            yield from zip(batch, pool.map(_work, batch), strict=True)


_finder_at_work: FaceFinder | None = None  # of a worker process, which ends with it


def _begin_work() -> None:
    global _finder_at_work
    import torch

    torch.set_num_threads(1)
    _finder_at_work = FaceFinder().__enter__()


def _work(job: Job) -> PackedSample | str:
    assert _finder_at_work is not None
    return make_sample(job, _finder_at_work)


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
            _shapes(job.shapes), _phones(job.driver), length_s, derive_seed(job.plan.seed, "habit")
        )
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        raise EmoError(f"no speech with phonemes: {error}", "Synthesise it again.") from error
    driver = Driver(moves=driver.moves[: LONGEST - QUIET_BEFORE[1] - QUIET_AFTER[1]])
    if driver.num_frames < SHORTEST:
        raise EmoError(f"shorter than {SHORTEST} frames", "Synthesise longer sentences.")
    sound = read_sound(job.driver, 0, driver.num_frames)
    assert sound is not None  # soundfile has read it
    return with_quiet_ends(driver, sound, derive_seed(job.plan.seed, "rest"))


def _phones(sound: Path) -> Path:
    return sound.with_suffix(".phones")


def _files(sources: tuple[Path, ...], suffixes: Set[str], what: str, option: str) -> list[Path]:
    files = []
    for source in sources:
        if not source.exists():
            raise EmoError(f"{source} does not exist", f"{option} takes folders and files.")
        candidates = sorted(source.rglob("*")) if source.is_dir() else [source]
        files += [path for path in candidates if path.suffix.lower() in suffixes]
    if not files:
        raise EmoError(f"no {what} found", f"{option} takes folders and files.")
    return files
