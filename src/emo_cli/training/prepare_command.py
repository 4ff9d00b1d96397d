"""`emo train prepare` on the command line. Heavy imports wait until it runs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emo_cli.errors import EmoError
from emo_cli.training.splits import HELD_OUT_SHARE

if TYPE_CHECKING:
    from emo_cli.training.prepare import PrepareOptions, Progress
    from emo_cli.training.puppets.jobs import Puppets

SIZES = (512, 256)


def prepare_command(
    out: Annotated[Path, typer.Option(help="The dataset's folder; run again to go on.")],
    raw: Annotated[
        list[Path] | None, typer.Argument(help="Folders of videos, or videos.", show_default=False)
    ] = None,
    size: Annotated[int, typer.Option(help="Side of the square clips, 512 or 256.")] = SIZES[0],
    workers: Annotated[int, typer.Option(min=1, help="Videos prepared side by side.")] = 1,
    annotations: Annotated[
        Path | None,
        typer.Option("--list", help="Annotation list of HDTF, VFHQ or CelebV-HQ."),
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(
            help="Who is who: a CSV (video, identity, split), or a pattern whose group is the "
            "identity. Default: the folder's name and the file's up to the first '_'."
        ),
    ] = None,
    held_out: Annotated[
        float, typer.Option(min=0, max=1, help="Share of identities kept for validation.")
    ] = HELD_OUT_SHARE,
    audio_model: Annotated[
        str | None,
        typer.Option(help="Add sound features by this model: 'mini' or a model folder."),
    ] = None,
    latents: Annotated[
        str | None,
        typer.Option(help="Add latents by this model's autoencoder, for training on a CPU."),
    ] = None,
    stills: Annotated[
        list[Path] | None,
        typer.Option(help="Portraits that are to speak as puppets: folders, pictures."),
    ] = None,
    drivers: Annotated[
        list[Path] | None,
        typer.Option(help="Whose motion they take: videos of talkers, or `emo train speech`'s."),
    ] = None,
    shapes: Annotated[
        Path | None, typer.Option(help="ICT-FaceKit's shapes (npz), for synthesised speech.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many puppet clips.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the puppets' motion and looks.")] = 0,
    rotation: Annotated[
        float | None,
        typer.Option(
            min=0.05,
            max=2,
            help="Degrees a frame that the puppets' heads turn on the mean. Default: drawn for "
            "each puppet.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Of those networks: auto, cpu, cuda or mps.")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="Of the latents: no or bf16.")] = "no",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
) -> None:
    """Turn raw videos into training shards: shots, face crops, labels, sound."""
    from emo_cli.training.prepare import PrepareOptions
    from emo_cli.training.puppets.jobs import Puppets

    if size not in SIZES:
        raise EmoError(f"--size {size} will not do", "Use 512 or 256.", exit_code=2)
    if re.match("[a-z0-9+]{2,}:/", str(out)):  # a URL, as paths write it
        raise EmoError(
            f"--out {out} is no folder here",
            "Prepare into one and copy it up; training reads it from there.",
            exit_code=2,
        )
    if not (raw or stills or audio_model or latents):
        raise EmoError("there is nothing to prepare", "Name folders of videos.", exit_code=2)
    if precision not in ("no", "bf16"):
        raise EmoError(f"'{precision}' is no precision here", "Use no or bf16.", exit_code=2)
    if bool(stills) != bool(drivers):
        raise EmoError("--stills and --drivers go together", "Give both, or none.", exit_code=2)
    if rotation is not None and not stills:
        raise EmoError("--rotation is for puppets", "Name their --stills, too.", exit_code=2)
    options = PrepareOptions(
        raw=tuple(raw or ()),
        out=out,
        size=size,
        workers=workers,
        list=annotations,
        split_by=split_by,
        held_out_share=held_out,
    )
    puppets = None
    if stills and drivers:
        puppets = Puppets(
            stills=tuple(stills),
            drivers=tuple(drivers),
            shapes=shapes,
            out=out,
            count=count,
            size=size,
            seed=seed,
            held_out_share=held_out,
            rotation=rotation,
        )
    if dry_run:
        _dry_run(options, puppets)
        _dry_run_precompute(out, audio_model, latents, new=bool(raw or stills))
        return
    if raw:
        _prepare(options)
    if puppets is not None:
        _prepare_puppets(puppets, workers)
    if raw or puppets is not None:
        _check_splits(out)
    _precompute(out, audio_model, latents, device, bf16=precision == "bf16")
    typer.echo(out)


def _dry_run(options: PrepareOptions, puppets: Puppets | None) -> None:
    from emo_cli.console import note
    from emo_cli.training.prepare import look
    from emo_cli.training.puppets.jobs import missing_jobs
    from emo_cli.training.shards import refuse_others

    if puppets is not None:
        refuse_others(puppets.out, puppets.about())
        note(f"{len(missing_jobs(puppets))} of {puppets.count} puppet clips are to do")
    if not options.raw:
        return
    found = look(options)
    note(
        f"{found['videos']} videos: {found['finished']} are finished, {found['to_do']} to do "
        f"({found['hours']:.2f} h, {found['without_sound']} without sound)"
    )
    _print_reasons(found["reasons"])


def _dry_run_precompute(
    out: Path, audio_model: str | None, latents: str | None, *, new: bool
) -> None:
    from emo_cli.console import note
    from emo_cli.training import precompute
    from emo_cli.training.shards import INDEX

    for what, model, name_by in (
        ("sound features", audio_model, precompute.features_name),
        ("latents", latents, precompute.latents_name),
    ):
        if model is None:
            continue
        if new and not (out / INDEX).exists():
            note(f"{what}: all clips are to do, once they are made")
            continue
        missing, wanted = precompute.count_missing(out, name_by(model))
        note(f"{what}: {missing} of {wanted} clips are to do" + ", and all new ones" * new)


def _prepare(options: PrepareOptions) -> None:
    from emo_cli.console import note, warn
    from emo_cli.training.prepare import REPORT, prepare

    with _video_progress() as progress:
        report = prepare(options, progress=progress)
    kept = report["kept"]
    for split, clips in sorted(kept["clips"].items()):
        minutes = kept["frames"][split] / 25 / 60
        note(f"{split}: {clips} clips, {minutes:.1f} min, {kept['sounding'][split]} with sound")
    _print_reasons(report["reasons"])
    note(f"all reasons: {options.out / REPORT}; per video: {options.out / 'videos'}")
    if failed := report["videos"].get("failed"):
        warn(f"{failed} videos failed; run the same command again to retry them")


def _prepare_puppets(puppets: Puppets, workers: int) -> None:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from emo_cli.console import note, warn
    from emo_cli.training.puppets.jobs import PUPPETS
    from emo_cli.training.puppets.write import write_puppets

    with Bar(console=Console(stderr=True)) as bar:
        task = bar.add_task("puppets")

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        written = write_puppets(puppets, workers=workers, say=warn, progress=show)
    note(f"{written} new puppet clips; per puppet: {puppets.out / PUPPETS}")


def _check_splits(out: Path) -> None:
    from emo_cli.console import note
    from emo_cli.training.shards import read_lines

    splits = {line["split"] for line in read_lines(out)}
    if not splits:
        raise EmoError("no clip could be made", "The reasons stand above.")
    if "val" not in splits:
        note(
            "no clip is held out for validation; for some, choose another --out and a larger "
            "share of identities, such as --held-out 0.2"
        )


def _precompute(
    out: Path, audio_model: str | None, latents: str | None, device: str, *, bf16: bool
) -> None:
    if audio_model is None and latents is None:
        return
    from emo_cli.console import note
    from emo_cli.engine import choose_device
    from emo_cli.training import precompute

    on = str(choose_device(device))
    if audio_model is not None:
        note(f"sound features: {precompute.add_sound_features(out, audio_model, note, on)}")
    if latents is not None:
        note(f"latents: {precompute.add_latents(out, latents, note, on, bf16=bf16)}")


def _print_reasons(reasons: dict[str, Any]) -> None:
    if not reasons:
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("step", "dropped because", "videos", "clips", "such as")
    for reason, row in reasons.items():
        step, _, why = reason.partition(": ")
        counts = [str(row[kind] or "") for kind in ("videos", "clips")]
        table.add_row(step, escape(why), *counts, escape(", ".join(row["examples"])))
    Console(stderr=True).print(table)


@contextlib.contextmanager
def _video_progress() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("videos, {task.fields[clips]} new clips, {task.fields[rate]} clips/min, ETA"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", clips=0, rate="-")

        def show(progress: Progress) -> None:
            rate = 60 * progress.clips / max(progress.seconds, 1)
            bar.update(
                task,
                total=progress.num_videos,
                completed=progress.videos,
                clips=progress.clips,
                rate=f"{rate:.1f}",
            )

        yield show
