import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from time_tuner import SAMPLERS, SPACINGS, TUNERS, NoiseScheduleVP, Plan, SeededNoise, make_plan
from time_tuner.cli import demo
from time_tuner.cli import output as report
from time_tuner.cli import sample as drawing
from time_tuner.cli import tune as tuning
from time_tuner.cli.app import app
from time_tuner.noise import STEP_NOISE


def call(*args: Any) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def done(*args: Any) -> Result:
    result = call(*args)
    assert result.exit_code == 0, result.output
    assert not result.stderr
    return result


def arrays(*args: Any, out: Path) -> np.ndarray:
    done("sample", *args, "--out", out)
    with np.load(out) as held:
        return held["samples"]


def size_of_picture(path: Path) -> tuple[int, int]:
    """Its size; it must be a PNG with something on it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 1
        return image.size


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "tuned.json"
    done("tune", "--model", "gaussian", "--calls", 5, "--samples", 32, "--out", path)
    return path


def test_a_plan_is_tuned_judged_and_saved(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.json"
    result = done("tune", "--model", "gaussian", "--calls", 6, "--spacing", "uniform", "--samples", 64, "--out", path)
    plan = Plan.load(path)
    note = plan.provenance
    assert len(plan) == 6
    assert note["distance"]["tuned"] <= note["distance"]["untuned"]
    assert note["model"] == "gaussian" and note["spacing"] == "uniform" and note["samples"] == 64
    for number in ("untuned", "unguarded", "tuned"):
        assert f"{note['distance'][number]:.4f}" in result.output
    assert str(path) in result.output.replace("\n", "")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_can_be_tuned_and_drawn_from(tmp_path: Path, sampler: str) -> None:
    plan = tmp_path / "plan.json"
    done("tune", "--model", "gaussian", "--sampler", sampler, "--calls", 4, "--samples", 16, "--out", plan)
    assert isinstance(Plan.load(plan).sampler, SAMPLERS[sampler])
    assert arrays("--model", "gaussian", "--plan", plan, "-n", 3, out=tmp_path / "s.npz").shape == (3, 1)


@pytest.mark.parametrize("spacing", [*(name for name in SPACINGS if name != "ays"), "karras(rho=3)"])
@pytest.mark.parametrize("method", TUNERS)
def test_every_spacing_and_method_is_accepted(tmp_path: Path, spacing: str, method: str) -> None:
    plan = tmp_path / "plan.json"
    done(
        "tune", "--model", "gaussian", "--spacing", spacing, "--method", method, "--calls", 3, "--samples", 16,
        "--budget", "200calls", "--out", plan,
    )  # fmt: skip
    assert Plan.load(plan).provenance["method"] == method


def test_joint_plans_for_several_numbers_of_calls(tmp_path: Path) -> None:
    out, teacher = tmp_path / "plans.json", tmp_path / "teacher.safetensors"
    options = ("--model", "gaussian", "--method", "joint", "--samples", 16, "--budget", "100calls")
    said = done("tune", *options, "--tune", "times,tau", "--teacher", teacher, "--out", out, "--calls", 3, 5, 4)
    assert [line for line in said.output.splitlines() if re.match(r"\d calls: ", line)]
    for calls in (3, 4, 5):
        plan = Plan.load(out, calls)
        assert plan.provenance["tune"] == ["times", "tau"] and plan.corrections is None
        assert plan.provenance["distance"]["tuned"] <= plan.provenance["distance"]["untuned"]
    assert teacher.exists() and not list(tmp_path.glob("*.partial*"))
    refused = call("tune", *options, "--tune", "time", "--out", out)
    assert refused.exit_code == 2 and "tune must name some of times, tau, corrections" in refused.stderr


def test_new_entries_of_the_tables_are_in_the_help() -> None:
    for names, commands in ((SAMPLERS, ("tune", "sample")), (SPACINGS, ("tune", "sample")), (TUNERS, ("tune",))):
        for command in commands:
            words = set(re.findall(r"\w+", done(command, "--help").output))
            assert set(names) <= words


def test_options_reach_the_sampler(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    done(
        "tune", "--model", "gaussian", "--sampler", "dpmpp(order=3, lower_order_final=true)",
        "--calls", 4, "--samples", 16, "--out", path,
    )  # fmt: skip
    assert Plan.load(path).sampler == SAMPLERS["dpmpp"](order=3, lower_order_final=True)


def test_data_of_ones_own_is_tuned_on(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.linspace(0, 10, 40))
    path = tmp_path / "plan.json"
    done("tune", "--model", "gaussian", "--data", tmp_path / "x.npz", "--calls", 3, "--samples", 16, "--out", path)
    assert Plan.load(path).provenance["data"] == "given"


def test_samples_do_not_depend_on_how_many_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = ("--model", "gaussian", "--sampler", "ddpm", "--calls", 6)
    eight = arrays(*drawn, "-n", 8, out=tmp_path / "8.npz")
    sixteen = arrays(*drawn, "-n", 16, out=tmp_path / "16.npz")
    assert np.allclose(sixteen[:8], eight, atol=1e-6)
    later = arrays(*drawn, "-n", 8, "--seed", 8, out=tmp_path / "later.npz")
    assert np.allclose(sixteen[8:], later, atol=1e-6)
    monkeypatch.setattr(drawing, "BATCH", 3)
    assert np.allclose(arrays(*drawn, "-n", 16, out=tmp_path / "threes.npz"), sixteen, atol=1e-6)
    assert len(np.unique(sixteen)) == 16


def test_noise_of_the_steps_is_not_that_of_the_start() -> None:
    x = torch.empty(1, 4)
    assert not torch.equal(SeededNoise([0])(x), SeededNoise([STEP_NOISE])(x))


def test_digits_are_drawn_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = ("--calls", 2, "--spacing", "uniform", "--label", "0,1,2")
    whole = arrays(*common, "-n", 4, out=tmp_path / "a.npz")
    monkeypatch.setattr(drawing, "BATCH", 3)
    assert np.allclose(arrays(*common, "-n", 4, out=tmp_path / "b.npz"), whole, atol=1e-4)
    # Digit 3 of the whole was dealt label 0, and a guidance scale of 1 is none.
    alone = arrays(*common[:-2], "-n", 1, "--seed", 3, "--label", 0, "--guidance-scale", 1, out=tmp_path / "c.npz")
    assert np.allclose(alone[0], whole[3], atol=1e-4)
    guided = arrays(*common[:-2], "-n", 1, "--seed", 3, "--label", 0, "--guidance-scale", 3, out=tmp_path / "d.npz")
    assert not np.allclose(guided, alone, atol=1e-2)


def test_digits_become_a_sheet(tmp_path: Path) -> None:
    out = tmp_path / "new" / "samples.png"
    result = done("sample", "--calls", 1, "-n", 3, "--out", out)
    assert "3 samples in 1 calls, untuned" in result.output
    assert size_of_picture(out) == (3 * 58, 3 * 58)


def test_scalar_samples_become_a_histogram(tmp_path: Path, plan_file: Path) -> None:
    out = tmp_path / "samples.png"
    result = done("sample", "--model", "gaussian", "--plan", plan_file, "-n", 50, "--out", out)
    assert "in 5 calls" in result.output
    assert size_of_picture(out)[0] > 600


def test_a_plan_is_picked_from_a_file_of_several(tmp_path: Path, discrete: NoiseScheduleVP) -> None:
    path = tmp_path / "plans.json"
    path.write_text(json.dumps([make_plan("ddim", discrete, calls).to_dict() for calls in (2, 3)]))
    drawn = done("sample", "--model", "gaussian", "--plan", path, "--calls", 3, "-n", 2, "--out", tmp_path / "s.npz")
    assert "in 3 calls" in drawn.output
    assert "calls = [2, 3]" in call("show", path).stderr
    assert "tau" in done("show", path, "--calls", 2).output


def test_show_prints_and_plots_what_the_network_is_told(tmp_path: Path, plan_file: Path) -> None:
    out = tmp_path / "tau.png"
    result = done("show", plan_file, "--out", out)
    plan = Plan.load(plan_file)
    for k in range(len(plan)):
        assert f"{plan.t[k]:.5f}" in result.output and f"{plan.tau[k]:.5f}" in result.output
    assert "DDIM" in result.output and "gaussian" in result.output
    assert report.verdict(plan) in result.output
    size_of_picture(out)


def test_a_model_function_that_wants_more_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wants_more.py").write_text("def model(size, label=None):\n    return size\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = call("sample", "--model", "wants_more:model", "--out", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "wants the argument 'size'" in result.stderr


def test_the_verdict_is_plain(discrete: NoiseScheduleVP) -> None:
    plan = make_plan("ddim", discrete, 3)

    def verdict(before: float, bare: float, after: float, reverted: list[int]) -> str:
        return report.verdict(
            plan.with_provenance(
                distance={"untuned": before, "unguarded": bare, "tuned": after}, reverted_calls=reverted
            )
        )

    nearer = "the tuned plan ends 50.0% nearer to the many-call run than the untuned one"
    assert verdict(2, 1, 1, []) == nearer
    assert verdict(2, 3, 1, [1, 2]) == f"{nearer}, after rows 1, 2 were put back, which did harm"
    assert verdict(2, 1.5, 1, [1]) == f"{nearer}, after row 1 was put back, which did harm"
    assert verdict(2, 3, 2, [0, 1, 2]).startswith("the tuned plan was worse on held-out noise: the untuned")
    assert verdict(2, 1.9, 2, [0, 1, 2]).startswith("the tuned plan was not nearer by more than chance on held-out")
    assert verdict(2, 2, 2, []).startswith("tuning changed nothing")


def test_the_demo_compares_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CALLS", 2)
    monkeypatch.setattr(demo, "MORE_CALLS", (3,))
    monkeypatch.setattr(demo, "SAMPLES", 4)
    monkeypatch.setattr(demo, "REFERENCE_CALLS", 4)
    monkeypatch.setitem(demo.TUNED, "joint", demo.TUNED["joint"] | {"iterations": 2, "pairs": 8})
    result = done("demo", "--out", tmp_path / "shown")
    names = {"comparison.png", "tau.png", "timetuner-2.json", "joint-2.json"}
    assert {path.name for path in (tmp_path / "shown").iterdir()} == names
    assert all(name in result.output for name in names)
    width, height = size_of_picture(tmp_path / "shown" / "comparison.png")
    assert width > 1000 and height > 500
    size_of_picture(tmp_path / "shown" / "tau.png")
    for name in ("timetuner", "joint"):
        plan = Plan.load(tmp_path / "shown" / f"{name}-2.json")
        assert len(plan) == 2
        assert plan.provenance["distance"]["tuned"] <= plan.provenance["distance"]["untuned"]
        assert f"{plan.provenance['distance']['untuned']:.3f}" in result.output


GAUSSIAN = ("--model", "gaussian")

BAD = {
    ("tune", "--model", "gaussian", "--spacing", "karras(rho=x)"): "rho of spacing 'karras' must be a number",
    (
        "tune",
        "--model",
        "gaussian",
        "--method",
        "joint",
        "--sampler",
        "ddpm",
        "--dry-run",
    ): "needs a plan without noise",
    ("tune", "--model", "gaussian", "--teacher", "t.safetensors"): "--teacher is not for --method sequential",
    (
        "tune",
        "--model",
        "gaussian",
        "--method",
        "joint",
        "--objective",
        "noise",
    ): "--objective is not for --method joint",
    ("tune", "--model", "gaussian", "--method", "joint", "--teacher", "t.pt"): "--teacher must end in .safetensors",
    ("tune", "--model", "gaussian", "--method", "joint", "--tune", "foo", "--dry-run"): "tune must name some of",
    ("nonsense",): "nonsense",
    ("tune", "--nonsense"): "--nonsense",
    ("tune", "--calls", "few"): "--calls",
    ("tune", "--model", "nope"): "model must be",
    ("tune", "--model", "no.such:function"): "no.such:function",
    ("tune", *GAUSSIAN, "--sampler", "nope"): "sampler must be one of",
    ("tune", *GAUSSIAN, "--spacing", "nope"): "spacing must be one of",
    ("tune", *GAUSSIAN, "--method", "nope"): "method must be one of",
    ("tune", *GAUSSIAN, "--calls", "0"): "calls must be",
    ("tune", *GAUSSIAN, "--calls", "1001"): "calls must be at most",
    ("tune", *GAUSSIAN, "--sampler", "heun", "--calls", "5"): "take 4 or 6",
    ("tune", *GAUSSIAN, "--sampler", "ddim(eta)"): "must be written name(option=value, ...)",
    ("tune", *GAUSSIAN, "--sampler", "ddim(name=ddpm)"): "no option 'name'",
    ("tune", *GAUSSIAN, "--sampler", "ddim(eta=2)"): "eta of DDIM",
    ("tune", *GAUSSIAN, "--sampler", "ddim(order=2)"): "no option 'order'",
    ("tune", *GAUSSIAN, "--sampler", "DDIM"): "did you mean 'ddim'?",
    ("tune", *GAUSSIAN, "--sampler", "euler"): "take ddim(eta=0), which is the same",
    ("tune", *GAUSSIAN, "--samples", "1"): "--samples",
    ("tune", *GAUSSIAN, "--seed", "-1"): "--seed",
    ("tune", *GAUSSIAN, "--label", "3"): "label",
    ("tune", *GAUSSIAN, "--guidance-scale", "2"): "guidance_scale",
    ("tune", *GAUSSIAN, "--data", "missing"): "does not exist",
    ("tune", *GAUSSIAN, "--data", "empty"): "no pictures",
    ("tune", "--data", "empty"): "holds no images",
    ("tune", "--data", "empty", "--label", "0,1"): "--label must be one",
    ("tune", "--label", "x"): "--label",
    ("tune", "--label", "11"): "label",
    ("tune", "--guidance-scale", "2"): "needs label",
    ("tune", *GAUSSIAN, "--out", "plan.txt"): "--out must end in .json",
    ("tune", *GAUSSIAN, "--out", "text/plan.json"): "cannot be written",
    ("sample", *GAUSSIAN, "-n", "0"): "-n",
    ("sample", *GAUSSIAN, "--out", "s.gif"): "--out must end in .png or .npz",
    ("sample", *GAUSSIAN, "--seed", str(2**31)): "--seed",
    ("sample", *GAUSSIAN, "--plan", "missing.json"): "missing.json",
    ("sample", *GAUSSIAN, "--plan", "text"): "not a plan file",
    ("sample", *GAUSSIAN, "--plan", "linear.json"): "another noise schedule",
    ("sample", *GAUSSIAN, "--plan", "linear.json", "--calls", "7"): "calls=7",
    ("sample", *GAUSSIAN, "--plan", "linear.json", "--sampler", "ddim"): "either --plan or",
    ("sample", "--guidance-scale", "nan", "--label", "1", "--calls", "1", "-n", "1"): "NaN",
    ("sample", "-n", "1000000"): "ask for fewer",
    ("show",): "PLAN",
    ("show", "missing.json"): "no file 'missing.json'; plans that come with a model: digits/ddim-10",
    ("show", "empty"): "empty: Is a directory",
    ("show", "text"): "not a plan file",
    ("show", "linear.json", "--out", "tau.bmp"): "--out must end in .png",
    ("demo", "--out", "text"): "--out must be a folder",
    ("demo", "--out", "text/demo"): "cannot be written",
    ("demo", "--seed", "-3"): "--seed",
}


@pytest.mark.parametrize("args", BAD, ids=" ".join)
def test_bad_input_is_one_line_and_exit_code_2(
    args: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("text").write_text("neither a folder nor a plan")
    Path("empty").mkdir()
    make_plan("ddim", NoiseScheduleVP("linear"), 3).save("linear.json")
    there = sorted(tmp_path.rglob("*"))
    result = call(*args)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert BAD[args] in result.stderr
    assert not result.stdout
    assert sorted(tmp_path.rglob("*")) == there


def test_a_model_is_found_where_the_command_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("found_here.py").write_text(
        "import time_tuner as tt\n"
        "def broken():\n"
        "    schedule = tt.NoiseScheduleVP('linear')\n"
        "    return tt.as_model(lambda x, t, tau=None: x / 0, schedule, (2,))\n"
    )
    assert "NaN or infinity at call 0" in call("sample", "--model", "found_here:broken", "--out", "s.npz").stderr
    assert r".npz" in call("sample", "--model", "found_here:broken", "--out", "s.png").stderr
    assert not Path("s.npz").exists()


def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "tune", interrupted)
    result = call("tune", *GAUSSIAN, "--samples", 4, "--out", tmp_path / "plan.json")
    assert result.exit_code == 130
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("interrupted")
    assert not list(tmp_path.iterdir())


def test_help_and_version_are_for_people() -> None:
    for args in ((), ("--help",), ("-h",)):
        assert "time-tuner demo" in done(*args).output
    assert re.fullmatch(r"time-tuner \d+\.\d+\.\d+\n", done("--version").output)
    for command in ("demo", "tune", "sample"):
        output = done(command, "--help").output
        assert "--out" in output and "[default: " in output


def test_imports_are_light_and_the_entry_point_works() -> None:
    script = (
        "import sys, time_tuner\n"
        "heavy = lambda *names: sorted(set(names) & set(sys.modules))\n"
        "print(heavy('diffusers', 'transformers', 'matplotlib', 'typer', 'rich', 'PIL'))\n"
        "from time_tuner.cli.app import main\n"
        "sys.argv = ['time-tuner', 'tune', '--help']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as error:\n"
        "    print(error.code, heavy('diffusers', 'transformers', 'matplotlib', 'PIL'))\n"
    )
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = made.stdout.splitlines()
    assert lines[0] == "[]"
    assert lines[-1] == "0 []"
    assert "Usage: time-tuner tune" in made.stdout
