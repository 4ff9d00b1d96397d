"""Charts of the report as SVG text: colours come from the page's CSS, nothing is fetched.

A chart is WIDTH wide in its own units and grows with the page. Series are told apart by the CSS
classes `s0` ... `s5`, and `real` for the real videos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np

WIDTH = 360.0
LEFT, RIGHT = 10.0, 10.0
ROW = 42.0  # height of a set: its name, and below it its dots
LABEL = 16.0
CURVE_HEIGHT = 84.0
MOST_DOTS = 400  # more videos are shown by as many of their quantiles
COLOURS = 6
MOST_POINTS = 720  # of a curve: more frames are drawn as the means of blocks


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Values over time; NaN leaves a gap."""

    label: str
    css: str
    values: np.ndarray  # [T], one a frame
    shape: Literal["line", "area"] = "line"


def series_class(i: int) -> str:
    """The CSS class of the i-th method."""
    return f"s{i % COLOURS}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers within low..high, about `count` of them."""
    step = (high - low) / count
    power = 10.0 ** math.floor(math.log10(step))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def dot_chart(title: str, sets: Mapping[str, tuple[str, Mapping[str, float]]], digits: int) -> str:
    """One row of dots a set, a dot a video, a bar at the median; `sets`: name -> (css, values)."""
    known = [value for _, values in sets.values() for value in values.values()]
    known = [value for value in known if math.isfinite(value)]
    if not known:
        return ""
    low, high = _range(min(known), max(known))
    height = ROW * len(sets) + 22
    parts = [_axis(ticks(low, high), low, high, height - 18)]
    for i, (name, (css, values)) in enumerate(sets.items()):
        parts.append(_dots(name, css, values, (low, high), top=i * ROW, digits=digits))
    return _svg(title, height, parts)


def _dots(
    name: str,
    css: str,
    values: Mapping[str, float],
    span: tuple[float, float],
    *,
    top: float,
    digits: int,
) -> str:
    pairs = sorted((v, key) for key, v in values.items() if math.isfinite(v))
    if not pairs:
        return f'<text class="label" x="{LEFT}" y="{top + 11}">{escape(name)}: none</text>'
    median = float(np.median([value for value, _ in pairs]))
    shown = pairs
    if len(pairs) > MOST_DOTS:
        shown = [pairs[round(i)] for i in np.linspace(0, len(pairs) - 1, MOST_DOTS)]
    middle = top + LABEL + (ROW - LABEL) / 2
    opacity = 0.75 if len(shown) < 60 else 0.35
    lines = [f'<text class="label" x="{LEFT}" y="{top + 11}">{escape(name)}</text>']
    for i, (value, key) in enumerate(shown):
        # The golden ratio spreads neighbours apart, the same way each time.
        y = middle + ((i * 0.618034) % 1 - 0.5) * (ROW - LABEL - 9)
        about = f"{key}: {value:.{digits}f}" if shown is pairs else f"{value:.{digits}f}"
        lines.append(
            f'<circle class="{css}" cx="{_x(value, span):.1f}" cy="{y:.1f}" r="3" '
            f'fill-opacity="{opacity}"><title>{escape(about)}</title></circle>'
        )
    x = _x(median, span)
    lines.append(
        f'<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="{top + LABEL + 1}" '
        f'y2="{top + ROW - 1}"><title>median {median:.{digits}f}</title></line>'
    )
    lines.append(
        f'<text class="label" x="{WIDTH - RIGHT}" y="{top + 11}" text-anchor="end">'
        f"median {median:.{digits}f}</text>"
    )
    return "".join(lines)


