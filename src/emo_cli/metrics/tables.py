"""The paper's Table 1 and Table 2 of an evaluation: as plain rows, and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from emo_cli.metrics import published
from emo_cli.metrics.contract import Column
from emo_cli.metrics.evaluate import Evaluation, SetScore

# Table 1, left to right, with the variants of a metric beside it.
PAPER_ORDER = ("fid", "sync", "syncnet", "fsim", "fsim-arcface", "fvd", "efid", "efid-deep3d")
ARROWS = {"low": " ↓", "high": " ↑", "real": " ≈", "none": ""}
NO_VALUE = "-"
LEGEND = "↓ lower is better, ↑ higher, ≈ nearer to the real videos' value"


@dataclass(frozen=True)
class Cell:
    """What one field of a table says; `best`: no method has a better value in this column."""

    text: str
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class ResultTable:
    """A table as plain text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    last_is_real: bool = False  # the last row is that of the real videos


def result_tables(result: Evaluation) -> list[ResultTable]:
    """Table 1, Table 2 (head motion), and what else was measured; those without columns not."""
    by_name = {metric.name: metric for metric in result.metrics}
    first = [by_name[name].columns[0] for name in PAPER_ORDER if name in by_name]
    motion = list(by_name["motion"].columns) if "motion" in by_name else []
    other = [column for column in result.columns if column not in first + motion]
    tables = []
    if first:
        tables.append(_by_set("Table 1: quality, likeness and lip sync", first, result))
    if motion:
        tables.append(_by_measure("Table 2: head motion", motion, result))
    if other:
        tables.append(_by_measure("More figures", other, result))
    return tables


def heading(column: Column) -> str:
    """The column's name, its unit, and which way is better."""
    unit = f", {column.unit}" if column.unit else ""
    return f"{column.heading}{unit}{ARROWS[column.better]}"


def figure(column: Column, value: float | None) -> str:
    """A value with the column's digits."""
    return NO_VALUE if value is None else f"{value:.{column.digits}f}"


def best_methods(result: Evaluation, column: Column) -> set[str]:
    """The methods that no other beats in this column; several when the digits shown are equal.

    None where there is nothing to win: fewer than two values, all of them equal, no better
    direction, or methods that were not scored on videos of the same names.
    """
    values = {
        one.name: round(value, column.digits)
        for one in result.methods
        if (value := one.values.get(column.key)) is not None
    }
    if len(values) < 2 or column.better == "none" or not result.same_videos:
        return set()
    distance = values
    if column.better == "high":
        distance = {name: -value for name, value in values.items()}
    if column.better == "real":
        target = result.real.values.get(column.key) if result.real else None
        if target is None:
            return set()
        # Rounded again: 0.3 - 0.2 and 0.2 - 0.1 differ by an ulp.
        distance = {n: round(abs(value - target), column.digits) for n, value in values.items()}
    best = {name for name, value in distance.items() if value == min(distance.values())}
    return set() if len(best) == len(values) else best


def table_notes(result: Evaluation) -> list[str]:
    """All that has to be said beside the figures, the most general first."""
    lines = list(result.notes)
    if not result.same_videos:
        lines.append(
            "the methods have different videos: none is marked as best (--paired keeps to those "
            "that all have)"
        )
    for name, lacks in result.missing.items():
        lines += [_list(f"{name}: {where}", keys) for where, keys in lacks.items() if keys]
    by_note: dict[str, list[str]] = {}
    for one in result.sets:
        for line in one.notes:
            by_note.setdefault(line, []).append(one.name)
    lines += [f"{', '.join(names)}: {line}" for line, names in by_note.items()]
    for one in result.sets:
        lines += [f"{one.name}: skipped {key}: {why}" for key, why in one.videos.skipped.items()]
        if one.num_faceless:
            lines.append(f"{one.name}: no face in {one.num_faceless} of {one.num_frames} frames")
    return lines


def print_tables(result: Evaluation, *, with_published: bool) -> None:
    """The tables on standard output, as wide as they need where that is no terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    tables = result_tables(result)
    for table in tables:
        _print(console, table)
    any_best = any(cell.best for table in tables for row in table.rows for cell in row)
    marks = ", * best of the methods" if any_best else ""
    console.print(f"{LEGEND}{marks}", highlight=False, markup=False)
    if with_published:
        for table in published_tables():
            _print(console, table)
        console.print(f"{published.SOURCE}. {published.NOTE}", highlight=False, markup=False)


def published_tables() -> list[ResultTable]:
    """The paper's own rows."""
    return [
        ResultTable(title=title, columns=columns, rows=tuple(tuple(map(Cell, r)) for r in rows))
        for title, columns, rows in (
            (
                "PUBLISHED, EMO's Table 1 (HDTF / internet data)",
                published.TABLE_1_COLUMNS,
                published.TABLE_1,
            ),
            (
                "PUBLISHED, EMO's Table 2 (by assigned speed)",
                published.TABLE_2_COLUMNS,
                published.TABLE_2,
            ),
        )
    ]


def _by_set(title: str, columns: Sequence[Column], result: Evaluation) -> ResultTable:
    """A row for each set of videos, as in the paper's Table 1."""
    best = {column.key: best_methods(result, column) for column in columns}
    rows = []
    for one in result.sets:
        head = (Cell(one.name), Cell(str(len(one.videos.items))))
        rows.append((*head, *(_cell(one, column, best[column.key]) for column in columns)))
    return ResultTable(
        title=title,
        columns=("", "videos", *(heading(column) for column in columns)),
        rows=tuple(rows),
        last_is_real=result.real is not None,
    )


def _by_measure(title: str, columns: Sequence[Column], result: Evaluation) -> ResultTable:
    """A row for each measure, as in the paper's Table 2: any number of them fits a screen."""
    rows = []
    for column in columns:
        best = best_methods(result, column)
        cells = (_cell(one, column, best) for one in result.sets)
        rows.append((Cell(heading(column)), *cells))
    return ResultTable(
        title=title, columns=("", *(one.name for one in result.sets)), rows=tuple(rows)
    )


def _cell(one: SetScore, column: Column, best: set[str]) -> Cell:
    text = figure(column, one.values.get(column.key))
    return Cell(text, best=not one.is_real and one.name in best)


def _print(console: object, table: ResultTable) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    assert isinstance(console, Console)
    shown = Table(title=escape(table.title), title_justify="left", title_style="bold")
    for i, name in enumerate(table.columns):
        shown.add_column(escape(name), justify="right" if i else "left", overflow="fold")
    for i, row in enumerate(table.rows):
        if table.last_is_real and i == len(table.rows) - 1:
            shown.add_section()
        shown.add_row(*(f"[bold]{escape(c.text)}*[/]" if c.best else escape(c.text) for c in row))
    console.print(shown)


def _list(what: str, keys: list[str]) -> str:
    names = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if keys[5:] else "")
    return f"{what}: {len(keys)} ({names})"


def published_json() -> dict[str, object]:
    """The paper's own rows as plain values."""
    tables = [
        {
            "title": table.title,
            "columns": list(table.columns),
            "rows": [[cell.text for cell in row] for row in table.rows],
        }
        for table in published_tables()
    ]
    return {"source": published.SOURCE, "note": published.NOTE, "tables": tables}
