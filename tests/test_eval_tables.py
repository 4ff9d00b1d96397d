"""Tables and marks of `emo eval`, from made results; and the command line, with fake metrics."""

from __future__ import annotations

import json
from pathlib import Path

import fake_metrics
import pytest
from made_faces import face_frames, tone, write_video
from made_result import COLUMNS, made_result
from typer.testing import CliRunner

from emo_cli import cli
from emo_cli.metrics import published, registry
from emo_cli.metrics.contract import Column, Score
from emo_cli.metrics.tables import best_methods, print_tables, result_tables, table_notes


def best(values: dict[str, float | None], better: str, *, real: float | None = 5.0) -> set[str]:
    column = Column(key="x", heading="X", digits=1, better=better)  # type: ignore[arg-type]
    result = made_result(
        {name: {"x": value} for name, value in values.items()},
        real=None if real is None else {"x": real},
        columns=(column,),
    )
    return best_methods(result, column)


# --- marks


def test_the_best_method_is_the_lowest_the_highest_or_the_nearest_to_real() -> None:
    values = {"a": 4.0, "b": 5.5, "c": 9.0}
    assert best(values, "low") == {"a"}
    assert best(values, "high") == {"c"}
    assert best(values, "real") == {"b"}
    assert best(values, "none") == set()


def test_methods_that_look_equal_share_the_mark_and_if_all_do_there_is_none() -> None:
    assert best({"a": 4.01, "b": 3.99, "c": 9.0}, "low") == {"a", "b"}
    assert best({"a": 4.01, "b": 3.99}, "low") == set()
    assert best({"a": 4.9, "b": 5.1, "c": 6.0}, "real") == {"a", "b"}


def test_nothing_is_marked_without_a_rival_or_a_real_value() -> None:
    assert best({"a": 4.0}, "low") == set()
    assert best({"a": 4.0, "b": None}, "low") == set()
    assert best({"a": 4.0, "b": 5.0}, "real", real=None) == set()


def test_methods_scored_on_different_videos_are_not_marked_and_it_is_said() -> None:
    result = made_result({"a": {"fid": 1.0}, "b": {"fid": 2.0}}, keys={"b": ["other"]})
    assert best_methods(result, COLUMNS[0]) == set()
    assert any("different videos" in line for line in table_notes(result))


# --- tables


def test_tables_have_the_paper_s_order_and_the_real_row_last() -> None:
    result = made_result(
        {"ours": {"fid": 8.757, "confidence": 3.9, "velocity": 0.3}, "theirs": {"fid": 9.0}},
        real={"confidence": 7.3, "velocity": 0.29},
    )
    first, second = result_tables(result)
    assert first.columns == ("", "videos", "FID ↓", "SyncNet ↑")
    assert [[cell.text for cell in row] for row in first.rows] == [
        ["ours", "2", "8.76", "3.900"],
        ["theirs", "2", "9.00", "-"],
        ["real videos", "2", "-", "7.300"],
    ]
    assert [[cell.best for cell in row] for row in first.rows][0] == [False, False, True, False]
    assert second.columns == ("", "ours", "theirs", "real videos")
    assert [cell.text for cell in second.rows[0]] == ["Mean velocity, ° ≈", "0.30", "-", "0.29"]


def test_names_of_methods_are_not_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables(made_result({"[red]x[/red] [1]": {"fid": 1.0}}), with_published=False)
    assert "[red]x[/red] [1]" in capsys.readouterr().out


