"""Comparing runs: the tutorial's comparison, any model, any runs, any plan files."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from time_tuner import SAMPLERS, SeededNoise, exact, load_model, make_plan, sample
from time_tuner.cli.app import app
from time_tuner.metrics import exact_moments
from time_tuner.plans.build import parse_run

MODEL = load_model("gaussian")


def compare(folder: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["compare", "--out", str(folder / "picture.png"), *arguments])
    return result.exit_code, result.output


def test_the_tutorials_comparison_shows_estimates_beside_the_exact_figures(tmp_path: Path) -> None:
    code, said = compare(tmp_path, "--model", "gaussian", "ddpm:100", "ddpm:10", "ddim:10", "-n", "2000")
    assert code == 0
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in said.splitlines() if line.startswith("│")}
    for name, mean, std in (
        ("ddpm:100", 4.99919, 1.97657),
        ("ddpm:10", 4.99919, 1.76542),
        ("ddim:10", 4.94627, 1.69161),
    ):
        _, mean_drawn, std_drawn, mean_exact, std_exact, _ = map(float, rows[name])
        assert (mean_exact, std_exact) == (pytest.approx(mean, abs=1e-4), pytest.approx(std, abs=1e-4))
        assert mean_drawn == pytest.approx(mean, abs=4 * std / 2000**0.5)
        assert std_drawn == pytest.approx(std, abs=4 * std / 4000**0.5)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 2 * picture.height, "three histograms side by side"
        assert len(picture.convert("L").getcolors()) > 10


def test_runs_of_pictures_are_measured_by_a_many_call_run(tmp_path: Path) -> None:
    plan = make_plan("heun", load_model("digits").schedule, calls=4, spacing="quadratic")
    plan.save(tmp_path / "plan.json")
    code, said = compare(tmp_path, "ddim:2", str(tmp_path / "plan.json"), "ddpm:2", "-n", "3", "--label", "1,2,3")
    assert code == 0, said
    assert "distance" in said and "plan.json" in said
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ddim"], r"sampler\[\(option=value, ...\)\]:calls\[@spacing\], got 'ddim'"),
        (["ddim:0"], "calls must be a whole number"),
        (["nope:5"], "sampler must be one of"),
        (["ddim(order=2):5"], "no option 'order'"),
        (["ddim(eta):5"], r"'ddim\(eta\)' must be written name\(option=value, ...\)"),
        (["ddim:5@nowhere"], "spacing must be one of"),
        (["missing.json"], "missing.json"),
        (["plan.json:x"], "path.json:calls"),
    ],
)
def test_a_run_that_is_no_run_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    code, said = compare(tmp_path, "--model", "gaussian", "-n", "10", *arguments)
    assert code == 2
    assert re.search(message, said)
    assert "Traceback" not in said and said.strip().count("\n") == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_can_be_written_as_a_run(name: str) -> None:
    assert parse_run(f"{name}:6@leading", MODEL.schedule) == make_plan(name, MODEL.schedule, calls=6, spacing="leading")


def test_options_are_read_as_what_they_are() -> None:
    plan = parse_run("dpmpp(order=3, lower_order_final=false):8", MODEL.schedule, "logsnr")
    assert plan == make_plan(SAMPLERS["dpmpp"](order=3, lower_order_final=False), MODEL.schedule, 8, "logsnr")


def test_exact_moments_are_those_of_many_samples_of_every_coordinate() -> None:
    model = exact.Gaussian(torch.tensor([5.0, -1.0]), torch.tensor([2.0, 0.5]))
    plan = make_plan(SAMPLERS["ddim"](eta=0.7), MODEL.schedule, calls=6, spacing="quadratic")
    mean, std = exact_moments(model, plan)
    x = sample(model.eps(MODEL.schedule), plan, SeededNoise(0)(torch.empty(4000, 2)), SeededNoise(10**6)).double()
    assert torch.allclose(x.mean(0), mean, atol=float(4 * std.max() / 4000**0.5))
    assert torch.allclose(x.std(0), std, rtol=4 / 8000**0.5)
