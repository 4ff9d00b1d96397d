"""`emo eval` on the command line. Heavy imports wait until it runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emo_cli.errors import EmoError

if TYPE_CHECKING:
    from emo_cli.metrics.contract import Metric
    from emo_cli.metrics.evaluate import EvalOptions, Evaluation
    from emo_cli.metrics.pairing import VideoFolder

MAKE = "Make the videos first"
RARE = "Rarely needed"
REAL = "real videos"
MOST_WORKERS = 8  # by default: each holds the networks, about 1.5 GB


def eval_command(
    generated: Annotated[Path, typer.Argument(help="Folder of videos to judge, of any system.")],
    real: Annotated[
        Path | None, typer.Option(help="Folder of real videos; equal names make pairs.")
    ] = None,
    portraits: Annotated[
        Path | None, typer.Option(help="Folder of the pictures they were made of, named alike.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="NAME=DIR: another system's videos, side by side; several times."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Of fid, sync, fsim, fvd, efid, motion, region, with commas; default: these. "
            "Also syncnet, fsim-arcface, efid-deep3d, for weights that you bring."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with charts and pictures into this folder.")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Show the paper's own rows too, apart.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Videos read side by side; default: one a core, at most 8."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if anything had to be left out.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="Make the videos that GENERATED lacks: 'mini' or a model folder.",
            rich_help_panel=MAKE,
        ),
    ] = None,
    sounds: Annotated[
        Path | None,
        typer.Option(
            help="With --model: folder of sounds (or videos that have some).", rich_help_panel=MAKE
        ),
    ] = None,
    paired: Annotated[
        bool,
        typer.Option(
            "--paired", help="Score only videos that all folders have.", rich_help_panel=RARE
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Where features are kept; default: in emo's cache folder.", rich_help_panel=RARE
        ),
    ] = None,
) -> None:
    """Score folders of videos: FID, FVD, E-FID, SyncNet, F-SIM, head motion."""
    chosen = _choose_metrics(metrics, real, quiet)
    if (model is None) != (sounds is None) or (model and portraits is None):
        raise EmoError(
            "--model, --portraits and --sounds go together",
            "Give all three to make videos, or leave --model and --sounds out.",
            exit_code=2,
        )
    if report is not None:
        from emo_cli.metrics.report import check_folder

        check_folder(report)
    failed = 0
    if model is not None and sounds is not None and portraits is not None:
        failed = _generate(chosen, generated, model, portraits, sounds, quiet)
    options = _options(
        generated, real, portraits, method or [], cache=cache, workers=workers, paired=paired
    )
    result = _evaluate(options, chosen, quiet)
    _show(result, as_json=as_json, published=published, quiet=quiet)
    if report is not None:
        _write_report(result, report, published, quiet)
    if strict:
        _refuse_gaps(result, failed)


def _choose_metrics(names: str | None, real: Path | None, quiet: bool) -> tuple[Metric, ...]:
    from emo_cli.console import note
    from emo_cli.metrics.registry import DEFAULT_METRICS, build_metrics

    if names is not None:
        chosen = build_metrics([name.strip() for name in names.split(",") if name.strip()])
        _check_columns(chosen)
        lacking = [metric.name for metric in chosen if metric.needs_real and real is None]
        if lacking or not chosen:
            what = f"{', '.join(lacking)}: needs real videos" if lacking else "no metric is named"
            raise EmoError(what, "Name their folder with --real.", exit_code=2)
        return chosen
    chosen = build_metrics(DEFAULT_METRICS)
    if real is None:
        left_out = ", ".join(metric.name for metric in chosen if metric.needs_real)
        if not quiet:
            note(f"without --real there is no {left_out}")
        chosen = tuple(metric for metric in chosen if not metric.needs_real)
    return chosen


def _check_columns(chosen: tuple[Metric, ...]) -> None:
    owners: dict[str, str] = {}
    for metric in chosen:
        for column in metric.columns:
            if column.key in owners:
                raise EmoError(
                    f"{owners[column.key]} and {metric.name} do not go together",
                    "Run the command once with each: features are kept, it takes seconds.",
                    exit_code=2,
                )
            owners[column.key] = metric.name


def _generate(
    chosen: tuple[Metric, ...],
    generated: Path,
    model: str,
    portraits: Path,
    sounds: Path,
    quiet: bool,
) -> int:
    from emo_cli.metrics.features import cache_digests
    from emo_cli.metrics.generated_set import generate_set
    from emo_cli.metrics.registry import build_extractors

    # A network that is missing is told now, not when all videos are made.
    cache_digests(build_extractors(_extractors(chosen)))
    return generate_set(generated, model=model, portraits=portraits, sounds=sounds, quiet=quiet)


def _extractors(chosen: tuple[Metric, ...]) -> list[str]:
    return list(dict.fromkeys(metric.extractor for metric in chosen))


def _options(
    generated: Path,
    real: Path | None,
    portraits: Path | None,
    methods: list[str],
    *,
    cache: Path | None,
    workers: int | None,
    paired: bool,
) -> EvalOptions:
    from emo_cli.metrics.evaluate import EvalOptions
    from emo_cli.metrics.pairing import open_portraits, open_videos
    from emo_cli.weights import weights_folder

    folders = [open_videos(generated.resolve().name or "generated", generated)]
    folders += [_named_folder(text) for text in methods]
    names = [folder.name for folder in folders] + [REAL]
    if len(set(names)) < len(names):
        raise EmoError(
            f"two sets of videos have one name: {', '.join(names)}",
            "Choose other names: --method NAME=DIR.",
            exit_code=2,
        )
    return EvalOptions(
        methods=tuple(folders),
        real=open_videos(REAL, real) if real else None,
        portraits=open_portraits(portraits) if portraits else {},
        cache=cache or weights_folder() / "features",
        workers=workers or min(_cores(), MOST_WORKERS),
        paired=paired,
    )


def _named_folder(text: str) -> VideoFolder:
    from emo_cli.metrics.pairing import open_videos

    name, equals, folder = text.partition("=")
    if not (name.strip() and equals and folder):
        raise EmoError(
            f"--method {text} is not NAME=DIR", "Such as --method SadTalker=out/st.", exit_code=2
        )
    return open_videos(name.strip(), Path(folder))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _evaluate(options: EvalOptions, chosen: tuple[Metric, ...], quiet: bool) -> Evaluation:
    from functools import partial

    from emo_cli.console import progress_bars
    from emo_cli.metrics.evaluate import evaluate
    from emo_cli.metrics.registry import build_extractors

    with progress_bars(quiet=quiet) as progress:
        return evaluate(
            options,
            metrics=chosen,
            make_extractors=partial(build_extractors, _extractors(chosen)),
            progress=progress,
        )


def _show(result: Evaluation, *, as_json: bool, published: bool, quiet: bool) -> None:
    from emo_cli.console import note
    from emo_cli.metrics.result_json import as_json as plain
    from emo_cli.metrics.tables import print_tables, published_json, table_notes

    if as_json:
        extra = {"published": published_json()} if published else {}
        typer.echo(json.dumps(plain(result) | extra, allow_nan=False))
        return
    print_tables(result, with_published=published)
    for line in () if quiet else table_notes(result):
        note(line)


def _write_report(result: Evaluation, folder: Path, published: bool, quiet: bool) -> None:
    from emo_cli.console import note
    from emo_cli.metrics.report import write_report

    page = write_report(result, folder, with_published=published)
    if not quiet:
        note(f"report: {page}")


def _refuse_gaps(result: Evaluation, failed: int) -> None:
    empty = [
        column.heading
        for one in result.methods
        for column in result.columns
        if one.values.get(column.key) is None
    ]
    gaps = [f"{result.num_skipped} videos were skipped"] if result.num_skipped else []
    gaps += [f"{failed} videos could not be made"] if failed else []
    gaps += [f"no value for {', '.join(dict.fromkeys(empty))}"] if empty else []
    if gaps:
        raise EmoError("; ".join(gaps), "The reasons stand in the notes.")
