"""The HTML of the report, section by section. All text of users is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from emo_cli.metrics import published
from emo_cli.metrics.charts import Curve, dot_chart, series_class, time_chart
from emo_cli.metrics.contract import FPS, Column
from emo_cli.metrics.evaluate import Evaluation
from emo_cli.metrics.report_clips import Clip
from emo_cli.metrics.tables import (
    LEGEND,
    ResultTable,
    figure,
    heading,
    published_tables,
    result_tables,
    table_notes,
)

SOUND_AND_MOUTH = "Mouth opening against loudness"
# Curve, title, and how much its scale spans at least; None: it begins at 0.
LINES: tuple[tuple[str, str, float | None], ...] = (
    ("velocity", "Head velocity, degrees a frame", None),
    ("similarity", "Likeness to the portrait (cosine)", 0.1),
)
FIRST = {"low": "the lowest", "high": "the highest", "real": "the nearest to real", "none": ""}


def css_of(result: Evaluation) -> dict[str, str]:
    """The colour class of each set of videos, by name."""
    classes = {one.name: series_class(i) for i, one in enumerate(result.methods)}
    return classes | ({result.real.name: "real"} if result.real else {})


def head_section(result: Evaluation, title: str) -> str:
    """What this is, of what, and when."""
    counts = [
        f"{one.name}: {len(one.videos.items)} videos, {one.num_frames / FPS:.0f} s"
        for one in result.sets
    ]
    line = " · ".join([*counts, result.date.replace("T", " ").replace("+00:00", " UTC")])
    return f'<h1>{escape(title)}</h1><p class="soft">{escape(line)}</p>'


def tables_section(result: Evaluation, *, with_published: bool) -> str:
    """The measured tables, then, apart and marked, the paper's own."""
    colours = css_of(result)
    parts = ["<h2>Figures</h2>"]
    parts += [_table(table, colours, "card") for table in result_tables(result)]
    parts.append(f'<p class="soft">{escape(LEGEND)}; the best method is on green.</p>')
    if with_published:
        parts.append(
            f'<h2>The paper\'s own figures</h2><p class="flag">{escape(published.SOURCE)}</p>'
        )
        parts.append(f'<p class="soft">{escape(published.NOTE)}</p>')
        parts += [_table(table, {}, "card foreign") for table in published_tables()]
    return "".join(parts)


def _table(table: ResultTable, colours: Mapping[str, str], css: str) -> str:
    head = "".join(f"<th>{_named(name, colours)}</th>" for name in table.columns)
    rows = []
    for i, row in enumerate(table.rows):
        real = table.last_is_real and i == len(table.rows) - 1
        cells = "".join(
            f'<td class="best" title="best">{escape(cell.text)}</td>'
            if cell.best
            else f"<td>{_named(cell.text, colours if k == 0 else {})}</td>"
            for k, cell in enumerate(row)
        )
        rows.append(f'<tr class="{"real" if real else ""}">{cells}</tr>')
    return (
        f'<div class="{css} tablebox"><table><caption>{escape(table.title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _named(text: str, colours: Mapping[str, str]) -> str:
    dot = f'<span class="dot {colours[text]}"></span>' if text in colours else ""
    return dot + escape(text)


def notes_section(result: Evaluation) -> str:
    """What was left out, and under which conditions the figures hold."""
    lines = table_notes(result)
    if not lines:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        f'<h2>Read this with the figures</h2><div class="card"><ul class="notes">{items}</ul></div>'
    )


def distributions_section(result: Evaluation) -> str:
    """How each figure spreads over the videos."""
    colours = css_of(result)
    cards, constant = [], []
    for column in result.columns:
        sets = {
            one.name: (colours[one.name], one.per_video[column.key])
            for one in result.sets
            if one.per_video.get(column.key)
        }
        shown = {figure(column, v) for _, values in sets.values() for v in values.values()}
        if len(shown) == 1:
            constant.append(f"{column.heading} {shown.pop()}")
            continue
        chart = dot_chart(heading(column), sets, column.digits)
        if chart:
            cards.append(f'<div class="card"><h3>{escape(heading(column))}</h3>{chart}</div>')
    if not cards:
        return ""
    same = f" The same in every video: {', '.join(constant)}." if constant else ""
    return (
        f'<h2>Video by video</h2><p class="soft">A dot is a video, the bar the median.'
        f'{escape(same)}</p><div class="grid">{"".join(cards)}</div>'
    )


