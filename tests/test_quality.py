"""What --quality means, and that a user's own options win over it."""

import dataclasses
import json

import pytest

from emo_cli import cli
from emo_cli.config import GenerateOptions
from emo_cli.errors import EmoError
from emo_cli.presets import FULL, MINI
from emo_cli.quality import QUALITIES, TABLE, check_options, parse_interval, resolve
from emo_cli.sampler import build_scheduler

CONFIGS = {"full": FULL, "mini": MINI}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_without_a_quality_the_model_decides_and_nothing_is_cached(config):
    sampling, own = resolve(GenerateOptions(), config), config.diffusion
    assert (sampling.solver, sampling.steps) == (own.solver, own.steps)
    guidance = (sampling.guidance, sampling.audio_guidance)
    assert guidance == (own.guidance, own.audio_guidance)
    assert sampling.guidance_interval is None
    assert sampling.guidance_rescale == 0 and sampling.cache_interval == 1


def test_paper_is_forty_fully_guided_ddim_steps():
    sampling = resolve(GenerateOptions(quality="paper"), FULL)
    assert (sampling.solver, sampling.steps, sampling.guidance) == ("ddim", 40, 3.5)
    assert sampling.guidance_interval is None and sampling.cache_interval == 1


def forwards(sampling):
    """Whole forwards of the Backbone, as if every step were guided that may be."""
    return sampling.steps / sampling.cache_interval * (1 if sampling.guidance == 1 else 2)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_quality_costs_less_than_the_one_above(config):
    costs = [forwards(resolve(GenerateOptions(quality=name), config)) for name in QUALITIES]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 3


@pytest.mark.parametrize(("layout", "quality"), TABLE)
def test_every_row_can_be_sampled(layout, quality):
    sampling = resolve(GenerateOptions(quality=quality), CONFIGS[layout])
    scheduler = build_scheduler(CONFIGS[layout].diffusion, sampling.solver, sampling.steps)
    assert len(scheduler.timesteps) == sampling.steps


@pytest.mark.parametrize("quality", QUALITIES)
def test_a_users_option_wins_over_the_quality(quality):
    own = {
        "steps": 25,
        "solver": "dpm++",
        "guidance": 5.0,
        "audio_guidance": 6.0,
        "guidance_interval": (1, 998),
        "guidance_rescale": 0.25,
        "cache_interval": 4,
    }
    sampling = resolve(GenerateOptions(quality=quality, **own), FULL)
    assert {name: getattr(sampling, name) for name in own} == own


def test_the_sound_is_guided_as_the_rest_where_the_user_or_a_quality_names_one():
    assert resolve(GenerateOptions(guidance=3.0), MINI).audio_guidance == 3.0
    assert resolve(GenerateOptions(quality="fast"), MINI).audio_guidance == 1.0
    assert resolve(GenerateOptions(guidance=3.0, audio_guidance=1.5), MINI).audio_guidance == 1.5


def test_off_can_be_said_against_a_quality():
    off = GenerateOptions(
        quality="balanced", guidance_interval=(0, 999), guidance_rescale=0.0, guidance=1.0
    )
    sampling = resolve(off, FULL)
    assert sampling.guidance_interval == (0, 999)
    assert sampling.guidance_rescale == 0 and sampling.guidance == 1
    assert resolve(GenerateOptions(quality="fast", cache_interval=1), FULL).cache_interval == 1


def test_a_distilled_model_is_not_slowed_down_by_fast():
    diffusion = dataclasses.replace(FULL.diffusion, steps=4)
    distilled = dataclasses.replace(FULL, diffusion=diffusion)
    sampling = resolve(GenerateOptions(quality="fast"), distilled)
    assert sampling.steps == 4 and sampling.cache_interval == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "best"}, "'best' is no quality"),
        ({"solver": "euler"}, "'euler' is no solver"),
        ({"guidance_interval": (700, 300)}, "from timestep 700 to 300"),
        ({"guidance_interval": (0, 1000)}, "to 1000"),
        ({"guidance_rescale": 1.5}, "rescale"),
        ({"cache_interval": 0}, "cache interval"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_options_out_of_range_are_refused_with_usage(options, message):
    with pytest.raises(EmoError, match=message) as caught:
        check_options(GenerateOptions(**options))
    assert caught.value.exit_code == 2 and caught.value.hint


def test_an_interval_is_two_whole_numbers():
    assert parse_interval("200,800") == (200, 800) and parse_interval(None) is None
    for text in ("200", "200,", "a,b", "1,2,3"):
        with pytest.raises(EmoError, match="no interval"):
            parse_interval(text)


def test_the_report_has_what_the_quality_meant(small_model, portrait, speech, tmp_path, capsys):
    out = tmp_path / "a.mp4"
    command = ["generate", str(portrait), str(speech), "-o", str(out), "--model", str(small_model)]
    command += ["--face-region", "100,50,400,450", "--duration", "0.5", "--device", "cpu"]
    command += ["--quality", "balanced", "--steps", "5", "--guidance-interval", "100,900", "--json"]
    command += ["--guidance", "1.5"]
    assert cli.run(command) == 0
    options = json.loads(capsys.readouterr().out)["options"]
    expected = dataclasses.asdict(TABLE["mini", "balanced"])
    assert options["quality"] == "balanced"
    assert {name: options[name] for name in expected} == expected | {
        "steps": 5,
        "guidance": 1.5,
        "guidance_interval": [100, 900],
    }
    assert json.loads(out.with_suffix(".json").read_text())["options"] == options


@pytest.mark.parametrize(
    "arguments", [["--quality", "best"], ["--guidance-interval", "9"], ["--cache-interval", "0"]]
)
def test_a_wrong_option_exits_with_2_before_anything_is_read(arguments, capsys):
    assert cli.run(["generate", "nowhere.png", "nothing.wav", *arguments]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_model_is_told_a_share_of_what_is_asked_above_its_usual_speed():
    speed = dataclasses.replace(MINI.speed, usual=0.2, gain=0.25)
    assert [speed.told(asked) for asked in (0.1, 0.2, 1.0)] == pytest.approx([0.1, 0.2, 0.4])
    config = dataclasses.replace(MINI, speed=speed)
    assert resolve(GenerateOptions(speed=1.0), config).speed == pytest.approx(0.4)
    assert FULL.speed.told(1.9) == 1.9  # as the paper