def test_published_rows_stand_apart_and_are_called_published(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_tables(made_result({"ours": {"fid": 1.0}}), with_published=True)
    text = capsys.readouterr().out
    measured, _, printed = text.partition("PUBLISHED")
    assert "ours" in measured and "Wav2Lip" not in measured
    assert "8.76 / 17.33" in printed and "not measured here" in printed and "ours" not in printed


def test_published_rows_have_a_value_in_every_column() -> None:
    assert {len(row) for row in published.TABLE_1} == {len(published.TABLE_1_COLUMNS)}
    assert {len(row) for row in published.TABLE_2} == {len(published.TABLE_2_COLUMNS)}


# --- the command


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """real/ and ours/, and only a metric of colours that finds no faces."""
    for i in range(2):
        write_video(tmp_path / f"real/{i}.mkv", face_frames(6), sound=tone(3840))
        write_video(tmp_path / f"ours/{i}.mp4", face_frames(6, grey=60))
    monkeypatch.setattr(registry, "METRICS", {"fid": fake_metrics.TintDistance})
    monkeypatch.setattr(registry, "build_extractors", fake_metrics.tint_only)
    monkeypatch.setenv("EMO_HOME", str(tmp_path / "home"))
    return tmp_path


def emo(*arguments: object) -> tuple[int, str]:
    """Exit code and standard output."""
    runner = CliRunner()
    with runner.isolation() as streams:
        code = cli.run([str(argument) for argument in arguments])
        return code, streams[0].getvalue().decode()


def test_json_says_figures_counts_protocol_and_digests(folders: Path) -> None:
    (folders / "ours" / "2.mp4").write_bytes(b"garbage")
    options = ["--real", folders / "real", "--metrics", "fid", "--json", "--published", "-q"]
    code, out = emo("eval", folders / "ours", *options)
    assert code == 0
    found = json.loads(out)
    ours = found["methods"]["ours"]
    assert ours["values"]["fid"] > 10
    assert (ours["videos"], ours["frames"], list(ours["skipped"])) == (2, 12, ["2"])
    assert found["missing"]["ours"]["not among the real videos"] == ["2"]
    assert found["extractors"]["tint"].startswith("tint 1 | 25 fps")
    assert found["published"]["tables"][0]["rows"][0][0] == "Wav2Lip"
    assert {"python", "torch", "mediapipe"} < set(found["libraries"])
    assert found["emo_version"] and found["date"] and found["protocol"]["fps"] == 25
    code, _ = emo("eval", folders / "ours", *options, "--strict")
    assert code == 1


def test_a_metric_that_gives_no_number_leaves_its_field_empty(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nan(fake_metrics.TintDistance):
        def score(self, generated: object, real: object) -> Score:  # type: ignore[override]
            nan = float("nan")
            return Score(values={"fid": nan}, per_video={"fid": {"0": nan, "1": 2.0}})

    class Other(fake_metrics.TintDistance):
        name = "other"
        columns = (Column(key="other", heading="Other", digits=2, better="low"),)

        def score(self, generated: object, real: object) -> Score:  # type: ignore[override]
            return Score(values={"other": 1.0})

    monkeypatch.setattr(registry, "METRICS", {"fid": Nan, "other": Other})
    options = ["--real", folders / "real", "--metrics", "fid,other", "--json", "-q"]
    ours = json.loads(emo("eval", folders / "ours", *options)[1])["methods"]["ours"]
    assert ours["values"] == {"fid": None, "other": 1.0}
    assert ours["per_video"] == {"fid": {"1": 2.0}}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--metrics", "fid"], 2),  # needs --real
        (["--metrics", "nothing", "--real", "real"], 2),
        (["--metrics", ",", "--real", "real"], 2),
        (["--metrics", "fid", "--real", "real", "--method", "x"], 2),
        (["--metrics", "fid", "--real", "real", "--method", "ours=real"], 2),
        (["--metrics", "fid", "--real", "real", "--model", "mini"], 2),
        (["--metrics", "fid", "--real", "nowhere"], 1),
        (["--metrics", "fid", "--real", "empty"], 1),
    ],
)
def test_wrong_use_is_refused_with_its_exit_code(
    folders: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int
) -> None:
    monkeypatch.chdir(folders)
    (folders / "empty").mkdir()
    assert emo("eval", "ours", *arguments)[0] == code


def test_the_registry_s_names_are_those_of_the_metrics_and_extractors() -> None:
    metrics = {name: make() for name, make in registry.METRICS.items()}
    assert {name: metric.name for name, metric in metrics.items()} == {n: n for n in metrics}
    for metric in metrics.values():
        assert registry.build_extractors([metric.extractor])[0].name == metric.extractor
    assert set(registry.DEFAULT_METRICS) < set(registry.METRICS)
