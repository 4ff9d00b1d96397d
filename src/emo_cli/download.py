"""`emo download`: bring groups of weights here, list them, verify them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from emo_cli.errors import EmoError
from emo_cli.fetch.groups import FileStatus, Progress, download, size_text, status
from emo_cli.weights import Manifest, load_manifest, weights_folder

__all__ = ["FileStatus", "download", "download_command", "status"]


def download_command(
    groups: Annotated[
        list[str] | None,
        typer.Argument(help="Groups to bring, or 'all'; without one the groups are shown."),
    ] = None,
    list_files: Annotated[
        bool, typer.Option("--list", help="Show each file: state, size, licence, what uses it.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the digest of every file that lies here.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be fetched; fetch nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Bring the weights that training `full` and `emo eval` need."""
    manifest, names = load_manifest(), groups or []
    if list_files or verify:
        found = status(names, verify=verify, manifest=manifest)
        _show(found, as_json)
        _refuse_damaged(found)
    elif not names:
        _show_groups(manifest, as_json)
    elif dry_run:
        found = download(names, dry_run=True, manifest=manifest)
        _show([entry for entry in found if entry.state != "present"], as_json)
    else:
        with _progress(quiet) as progress:
            found = download(names, progress=progress, manifest=manifest)
        if as_json:
            _show(found, as_json)
        else:
            typer.echo("\n".join(entry.path or "" for entry in found))


def _refuse_damaged(found: list[FileStatus]) -> None:
    damaged = [entry for entry in found if entry.state == "damaged"]
    if damaged:
        groups = " ".join(sorted({entry.group for entry in damaged}))
        raise EmoError(
            f"{len(damaged)} of {len(found)} files are damaged; they are not loaded",
            f"Run `emo download {groups}`: it fetches them again.",
        )


def _show(found: list[FileStatus], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(entry) for entry in found], indent=2))
        return
    rows = [
        (e.name, e.state, _pinned_text(e), size_text(e.bytes), e.licence, e.used_by) for e in found
    ]
    _table(("file", "state", "pinned by", "size", "licence", "used by"), rows)
    unknown = sum(entry.bytes is None for entry in found)
    total = size_text(sum(entry.bytes or 0 for entry in found))
    note = f", {unknown} of unknown size" if unknown else ""
    typer.echo(f"{len(found)} files, {total}{note}; weights folder: {weights_folder()}", err=True)


def _pinned_text(entry: FileStatus) -> str:
    return {"no": "-", "lock": "lock file"}.get(entry.pinned, entry.pinned)


def _show_groups(manifest: Manifest, as_json: bool) -> None:
    found = status([], manifest=manifest)
    groups = [
        {
            "group": group,
            "files": sum(entry.group == group for entry in found),
            "present": sum(e.group == group and e.state == "present" for e in found),
            "title": title,
        }
        for group, title in manifest.groups.items()
    ]
    if as_json:
        typer.echo(json.dumps(groups, indent=2))
        return
    rows = [(str(g["group"]), f"{g['present']} of {g['files']}", str(g["title"])) for g in groups]
    _table(("group", "files here", "what it is"), rows)
    typer.echo("`emo download GROUP` brings one, `--list` shows each file.", err=True)


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """On a terminal a table as wide as that, else one line a row with tabs between."""
    if not sys.stdout.isatty():
        typer.echo("\n".join("\t".join(row) for row in [header, *rows]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, int] = {}
    with Bars(*columns, console=Console(stderr=True), disable=quiet) as bars:

        def report(name: str, done: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)  # type: ignore[arg-type]

        yield report
