"""The benchmarks run at small width on a CPU, and count what they say they count."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_models import SMALL_FULL, SMALL_MINI, save_small

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """Benchmarks import each other by their bare names."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (BENCHMARKS / f"{name}.py").exists():
            del sys.modules[name]


def test_flops_of_a_matrix_product_and_of_attention_are_counted_on_a_cpu():
    from measure import flops

    a = torch.randn(4, 8)
    assert flops(lambda: a @ a.T, CPU) == 2 * 4 * 8 * 4
    q = torch.randn(1, 2, 16, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert flops(lambda: attend(q, q, q), CPU) == 2 * 2 * (2 * 16 * 16 * 8)


def test_the_table_of_full_is_made_row_by_row():
    from full import Row, table

    rows = (Row(quality="balanced"), Row(quality="fast"), Row(quality="fast", low_vram=True))
    results = table(SMALL_FULL, rows, CPU, torch.float32, clips=1, budget_s=1e9)
    assert results["fast, eager, low VRAM"]["goal_s"] == 2 * results["fast, eager"]["s_per_clip"]
    assert list(results) == ["balanced, eager", "fast, eager", "fast, eager, low VRAM"]
    balanced, fast, low = results.values()
    assert 0 < fast["tflop"] < balanced["tflop"] / 2
    assert {"guided step", "step", "decode"} <= balanced["phases"].keys()
    assert {"step", "step, deep features reused"} <= fast["phases"].keys()
    assert low["apart_from_eager"] == 0 and low["s_per_clip"] > 0


def test_rows_beyond_the_budget_are_left_out(capsys):
    from full import Row, table

    rows = (Row(quality="fast"),)
    assert table(SMALL_FULL, rows, CPU, torch.float32, clips=1, budget_s=-1.0) == {}
    assert "left out" in capsys.readouterr().out


def test_a_row_that_fails_leaves_the_others_their_figures(monkeypatch, capsys):
    import full

    def measure_row(row, *given):
        if row.low_vram:
            raise torch.OutOfMemoryError("too much")
        return whole(row, *given)

    whole = full.measure_row
    monkeypatch.setattr(full, "measure_row", measure_row)
    rows = (full.Row(quality="fast", low_vram=True), full.Row(quality="fast"))
    results = full.table(SMALL_FULL, rows, CPU, torch.float32, clips=1, budget_s=1e9)
    assert list(results) == ["fast, eager"]
    assert "low VRAM: failed, OutOfMemoryError: too much" in capsys.readouterr().out


def test_a_clip_costs_the_time_between_two_that_are_handed_out(monkeypatch):
    """As on a GPU: a clip comes when the next one is launched, the last two come together."""
    import full

    now = 0.0

    class Overlapping:
        def clips(self, count):
            nonlocal now
            for index in range(count):
                now = 1.5 * min(index + 2, count)
                yield SimpleNamespace(motion=torch.zeros(1))

    monkeypatch.setattr(full, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(full, "prepared", lambda engine, quality, clips: clips)
    monkeypatch.setattr(full.Engine, "of_model", lambda *given, **how: Overlapping())
    row, nothing = full.Row(quality="fast"), torch.nn.Identity()
    assert full.measure_row(row, nothing, torch.float32, CPU, 3)[0]["s_per_clip"] == 1.5


@pytest.mark.parametrize(
    "ways", [({}, {"low_vram": True}), pytest.param(({"compiled": True},), marks=pytest.mark.slow)]
)
def test_the_whole_table_comes_from_one_run(monkeypatch, capsys, ways):
    import full

    monkeypatch.setattr(full, "ROWS", tuple(full.Row(quality="fast", **way) for way in ways))
    full.main(SMALL_FULL, ["--device", "cpu", "--dtype", "fp32", "--clips", "1", "--profile"])
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert len(found["rows"]) == len(ways) and found["step"]["emo"]["gflop"] > 0
    assert ("Self CPU" in printed) == ({} in ways)


def test_what_full_asks_for_is_counted_without_running_it(capsys):
    import full

    full.main(SMALL_FULL, ["--count"])
    found = json.loads(capsys.readouterr().out)
    paper, fast = found["tflop"]["paper"], found["tflop"]["fast"]
    for counts, steps in (
        (paper, 40 * paper["guided step"]),
        (fast, 5 * fast["step"] + 5 * fast["step, deep features reused"]),
    ):
        assert counts["clip"] == pytest.approx(steps + counts["clip conditions"] + counts["decode"])
    assert found["weights_gb"].keys() >= {"backbone", "reference_net", "autoencoder"}


def test_generate_times_each_phase_and_whole_clips(monkeypatch, capsys, tmp_path):
    import generate

    folder = save_small(tmp_path, SMALL_MINI)
    given = ["--model", str(folder), "--device", "cpu", "--clips", "3", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["generate.py", *given])
    generate.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    kinds = {"load", "audio, a window", "reference", "clip conditions", "decode", "clip", "mux"}
    assert kinds <= found["phases"].keys() and found["phases"]["clip"]["gflop"] > 0


def test_a_step_is_compared_with_diffusers_of_the_same_widths():
    from step import compare

    rows = compare(SMALL_MINI, CPU, torch.float32, repeats=1)
    assert rows.keys() == {"emo", "diffusers"}
    assert all(row["gflop"] > 0 and row["cpu_s"] > 0 for row in rows.values())


def test_reused_deep_features_cost_fewer_flops(tmp_path):
    from clip_phases import clip_phases, count_clip
    from full import prepared

    from emo_cli import Engine

    engine = Engine(save_small(tmp_path, SMALL_FULL), device="cpu")
    counts = count_clip(engine, clip_phases(engine, prepared(engine, "fast", 2)))
    assert counts["step, deep features reused"] < 0.6 * counts["step"]
    steps = 5 * counts["step"] + 5 * counts["step, deep features reused"]
    assert counts["clip"] == steps + counts["clip conditions"] + counts["decode"]