def clips_section(result: Evaluation, clips: Sequence[Clip], column: Column | None) -> str:
    """Best and worst clips, their frames and curves; the real twin, where there is one, below."""
    if not clips:
        return ""
    by = "The first clips. "
    if column:
        by = f"Best and worst by {column.heading}: {FIRST[column.better]} first. "
    what = "Frames are evenly spaced; below them, where there is one, the real video of that name."
    colours = css_of(result)
    cards = "".join(_clip(clip, colours[clip.set_name]) for clip in clips)
    return f'<h2>Clips</h2><p class="soft">{escape(by + what)}</p><div class="clips">{cards}</div>'


def _clip(clip: Clip, css: str) -> str:
    figures = "".join(
        f"<li>{escape(column.heading)} <b>{escape(figure(column, value))}</b></li>"
        for column, value in clip.figures.items()
    )
    name = f"{clip.set_name} / {clip.key}"
    return (
        f'<article class="card"><h3><span class="rank {clip.rank}">{clip.rank}</span>'
        f'<span class="dot {css}"></span>{escape(name)}</h3><ul class="figures">{figures}</ul>'
        f"{_picture(clip.strip, name, '')}"
        f"{_picture(clip.real_strip, f'the real {clip.key}', 'the real video')}"
        f"{_curves(clip, css)}</article>"
    )


def _picture(uri: str, alt: str, caption: str) -> str:
    if not uri:
        return ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{uri}" alt="frames of {escape(alt)}">{below}</figure>'


def _curves(clip: Clip, css: str) -> str:
    charts = []
    if "mouth" in clip.curves and "loudness" in clip.curves:
        curves = [
            Curve(
                label="loudness (40 dB)",
                css="sound",
                values=clip.curves["loudness"],
                shape="area",
            ),
            Curve(label="mouth opening", css=css, values=clip.curves["mouth"]),
        ]
        charts.append(time_chart(SOUND_AND_MOUTH, curves, fps=FPS, own_scales=True))
    for key, title, least_span in LINES:
        if key in clip.curves:
            curves = [Curve(label=title, css=css, values=clip.curves[key])]
            if key in clip.real_curves:
                curves.append(Curve(label="real", css="real", values=clip.real_curves[key]))
            charts.append(time_chart(title, curves, fps=FPS, least_span=least_span))
    return "".join(charts)


def protocol_section(result: Evaluation, about: Mapping[str, str]) -> str:
    """How it was measured, exactly enough to do it again."""
    rows = {**about, **{f"features: {name}": text for name, text in result.digests.items()}}
    rows |= {f"folder: {one.name}": str(one.videos.folder.folder) for one in result.sets}
    body = "".join(
        f"<tr><td>{escape(name)}</td><td><code>{escape(value)}</code></td></tr>"
        for name, value in rows.items()
    )
    return (
        f'<h2>Protocol</h2><div class="card tablebox"><table class="kv"><tbody>{body}</tbody>'
        f"</table></div>{_lists(result)}"
    )


def _lists(result: Evaluation) -> str:
    parts = []
    for one in result.sets:
        skipped = [f"{key}: {why}" for key, why in one.videos.skipped.items()]
        parts.append(_details(f"{one.name}: {len(skipped)} videos skipped", skipped))
    for name, lacks in result.missing.items():
        for where, keys in lacks.items():
            parts.append(_details(f"{name}: {len(keys)} {where}", keys))
    return "".join(parts)


def _details(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    if not items:
        return ""
    return f'<details><summary>{escape(title)}</summary><ul class="notes">{items}</ul></details>'
