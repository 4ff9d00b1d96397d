"""Small files, archives and manifests for the download tests."""

from __future__ import annotations

import hashlib
import io
import os
import random
import zipfile
from pathlib import Path

from hub_imitation import REPOSITORY

from emo_cli.weights import (
    HubSource,
    Manifest,
    PackageSource,
    WeightFile,
)

BIG = random.Random(1).randbytes(300_000)  # in LFS
SMALL = b'{"width": 8}'  # not in LFS
TOKEN = "hf_" + "x" * 20


def weight_file(name: str, source, **changes) -> WeightFile:
    plain = {"sha256": "", "bytes": None, "convert": "", "licence": "CC0", "used_by": "tests"}
    return WeightFile(name=name, source=source, **{**plain, **changes})


def manifest_of(*files: WeightFile) -> Manifest:
    return Manifest(groups={file.group: "for tests" for file in files}, files=files)


def hub_source(path: str = "net/big.safetensors", commit: str = "") -> HubSource:
    return HubSource(repository=REPOSITORY, path=path, branch="main", commit=commit)


def hub_manifest() -> Manifest:
    return manifest_of(
        weight_file("full/net/config.json", hub_source("net/config.json")),
        weight_file("full/net/big.safetensors", hub_source()),
    )


def only_big(**changes) -> Manifest:
    return manifest_of(weight_file("full/big.safetensors", hub_source(), **changes))


def loadable_files(folder: Path) -> list[Path]:
    """Everything under `folder` that a program could take for weights."""
    leftovers = (".lock", ".part", ".etag", ".json", ".TAG")
    return [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(leftovers)]


def wheel(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return stream.getvalue()


def package_file(name: str, archive: str, packed: bytes, member: str, content: bytes, **changes):
    source = PackageSource(
        package="net",
        version="1.0",
        archive=archive,
        archive_sha256=hashlib.sha256(packed).hexdigest(),
        archive_bytes=len(packed),
        member=member,
    )
    digest = hashlib.sha256(content).hexdigest()
    return weight_file(name, source, **{"sha256": digest, "bytes": len(content), **changes})


class Trap:
    """Pickles to a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))
