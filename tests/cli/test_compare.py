"""Comparing runs: the tutorial's comparison, any model, any runs, any plans."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from time_tuner import SAMPLERS, Plan, SeededNoise, exact, load_model, make_plan, sample
from time_tuner.cli.app import app
from time_tuner.metrics import distance, exact_moments
from time_tuner.plans.build import parse_run, reference_plan

MODEL = load_model("gaussian")


def compare(folder: Path, *arguments: str, out: str = "picture.png") -> tuple[int, str]:
    result = CliRunner().invoke(app, ["compare", "--out", str(folder / out), *arguments])
    return result.exit_code, result.output


def rows(table: str) -> dict[str, list[tuple[float, ...]]]:
    """The numbers of each row by its name; a number with its standard error is a pair."""
    found = {}
    for line in table.splitlines():
        name, *cells = re.split(r"\s{2,}|\s(?=[\d-])", line.strip())
        if cells and all(re.fullmatch(r"-|[-\d.,]+(±[\d.]+)?", cell) for cell in cells):
            numbers = [cell.replace(",", "").split("±") for cell in cells]
            found[name] = [() if pair == ["-"] else tuple(map(float, pair)) for pair in numbers]
    return found


def test_the_tutorials_comparison_shows_estimates_beside_the_exact_figures(tmp_path: Path) -> None:
    code, output = compare(tmp_path, "--model", "gaussian", "ddpm:100", "ddpm:10", "ddim:10", "-n", "2000")
    assert code == 0, output
    table = rows(output)
    for name, calls, mean, std in (
        ("ddpm:100", 100, 4.99919, 1.97657),
        ("ddpm:10", 10, 4.99919, 1.76542),
        ("ddim:10", 10, 4.94627, 1.69161),
    ):
        (shown,), (evaluations,), (drawn, mean_error), (deviation, std_error), (exact_mean,), (exact_std,) = table[name]
        assert (shown, evaluations) == (calls, 2000 * calls)
        assert (exact_mean, exact_std) == (pytest.approx(mean, abs=1e-4), pytest.approx(std, abs=1e-4))
        assert drawn == pytest.approx(mean, abs=4 * std / 2000**0.5)
        assert deviation == pytest.approx(std, abs=4 * std / 4000**0.5)
        assert mean_error == pytest.approx(std / 2000**0.5, rel=0.1)
        assert std_error == pytest.approx(std / 4000**0.5, rel=0.15)
    assert "2,000 samples" in output
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 2 * picture.height, "three histograms side by side"
        assert len(picture.convert("L").getcolors()) > 10


def test_pictures_are_measured_by_a_reference_run_which_is_shown_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from time_tuner import plots

    captions: list[str] = []
    grid = plots.image_grid
    monkeypatch.setattr(
        plots, "image_grid", lambda strips, *a, **k: captions.extend(s.caption for s in strips) or grid(strips, *a, **k)
    )
    plan = make_plan("dpmpp", load_model("digits").schedule, calls=4, spacing="quadratic")
    plan.save(tmp_path / "plan.json")
    code, output = compare(tmp_path, "ddim:2", str(tmp_path / "plan.json"), "ddpm:2", "-n", "3", "--label", "1,2,3")
    assert code == 0, output
    assert captions == ["reference, 100 calls", "ddim:2", "plan.json", "ddpm:2"]
    table = rows(output)
    assert table["ddpm:2"][-1] == (), "a stochastic run has no distance"
    value, error = table["plan.json"][-1]
    model, noise = load_model("digits", [1, 2, 3]), SeededNoise(0)(torch.empty(3, 1, 28, 28))
    many = reference_plan(model.schedule, float(plan.t[-1]), 100)
    apart = distance(sample(model, plan, noise), sample(model, many, noise)).double()
    assert value == pytest.approx(float(apart.mean()), abs=error / 10)
    assert error == pytest.approx(float(apart.std()) / 3**0.5, rel=0.06)
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 200


def test_bundled_plans_and_files_of_several_are_runs(tmp_path: Path) -> None:
    plans = [make_plan("ddim", MODEL.schedule, calls) for calls in (2, 3)]
    Plan.save_several(plans, tmp_path / "two.json")
    file = str(tmp_path / "two.json")
    gaussian = ("--model", "gaussian", "-n", "10")
    assert {"two.json:2", "two.json:3"} <= rows(compare(tmp_path, *gaussian, file)[1]).keys()
    assert "two.json:2" not in rows(compare(tmp_path, *gaussian, f"{file}:3")[1])
    code, output = compare(tmp_path, "--model", "latent-digits", "latent-digits/ddim-5", "ddim:2", "-n", "2")
    assert code == 0, output
    assert "latent-digits/ddi" in output and "ddim:2" in rows(output)
    with Image.open(tmp_path / "picture.png") as picture:
        assert np.asarray(picture.convert("L")).std() > 10, "latents are decoded"


POINTS = (
    "import torch, time_tuner as tt\n"
    "def points():\n"
    "    return tt.exact.Mixture(torch.tensor([[1.0, 2.0], [-2.0, 0.5]]), 0.3).eps(tt.NoiseScheduleVP('linear'))\n"
    "def others():\n"
    "    return tt.exact.Mixture(torch.randn(5, 4, 3, 3), 0.3).eps(tt.NoiseScheduleVP('linear'))\n"
)


def test_points_are_scattered_and_other_shapes_kept_as_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("shapes_here.py").write_text(POINTS)
    code, output = compare(tmp_path, "--model", "shapes_here:points", "ddim:3", "-n", "50")
    assert code == 0, output
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > picture.height, "the reference and the run side by side"
    others = ("--model", "shapes_here:others", "ddim:3", "-n", "5")
    code, output = compare(tmp_path, *others)
    assert code == 2 and ".npz" in output
    code, output = compare(tmp_path, *others, out="runs.npz")
    assert code == 0 and len(rows(output)["ddim:3"][-1]) == 2
    with np.load("runs.npz") as arrays:
        assert {name: arrays[name].shape for name in arrays} == {"reference": (5, 4, 3, 3), "ddim:3": (5, 4, 3, 3)}
    result = CliRunner().invoke(app, ["compare", *others])
    assert result.exit_code == 0 and "--out runs.npz" in result.output
    assert not Path("comparison.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ddim"], r"sampler\[\(option=value, ...\)\]:calls\[@spacing\], got 'ddim'"),
        (["ddim:0"], "calls of ddim:0 must be a whole number"),
        (["nope:5"], "sampler must be one of"),
        (["ddim(order=2):5"], "no option 'order'"),
        (["ddim(eta):5"], r"must be written name\(option=value, ...\)"),
        (["ddim:5@nowhere"], "spacing must be one of"),
        (["missing.json"], "missing.json"),
        (["plan.json:x"], "path.json:calls"),
        (["digits/none"], "digits/joint-5"),
    ],
)
def test_a_run_that_is_no_run_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    code, output = compare(tmp_path, "--model", "gaussian", "-n", "10", *arguments)
    assert code == 2
    assert re.search(message, output)
    assert "Traceback" not in output and output.strip().count("\n") == 0


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