def time_chart(
    title: str,
    curves: Sequence[Curve],
    *,
    fps: int,
    own_scales: bool = False,
    least_span: float | None = None,
) -> str:
    """Curves over the seconds of a video, on one scale from 0, or each on its own.

    With `least_span` the scale need not begin at 0: it fits the values, but is that wide at least.
    """
    curves = [curve for curve in curves if np.isfinite(curve.values).any()]
    if not curves:
        return ""
    length = max(len(curve.values) for curve in curves)
    spans = [_span(curve.values, from_zero=least_span is None) for curve in curves]
    if not own_scales:
        low, high = min(s[0] for s in spans), max(s[1] for s in spans)
        spans = [(min(low, high - (least_span or 0.0)), high)] * len(spans)
    bottom = CURVE_HEIGHT - 18
    seconds = max(length - 1, 1) / fps
    parts = [_axis(ticks(0, seconds), 0, seconds, bottom, unit=" s")]
    if not own_scales:
        parts.append(_levels(spans[0], bottom))
    # Areas first: lines are drawn over them.
    for curve, span in sorted(zip(curves, spans, strict=True), key=lambda p: p[0].shape != "area"):
        parts.append(_curve(curve, span, length, bottom))
    return _legend(curves) + _svg(title, CURVE_HEIGHT, parts)


def _curve(curve: Curve, span: tuple[float, float], length: int, bottom: float) -> str:
    low, high = span
    time, values = _thinned(curve.values)
    x = LEFT + time / max(length - 1, 1) * (WIDTH - LEFT - RIGHT)
    y = bottom - (values.clip(low, high) - low) / (high - low) * (bottom - 6)
    paths = []
    for run in _runs(np.isfinite(values)):
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x[run], y[run], strict=True))
        if curve.shape == "area":
            first, last = x[run][0], x[run][-1]
            paths.append(f"M{first:.1f},{bottom} L{points} L{last:.1f},{bottom}Z")
        else:
            paths.append(f"M{points}")
    return f'<path class="{curve.shape} {curve.css}" d="{" ".join(paths)}"/>'


def _thinned(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frame numbers and values to draw."""
    block = -(-len(values) // MOST_POINTS)
    if block <= 1:
        return np.arange(len(values), dtype=float), values
    padded = np.pad(values, (0, -len(values) % block), constant_values=np.nan).reshape(-1, block)
    known = np.isfinite(padded)
    sums, counts = np.where(known, padded, 0.0).sum(1), known.sum(1)
    means = np.where(counts > 0, sums / counts.clip(min=1), np.nan)
    return np.arange(len(means)) * block + (block - 1) / 2, means


def _runs(known: np.ndarray) -> list[slice]:
    edges = np.flatnonzero(np.diff(np.pad(known.astype(int), 1)))
    return [slice(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _levels(span: tuple[float, float], bottom: float) -> str:
    low, high = span
    lines = []
    for value in ticks(low, high, 2):
        y = bottom - (value - low) / (high - low) * (bottom - 6)
        lines.append(
            f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{LEFT}" y="{y - 2:.1f}">{value:g}</text>'
        )
    return "".join(lines)


def _axis(at: Sequence[float], low: float, high: float, bottom: float, unit: str = "") -> str:
    lines = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    for value in at:
        x = _x(value, (low, high))
        anchor = "start" if x < LEFT + 12 else "end" if x > WIDTH - RIGHT - 12 else "middle"
        lines.append(
            f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"/>'
            f'<text class="tick" x="{x:.1f}" y="{bottom + 12}" text-anchor="{anchor}">'
            f"{round(value, 10):g}{unit}</text>"
        )
    return "".join(lines)


def _legend(curves: Sequence[Curve]) -> str:
    keys = "".join(
        f'<span class="key {escape(curve.css)} {curve.shape}">{escape(curve.label)}</span>'
        for curve in curves
    )
    return f'<div class="legend">{keys}</div>'


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _x(value: float, span: tuple[float, float]) -> float:
    low, high = span
    return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def _range(low: float, high: float) -> tuple[float, float]:
    margin = 0.04 * (high - low) or max(abs(high), 1.0) * 0.05
    return low - margin, high + margin


def _span(values: np.ndarray, *, from_zero: bool) -> tuple[float, float]:
    """From the least value, or from 0 if that is below it, to a little above the largest."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if from_zero:
        low = min(low, 0.0)
    return low, high + 0.05 * (high - low) if high > low else low + 1.0
