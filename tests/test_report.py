"""The report page: all on one page, escaped, and quiet on the network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_faces import face_frames, tone, write_video
from made_result import made_result

from emo_cli.errors import EmoError
from emo_cli.metrics.cache import Entry, write_entry
from emo_cli.metrics.charts import Curve, dot_chart, ticks, time_chart
from emo_cli.metrics.contract import Column, VideoInfo
from emo_cli.metrics.evaluate import Evaluation, SetScore
from emo_cli.metrics.features import Item, VideoSet
from emo_cli.metrics.pairing import VideoFolder
from emo_cli.metrics.report import check_folder, write_report
from emo_cli.metrics.report_clips import ranked, shown_clips

NASTY = "<img src=http://x.test/a onerror=alert(1)> & \"quotes\" '$body'"
NUM_FRAMES = 50
OF_PAGES = '"traffic_annotation":101845102'  # Chromium's number for what a page asks for


class _Motion:
    name = extractor = "motion"
    needs_real = False
    columns = (Column(key="velocity", heading="Mean velocity", digits=2, better="real"),)


def motion_set(name: str, root: Path, keys: list[str], *, is_real: bool) -> SetScore:
    """Videos that were "measured": each as a file with sound, and its features in a cache."""
    items, values = [], {}
    for i, key in enumerate(keys):
        path = write_video(
            root / f"{name[:4]}{i}.mkv",
            face_frames(NUM_FRAMES),
            sound=tone(640 * NUM_FRAMES) * np.linspace(0, 1, 640 * NUM_FRAMES, dtype=np.float32),
        )
        time = np.arange(NUM_FRAMES)
        arrays = {
            "mouth": np.abs(np.sin(time / 4)),
            "velocity": np.where(time % 20 == 3, np.nan, 0.3 + 0.1 * i + 0.1 * np.cos(time)),
        }
        entry = root / f"{name[:4]}{i}.npz"
        write_entry(entry, Entry(arrays=arrays, num_frames=NUM_FRAMES, num_faceless=0))
        info = VideoInfo(path=path, fps=25, size=(160, 120), has_sound=True)
        items.append(Item(key=key, info=info, entries={"motion": entry}))
        values[key] = 0.3 + 0.1 * i
    videos = VideoFolder(name=name, folder=root, videos={})
    return SetScore(
        videos=VideoSet(folder=videos, items=tuple(items), skipped={f"{NASTY}3": "unreadable"}),
        is_real=is_real,
        num_frames=NUM_FRAMES * len(keys),
        num_faceless=0,
        values={"velocity": float(np.mean(list(values.values())))},
        per_video={"velocity": values},
        notes=("a note with <b>",),
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """Two methods and real videos; names that would break a page that does not escape."""
    root = tmp_path_factory.mktemp("report")
    keys = [f"{NASTY}{i}" for i in range(3)]
    methods = tuple(motion_set(name, root, keys, is_real=False) for name in (NASTY, "plain"))
    return Evaluation(
        metrics=(_Motion(),),  # type: ignore[arg-type]
        methods=methods,
        real=motion_set("real videos", root, keys[:1], is_real=True),
        digests={"motion": "abc | 25 fps"},
        missing={one.name: {"not among the real videos": [keys[1]]} for one in methods},
        notes=("a general note",),
        date="2026-01-02T03:04:05+00:00",
    )


@pytest.fixture(scope="module")
def page(result: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(result, tmp_path_factory.mktemp("out") / "new", with_published=True)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: Path) -> _Tags:
    tags = _Tags()
    tags.feed(page.read_text(encoding="utf-8"))
    return tags


# --- what the page holds


def test_the_page_names_no_address_and_runs_no_script(page: Path) -> None:
    tags = parsed(page)
    assert tags.open == []
    for tag, attributes in tags.tags:
        assert tag not in ("script", "iframe", "object", "base")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "action"):
                assert value is not None and value.startswith("data:"), (tag, value)
    assert "url(" not in page.read_text() and "@import" not in page.read_text()


def test_names_are_shown_as_they_are(page: Path) -> None:
    text = "".join(parsed(page).text)
    assert f"{NASTY} / {NASTY}0" in text
    assert f"{NASTY}3: unreadable" in text
    assert "a note with <b>" in text and "a general note" in text


def test_tables_published_rows_protocol_and_figures_are_there(
    page: Path, result: Evaluation
) -> None:
    text = "".join(parsed(page).text)
    for words in ("Table 2: head motion", "not measured here", "Wav2Lip", "abc | 25 fps", "torch"):
        assert words in text
    beside = json.loads((page.parent / "eval.json").read_text())
    assert beside["methods"]["plain"]["values"] == result.methods[1].values


def test_clips_show_frames_curves_and_the_real_video(page: Path, result: Evaluation) -> None:
    tags = [tag for tag, _ in parsed(page).tags]
    # Of each of two methods: best and worst of three videos; one of the keys has a real twin.
    assert tags.count("article") == 6
    assert tags.count("img") == 8
    first = shown_clips(result)[0]
    assert (first.rank, first.key) == ("best", f"{NASTY}0")
    assert set(first.curves) == {"mouth", "velocity", "loudness"}
    loud = first.curves["loudness"]
    assert loud[-1] == pytest.approx(1, abs=0.05)
    assert loud[0] < 0.1 and (np.diff(loud) > -0.1).all()
    assert first.real_strip.startswith("data:image/jpeg;base64,")


def test_clips_are_ranked_by_the_distance_to_their_real_video(result: Evaluation) -> None:
    column = result.columns[0]
    order = ranked(result.methods[1], column, result.real)
    # 0.3 is its twin's value; 0.4 and 0.5 are compared with the real videos' mean, 0.3.
    assert order == [f"{NASTY}{i}" for i in (0, 1, 2)]


def test_a_video_that_was_moved_since_leaves_its_picture_out(
    result: Evaluation, tmp_path: Path
) -> None:
    paths = [item.info.path for item in result.methods[0].videos.items]
    for path in paths:
        path.rename(path.with_suffix(".moved"))
    try:
        page = write_report(result, tmp_path, with_published=False)
    finally:
        for path in paths:
            path.with_suffix(".moved").rename(path)
    assert [tag for tag, _ in parsed(page).tags].count("img") == 5


def test_a_result_without_figures_a_video_still_has_a_page(tmp_path: Path) -> None:
    result = made_result({"ours": {"fid": 1.0}}, keys={"ours": []})
    text = "".join(parsed(write_report(result, tmp_path, with_published=False)).text)
    assert "FID" in text and "Video by video" not in text and "PUBLISHED" not in text


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmoError, match="cannot write the report"):
        check_folder(tmp_path / "file")
    check_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


# --- charts


def test_ticks_are_round_and_within_the_range() -> None:
    assert ticks(0, 3) == [0, 1, 2, 3]
    assert ticks(-0.04, 0.11) == pytest.approx([0, 0.05, 0.1])
    for low, high in ((0.9731, 0.9997), (-1234.5, 8.0), (1e-7, 3e-7)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 6 and low <= found[0] and found[-1] <= high


def test_a_curve_has_a_gap_where_nothing_was_measured() -> None:
    values = np.array([0, 1, np.nan, np.nan, 2, 3.0])
    curve = Curve(label="<x>", css="s0", values=values)
    chart = time_chart("t", [curve], fps=25)
    path = re.search(r'd="([^"]+)"', chart)
    assert path is not None and path[1].count("M") == 2
    assert "nan" not in chart and "&lt;x&gt;" in chart


def test_a_scale_begins_at_0_unless_it_is_to_fit() -> None:
    curve = Curve(label="x", css="s0", values=np.array([0.96, 0.98]))
    whole, fitted = time_chart("t", [curve], fps=25), time_chart("t", [curve], fps=25, least_span=1)
    close = time_chart("t", [curve], fps=25, least_span=0.001)
    heights = [
        [float(y) for y in re.findall(r",([\d.]+)", c.split("<path")[1])]
        for c in (whole, fitted, close)
    ]
    rises = [ys[0] - ys[1] for ys in heights]
    assert rises[0] < 3 and rises[1] < 3 and rises[2] > 40


def test_long_curves_and_many_dots_stay_small() -> None:
    curve = Curve(label="x", css="s0", values=np.sin(np.arange(90_000) / 900))
    assert len(time_chart("t", [curve], fps=25)) < 20_000
    values = {f"video{i}": float(i % 977) for i in range(10_000)}
    chart = dot_chart("d", {"a": ("s0", values)}, digits=1)
    assert chart.count("<circle") == 400
    assert f"median {np.median(list(values.values())):.1f}" in chart


def test_nothing_known_draws_nothing_and_equal_values_draw() -> None:
    nothing = Curve(label="x", css="s0", values=np.full(5, np.nan))
    assert time_chart("t", [nothing], fps=25, own_scales=True) == ""
    assert dot_chart("d", {"a": ("s0", {"v": float("nan")})}, digits=1) == ""
    assert "nan" not in dot_chart("d", {"a": ("s0", {"v": 1.0}), "b": ("s1", {})}, digits=1)


# --- in a browser


def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here")
    return found


def browse(page: Path, folder: Path) -> tuple[list[str], set[str], Path]:
    """What a page writes to the console, which hosts it asks for, and its screenshot."""
    folder.mkdir()
    log, shot = folder / "net.json", folder / "page.png"
    # fmt: off
    done = subprocess.run(
        [
            chromium(), "--headless", "--disable-gpu", "--no-first-run", "--enable-logging=stderr",
            "--v=0", f"--user-data-dir={folder / 'profile'}", "--window-size=700,4000",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--log-net-log={log}",
            *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),
            f"--screenshot={shot}", page.resolve().as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )
    # fmt: on
    assert shot.exists(), done.stderr
    # The browser's own requests stand in the log too, under other numbers than a page's.
    asked = [line for line in log.read_text(errors="replace").splitlines() if OF_PAGES in line]
    hosts = {host for line in asked for host in re.findall(r'"url":"\w+://([^/":]+)', line)}
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return said, hosts, shot


def test_in_chromium_the_page_has_no_error_asks_for_nothing_and_shows_its_pictures(
    page: Path, tmp_path: Path
) -> None:
    said, hosts, shot = browse(page, tmp_path / "page")
    assert (said, hosts) == ([], set())
    assert pictures_in(shot) > 4


def test_in_chromium_a_page_that_asks_for_something_would_be_found_out(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://x.test/a.png"><script>console.error("no")</script>')
    said, hosts, shot = browse(page, tmp_path / "page")
    assert len(said) == 1 and hosts == {"x.test"}
    assert pictures_in(shot) == 0


def pictures_in(shot: Path) -> int:
    """How many rows of the made videos' magenta faces a screenshot shows."""
    from PIL import Image

    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    magenta = (pixels[..., 0] - pixels[..., 1] > 90) & (pixels[..., 2] - pixels[..., 1] > 90)
    rows = magenta.sum(1) > 20
    return int((np.diff(rows.astype(int)) == 1).sum())
