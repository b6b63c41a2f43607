import json
import logging
import re
import runpy
import signal
import subprocess
import sys
import time
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import call, done
from PIL import Image

import time_tuner
from time_tuner import SAMPLERS, SPACINGS, TUNERS, NoiseScheduleVP, Plan, cli, make_plan
from time_tuner.cli import options, output
from time_tuner.cli import tune as tuning


def arrays(*args: Any, out: Path) -> np.ndarray:
    done("sample", *args, "--out", out)
    with np.load(out) as file:
        return file["samples"]


def size_of_picture(path: Path) -> tuple[int, int]:
    """Its size; it must be a PNG with something on it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 1
        return image.size


GAUSSIAN = ("--model", "gaussian")
QUICK = (*GAUSSIAN, "--samples", 16, "--budget", "100calls")


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "tuned.json"
    done("tune", *QUICK, "--calls", 5, "--out", path)
    return path


# --- tune ---


def test_a_plan_is_tuned_measured_and_saved(tmp_path: Path) -> None:
    path = tmp_path / "new" / "plan.json"
    result = done("tune", *QUICK, "--calls", 6, "--spacing", "uniform", "--samples", 64, "--out", path)
    plan = Plan.load(path)
    note = plan.provenance
    assert len(plan) == 6
    assert note["distance"]["tuned"] <= note["distance"]["untuned"]
    assert note["model"] == "gaussian" and note["spacing"] == "uniform" and note["samples"] == 64
    for number in ("untuned", "unguarded", "tuned"):
        assert f"{note['distance'][number]:.4f}" in result.output
    assert str(path) in result.output.replace("\n", "")
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("start", [(), ("--sampler", "ddim")])
def test_a_plan_is_tuned_to_an_end(tmp_path: Path, start: tuple[str, ...]) -> None:
    path = tmp_path / "plan.json"
    done("tune", *QUICK, *start, "--calls", 4, "--end", 0.05, "--out", path)
    assert float(Plan.load(path).t[-1]) == 0.05
    done("tune", *QUICK, *start, "--calls", 4, "--end", 0.05, "--dry-run")
    assert "end must be a time t of the schedule" in call("tune", *QUICK, *start, "--end", 1.5).stderr


def test_a_plan_is_found_for_a_number_of_evaluations(tmp_path: Path) -> None:
    """On a function of the user's under guidance; the report and the plan name evaluations."""
    path, model = tmp_path / "plan.json", "guided_problem:guided_by_label"
    how = ("--model", model, "--label", "0,1,2", "--samples", 32, "--method", "joint(pairs=32, iterations=10)")
    result = done("tune", *how, "--evaluations", 6, "--out", path)
    plan = Plan.load(path)
    assert plan.evaluations == 6 and "best untuned" in result.output
    if not all(plan.guided):
        assert "6 evaluations" in result.output
    done("tune", *how, "--evaluations", 6, "--dry-run")
    made = make_plan("ddim", plan.schedule, 6, guided=4)
    made.save(tmp_path / "made.json")
    assert "at 4 of 6 calls, 10 evaluations" in done("show", tmp_path / "made.json").output
    assert "give either --evaluations" in call("tune", *how, "--evaluations", 6, "--calls", 3).stderr
    refused = call("tune", *QUICK, "--method", "joint", "--evaluations", 6, "--out", tmp_path / "other.json")
    assert "needs a model under classifier-free guidance" in refused.stderr


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_can_be_tuned_and_drawn_from(tmp_path: Path, sampler: str) -> None:
    plan = tmp_path / "plan.json"
    done("tune", *QUICK, "--sampler", sampler, "--method", "sequential", "--calls", 5, "--out", plan)
    assert isinstance(Plan.load(plan).sampler, SAMPLERS[sampler])
    assert arrays(*GAUSSIAN, "--plan", plan, "-n", 3, out=tmp_path / "s.npz").shape == (3, 1)


EVERY_SPACING = [*(name for name in SPACINGS if name != "ays"), "karras(rho=3)"]


@pytest.mark.parametrize(("spacing", "method"), [*zip(EVERY_SPACING, cycle(TUNERS))])
def test_every_spacing_and_method_is_accepted(tmp_path: Path, spacing: str, method: str) -> None:
    plan = tmp_path / "plan.json"
    done("tune", *QUICK, "--spacing", spacing, "--method", method, "--calls", 3, "--out", plan)
    assert Plan.load(plan).provenance["tuner"] == method
    assert Plan.load(plan).provenance["spacing"] == spacing


def test_options_are_written_in_parentheses(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    sampler = "dpmpp(order=3, lower_order_final=true)"
    done("tune", *QUICK, "--sampler", sampler, "--method", "joint(parts=(times, tau))", "--calls", 4, "--out", path)
    plan = Plan.load(path)
    assert plan.sampler == SAMPLERS["dpmpp"](order=3, lower_order_final=True)
    assert plan.provenance["parts"] == ["times", "tau"] and plan.corrections is None


def test_plans_for_several_numbers_of_calls_lie_in_one_file(tmp_path: Path) -> None:
    out = tmp_path / "plans.json"
    result = done("tune", *QUICK, "--out", out, "--calls", "3,5,4")
    assert len([line for line in result.output.splitlines() if re.match(r"\d calls: ", line)]) == 3
    for plan in Plan.load_several(out):
        assert plan.provenance["distance"]["tuned"] <= plan.provenance["distance"]["untuned"]
    assert [len(plan) for plan in Plan.load_several(out)] == [3, 4, 5]
    assert list(tmp_path.iterdir()) == [out]


def test_data_of_ones_own_is_tuned_on_and_logged(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.linspace(0, 10, 40))
    path = tmp_path / "plan.json"
    how = ("--method", "sequential", "--data", tmp_path / "x.npz", "--calls", 3)
    result = done("tune", *QUICK, *how, "--out", path)
    assert Plan.load(path).provenance["data"] == "given"
    assert "16 of 40 samples" in result.stderr


def test_samples_that_were_written_are_data(tmp_path: Path) -> None:
    done("sample", *GAUSSIAN, "-n", 20, "--out", tmp_path / "x.npz")
    how = ("--method", "sequential", "--data", tmp_path / "x.npz", "--calls", 3)
    done("tune", *QUICK, *how, "--out", tmp_path / "plan.json")


def test_a_dry_run_writes_nothing_and_prints_the_cost(tmp_path: Path) -> None:
    result = done("tune", *QUICK, "--calls", "3,4", "--dry-run", "--out", tmp_path / "plan.json")
    rows = [line.split() for line in result.output.splitlines()]
    tuning = [row for row in rows if row[:1] == ["tuning"]]
    assert len(tuning) == 2 and all(int(usual) <= int(most) == 100 for _, usual, most, *_ in tuning)
    assert "3 calls" in result.output and "4 calls" in result.output and "about" in result.output
    assert not list(tmp_path.iterdir())


def test_an_older_plan_is_not_overwritten_in_silence(plan_file: Path) -> None:
    before = plan_file.read_text()
    refused = call("tune", *QUICK, "--calls", 3, "--out", plan_file)
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr and "--out" in refused.stderr
    assert plan_file.read_text() == before
    done("tune", *QUICK, "--calls", 3, "--out", plan_file, "--overwrite")
    assert len(Plan.load(plan_file)) == 3


@pytest.mark.parametrize("calls", ["4", "3,4"])
def test_an_interrupted_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: str) -> None:
    """The state lies beside the plan file, and the plan is that of a run without an interruption."""
    command = ("tune", *GAUSSIAN, "--samples", 16, "--method", "sequential", "--calls", calls)
    show = output.Bar.tuning

    def interrupt(self: output.Bar, progress: Any) -> None:
        show(self, progress)
        if progress.step == 2:
            raise KeyboardInterrupt

    out = tmp_path / "plan.json"
    with monkeypatch.context() as patched:
        patched.setattr(output.Bar, "tuning", interrupt)
        stopped = call(*command, "--out", out)
    assert stopped.exit_code == 130
    assert "the same command continues" in stopped.stderr and ".partial" in stopped.stderr
    assert "continuing" in done(*command, "--out", out).stderr
    done(*command, "--out", tmp_path / "whole.json")
    for one, other in zip(Plan.load_several(out), Plan.load_several(tmp_path / "whole.json"), strict=True):
        assert torch.equal(one.tau, other.tau)
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", "whole.json"}


SLOW = """
import time, time_tuner as tt
from pathlib import Path
def model():
    schedule = tt.NoiseScheduleVP('linear')
    eps = tt.exact.Mixture([[1.0, 0.5], [-1.0, 0.0]], 0.3).eps(schedule)
    def slow(x, t, tau=None):
        if not Path("fast").exists():
            time.sleep(0.02)
        return eps(x, t, tau)
    return tt.as_model(slow, schedule, (2,))
"""


@pytest.mark.parametrize("end", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGINT])
def test_a_killed_command_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: signal.Signals) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    partial, out = tmp_path / "plan.json.partial", tmp_path / "plan.json"
    how = ("--method", "sequential", "--sampler", "ddim", "--calls", "6", "--samples", "32", "--budget", "1h")
    command = ("tune", "--model", "slow:model", *how)
    process = subprocess.Popen(
        [sys.executable, "-m", "time_tuner", *command],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # processes in the background ignore it
    )  # fmt: skip
    began, saved = time.monotonic(), set[str]()
    while len(saved) < 3:
        assert process.poll() is None and time.monotonic() - began < 120
        saved |= {partial.read_text()} if partial.exists() else set()
        time.sleep(0.01)
    process.send_signal(end)
    _, message = process.communicate(timeout=60)
    assert process.returncode == (130 if end == signal.SIGINT else -end)
    if end == signal.SIGINT:
        assert message.startswith("interrupted: the state is kept in plan.json.partial") and message.count("\n") == 1
    assert partial.exists() and not out.exists()
    # The same command in another process, this one.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "slow", raising=False)
    Path("fast").touch()
    assert "continuing from plan.json.partial" in done(*command).stderr
    assert not partial.exists()
    resumed = Plan.load(out)
    assert "continuing" not in done(*command, "--out", "whole.json").stderr
    assert torch.equal(Plan.load(tmp_path / "whole.json").tau, resumed.tau)


def test_ctrl_c_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "tune", interrupted)
    result = call("tune", *QUICK, "--out", tmp_path / "plan.json")
    assert result.exit_code == 130
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("interrupted")
    assert not list(tmp_path.iterdir())


# --- sample ---


def test_samples_do_not_depend_on_how_many_are_drawn(tmp_path: Path) -> None:
    drawn = (*GAUSSIAN, "--sampler", "ddpm", "--calls", 6)
    eight = arrays(*drawn, "-n", 8, out=tmp_path / "8.npz")
    sixteen = arrays(*drawn, "-n", 16, out=tmp_path / "16.npz")
    assert np.allclose(sixteen[:8], eight, atol=1e-6)
    later = arrays(*drawn, "-n", 8, "--seed", 8, out=tmp_path / "later.npz")
    assert np.allclose(sixteen[8:], later, atol=1e-6)
    assert np.allclose(arrays(*drawn, "-n", 16, "--batch", 3, out=tmp_path / "threes.npz"), sixteen, atol=1e-6)
    assert len(np.unique(sixteen)) == 16


def test_sample_i_has_label_i_modulo_their_number(tmp_path: Path) -> None:
    common = ("--calls", 2, "--spacing", "uniform", "--label", "0,1,2")
    whole = arrays(*common, "-n", 4, out=tmp_path / "a.npz")
    assert np.allclose(arrays(*common, "-n", 4, "--batch", 3, out=tmp_path / "b.npz"), whole, atol=1e-4)
    # Digit 3 of the whole has label 0, and a guidance scale of 1 is none.
    alone = arrays(*common[:-2], "-n", 1, "--seed", 3, "--label", 0, "--guidance-scale", 1, out=tmp_path / "c.npz")
    assert np.allclose(alone[0], whole[3], atol=1e-4)
    guided = arrays(*common[:-2], "-n", 1, "--seed", 3, "--label", 0, "--guidance-scale", 3, out=tmp_path / "d.npz")
    assert not np.allclose(guided, alone, atol=1e-2)


def test_digits_become_a_sheet(tmp_path: Path) -> None:
    out = tmp_path / "new" / "samples.png"
    result = done("sample", "--calls", 1, "-n", 3, "--out", out)
    assert "3 samples in 1 calls, untuned" in result.output
    assert size_of_picture(out) == (3 * 58, 3 * 58)


def test_latents_are_decoded(tmp_path: Path) -> None:
    latent = ("--model", "latent-digits", "--calls", 2, "-n", 3)
    done("sample", *latent, "--out", tmp_path / "samples.png")
    assert size_of_picture(tmp_path / "samples.png") == (3 * 58, 3 * 58)
    assert arrays(*latent, out=tmp_path / "s.npz").shape == (3, 4, 7, 7)
    with np.load(tmp_path / "s.npz") as file:
        assert file["pictures"].shape == (3, 1, 28, 28)


def test_scalar_samples_become_a_histogram(tmp_path: Path, plan_file: Path) -> None:
    out = tmp_path / "samples.png"
    result = done("sample", *GAUSSIAN, "--plan", plan_file, "-n", 50, "--out", out)
    assert "in 5 calls" in result.output
    assert size_of_picture(out)[0] > 600


def test_a_plan_of_another_model_is_noted(tmp_path: Path) -> None:
    result = done("sample", *GAUSSIAN, "--plan", "digits/ddim-5", "-n", 2, "--out", tmp_path / "s.npz")
    assert "made for --model digits" in result.stderr


# --- plans: files, bundled names, files of several ---


@pytest.fixture
def several(tmp_path: Path, discrete: NoiseScheduleVP) -> Path:
    path = tmp_path / "plans.json"
    path.write_text(json.dumps([make_plan("ddim", discrete, calls).to_dict() for calls in (2, 3)]))
    return path


@pytest.mark.parametrize("choice", [("--plan", "{}", "--calls", "3"), ("--plan", "{}:3")])
def test_a_plan_is_chosen_from_a_file_of_several(tmp_path: Path, several: Path, choice: tuple[str, ...]) -> None:
    chosen = [word.format(several) for word in choice]
    assert "in 3 calls" in done("sample", *GAUSSIAN, *chosen, "-n", 2, "--out", tmp_path / "s.npz").output
    refused = call("sample", *GAUSSIAN, "--plan", several, "--out", tmp_path / "s.npz")
    assert refused.exit_code == 2 and "calls = [2, 3]" in refused.stderr


def test_all_plans_of_a_file_are_shown_or_one(tmp_path: Path, several: Path) -> None:
    shown = done("show", several, "--out", tmp_path / "plans.png").output
    assert shown.count("schedule") == 2
    size_of_picture(tmp_path / "plans.png")
    assert done("show", several, "--calls", 2).output.count("schedule") == 1


def test_show_prints_and_plots_the_times_of_a_plan(tmp_path: Path, plan_file: Path) -> None:
    out = tmp_path / "plan.png"
    result = done("show", plan_file, "--out", out)
    plan = Plan.load(plan_file)
    for k in range(len(plan)):
        assert f"{plan.t[k]:.5f}" in result.output and f"{plan.tau[k]:.5f}" in result.output
    assert type(plan.sampler).__name__ in result.output and "gaussian" in result.output
    assert output.verdict(plan) in result.output
    size_of_picture(out)


def test_bundled_plans_are_shown_with_their_corrections(tmp_path: Path) -> None:
    assert "corrections" in done("show", "digits/joint-5", "--out", tmp_path / "plan.png").output
    width, height = size_of_picture(tmp_path / "plan.png")
    assert width > 3 * height, "the corrections are a third panel"


def test_models_are_shown() -> None:
    shown = done("show", *GAUSSIAN).output
    assert "NoiseScheduleVP" in shown and "(1,)" in shown


def test_the_verdict_is_plain(discrete: NoiseScheduleVP) -> None:
    plan = make_plan("ddim", discrete, 3)

    def verdict(untuned: float, unguarded: float, tuned: float, reverted: list[int]) -> str:
        distance = {"untuned": untuned, "unguarded": unguarded, "tuned": tuned}
        return output.verdict(plan.with_provenance(distance=distance, reverted_calls=reverted))

    nearer = "the tuned plan ends 50.0% nearer to the reference run than the start"
    assert verdict(2, 1, 1, []) == nearer
    assert verdict(2, 3, 1, [1, 2]) == f"{nearer}, with tau of calls 1, 2 set back, which was harmful"
    assert verdict(2, 1.5, 1, [1]) == f"{nearer}, with tau of call 1 set back, which was harmful"
    assert verdict(2, 3, 2, [0, 1, 2]).startswith("the tuned plan was worse on held-out noise: the plan is the untuned")
    assert verdict(2, 1.9, 2, [0, 1, 2]).startswith("the tuned plan was not better by more than its standard error")
    assert verdict(2, 2, 2, []).startswith("tuning changed nothing")


def test_the_verdict_names_the_best_untuned_plan(discrete: NoiseScheduleVP) -> None:
    plan = make_plan("ddim", discrete, 3).with_provenance(untuned_plans={"ranked": 9, "best": "unipc:3@logsnr"})

    def verdict(best: float, tuned: float) -> str:
        distance = {"untuned": 2.0, "unguarded": 1.0, "tuned": tuned, "best untuned": best}
        return output.verdict(plan.with_provenance(distance=distance, reverted_calls=[]))

    nearer = "the tuned plan ends 50.0% nearer to the reference run than the start"
    assert verdict(1.25, 1.0) == f"{nearer}, and 20.0% nearer than unipc:3@logsnr, the best untuned plan"
    assert verdict(0.8, 1.0) == f"{nearer}, but 25.0% farther than unipc:3@logsnr, the best untuned plan"
    assert verdict(0.8, 0.8).endswith("held-out noise: the plan is unipc:3@logsnr, the best untuned one")


# --- errors ---

BAD = {
    ("nonsense",): "nonsense",
    ("tune", "--nonsense"): "--nonsense",
    ("tune", "--calls", "few"): "--calls must be a whole number",
    ("tune", "--calls", "0"): "--calls must be a whole number of at least 1",
    ("tune", "--calls", "4,"): "--calls must be a whole number",
    ("tune", "--model", "nope"): "model must be one of",
    ("tune", "--model", "digit"): "did you mean 'digits'",
    ("tune", "--model", "no.such:function"): "no.such:function",
    ("tune", "--model", "./net.py"): "net:FUNCTION",
    ("tune", "--model", "net.py:make"): "net:make",
    ("tune", "--model", "empty"): "without model_index.json",
    ("tune", "--sampler", "nope"): "sampler must be one of",
    ("tune", "--sampler", "unpc"): "did you mean 'unipc'",
    ("tune", "--spacing", "quadratc"): "did you mean 'quadratic'",
    ("tune", "--method", "jiont"): "did you mean 'joint'",
    ("tune", "--sampler", "ddim(order=2)"): "no option 'order'",
    ("tune", "--sampler", "ddim(eta=2)"): "eta of DDIM",
    ("tune", "--sampler", "ddim(eta)"): "must be written name(option=value, ...)",
    ("tune", "--spacing", "karras(rho=x)"): "rho of spacing 'karras' must be a number",
    ("tune", "--method", "joint(iteratons=3)"): "did you mean 'iterations'",
    ("tune", "--method", "joint(parts=foo)"): "parts",
    ("tune", "--budget", "soon"): "budget must be written",
    ("tune", *GAUSSIAN, "--method", "joint", "--sampler", "ddpm"): "noise",
    ("tune", *GAUSSIAN, "--calls", "1001"): "calls must be at most",
    ("tune", *GAUSSIAN, "--sampler", "heun", "--calls", "6", "--spacing", "edm"): "spacing must be one of",
    ("tune", *GAUSSIAN, "--samples", "1"): "--samples",
    ("tune", *GAUSSIAN, "--seed", "-1"): "--seed",
    ("tune", *GAUSSIAN, "--label", "3"): "has no label",
    ("tune", *GAUSSIAN, "--guidance-scale", "2"): "has no guidance_scale",
    ("tune", *GAUSSIAN, "--prompt", "a cat"): "has no prompts",
    ("tune", *GAUSSIAN, "--device", "nowhere"): "device must be",
    ("tune", *GAUSSIAN, "--data", "missing"): "does not exist",
    ("tune", *GAUSSIAN, "--data", "empty"): "no pictures",
    ("tune", "--data", "empty"): "holds no pictures",
    ("tune", "--data", "empty", "--label", "0,1"): "--label must be one",
    ("tune", "--label", "x"): "--label",
    ("tune", "--label", "11"): "label must be a digit 0 to 9",
    ("tune", "--guidance-scale", "2"): "needs label",
    ("tune", "--prompt", "a", "--prompts", "text"): "either --prompt or --prompts",
    ("tune", "--prompts", "blank"): "no prompt in it",
    ("tune", *GAUSSIAN, "--out", "plan.txt"): "--out must end in .json",
    ("tune", *GAUSSIAN, "--out", "text/plan.json"): "cannot be written",
    ("sample", *GAUSSIAN, "-n", "0"): "-n",
    ("sample", *GAUSSIAN, "--calls", "0"): "calls must be",
    ("sample", *GAUSSIAN, "--out", "s.gif"): "--out must end in .png or .npz",
    ("sample", *GAUSSIAN, "--seed", str(2**31)): "--seed",
    ("sample", *GAUSSIAN, "--plan", "missing.json"): "missing.json",
    ("sample", *GAUSSIAN, "--plan", "text"): "not a plan file",
    ("sample", *GAUSSIAN, "--plan", "linear.json"): "another noise schedule",
    ("sample", *GAUSSIAN, "--plan", "linear.json", "--calls", "7"): "calls=7",
    ("sample", *GAUSSIAN, "--plan", "linear.json:x"): "path.json:calls",
    ("sample", *GAUSSIAN, "--plan", "linear.json", "--sampler", "ddim"): "either --plan or",
    ("sample", "--guidance-scale", "nan", "--label", "1", "--calls", "1", "-n", "1"): "NaN",
    ("sample", "-n", "1000000"): "draw fewer",
    ("show",): "PLAN",
    ("show", "missing.json"): "no file 'missing.json'; plans that come with a model: digits/ddim-10",
    ("show", "empty"): "'empty' is a directory: name the plan file in it",
    ("show", "text"): "not a plan file",
    ("show", "linear.json", "--out", "tau.bmp"): "--out must end in .png",
    ("show", "--model", "nope"): "model must be one of",
    ("compare", "ddim:0"): "calls of ddim:0 must be",
    ("compare", "unpc:5"): "did you mean 'unipc'",
    ("compare", "ddim:5", "--spacing", "quadratc"): "did you mean 'quadratic'",
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
    Path("blank").write_text("\n\n")
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


@pytest.mark.parametrize(
    "args",
    [
        args
        for args in BAD
        if "did you mean" in BAD[args] or args[-1] in ("11", "./net.py") or "--calls must" in BAD[args]
    ],
    ids=" ".join,
)
def test_names_are_checked_before_a_network_is_loaded(args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from time_tuner import loading

    def loaded(*args: Any) -> None:
        raise AssertionError("a network was loaded")

    for name in ("PixelNetwork", "_latent_network"):
        monkeypatch.setattr(loading, name, loaded)
    loading._pixel_network.cache_clear()
    result = call(*args)
    assert result.exit_code == 2 and BAD[args] in result.stderr


def test_an_error_that_nobody_has_foreseen_is_one_line_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("fails_here.py").write_text("def make():\n    return [][3]\n")
    result = call("sample", "--model", "fails_here:make", "--out", "s.npz")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "IndexError" in result.stderr and "fails_here.py:2" in result.stderr


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for package, extra, command in (
        ("diffusers", "diffusers", ("sample", "--model", "digits", "--calls", 1)),
        ("matplotlib", "plots", ("show", "digits/joint-5", "--out", "x.png")),
        ("PIL", "plots", ("sample", *GAUSSIAN[:1], "digits", "-n", 1, "--calls", 1)),
    ):
        with monkeypatch.context() as patched:
            patched.chdir(Path(__file__).parents[1])
            patched.setitem(sys.modules, package, None)
            result = call(*command)
        assert result.exit_code == 2
        assert f"the package {package} is missing: pip install 'time-tuner[{extra}]'" in result.stderr


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_the_packages_of_the_command_it_names_them(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(time_tuner, "cli", cli)  # it comes back after the test
    monkeypatch.delitem(sys.modules, "time_tuner.cli")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as ended:
        import_module("time_tuner.cli").main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: the package {package} is missing: pip install 'time-tuner[cli]'\n"


# --- models of the user's ---


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the command is called, whose modules are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_a_model_is_found_where_the_command_is_called(here: Path) -> None:
    Path("found_here.py").write_text(
        "import time_tuner as tt\n"
        "def broken():\n"
        "    schedule = tt.NoiseScheduleVP('linear')\n"
        "    return tt.as_model(lambda x, t, tau=None: x / 0, schedule, (3,))\n"
    )
    assert "NaN or infinity at call 0" in call("sample", "--model", "found_here:broken", "--out", "s.npz").stderr
    assert r".npz" in call("sample", "--model", "found_here:broken", "--out", "s.png").stderr
    assert not Path("s.npz").exists()


def test_a_model_function_that_needs_more_is_named(here: Path) -> None:
    Path("needs_more.py").write_text("def model(size, label=None):\n    return size\n")
    result = call("sample", "--model", "needs_more:model", "--out", "x.png")
    assert result.exit_code == 2
    assert "needs the argument 'size'" in result.stderr


def test_a_model_function_receives_the_conditions_that_it_names(here: Path) -> None:
    Path("conditioned.py").write_text(
        "import time_tuner as tt\n"
        "def make(label, guidance_scale=7.0, **others):\n"
        "    assert not others\n"
        "    mean = float(label) + guidance_scale\n"
        "    return tt.exact.Gaussian([mean, mean], 0.01).eps(tt.NoiseScheduleVP('linear'))\n"
    )
    common = ("--model", "conditioned:make", "--label", 3, "-n", 4, "--calls", 20, "--sampler", "ddim")
    assert np.allclose(arrays(*common, out=here / "a.npz"), 10, atol=0.1)
    assert np.allclose(arrays(*common, "--guidance-scale", 1, out=here / "b.npz"), 4, atol=0.1)
    refused = call("sample", *common, "--prompt", "a cat", "--out", "c.npz")
    assert refused.exit_code == 2 and "has no prompts" in refused.stderr


def test_a_module_may_register_a_sampler(here: Path) -> None:
    Path("with_sampler.py").write_text(
        "from dataclasses import dataclass\n"
        "import time_tuner as tt\n"
        "from time_tuner.samplers.ddim import DDIM\n"
        "@dataclass(frozen=True)\n"
        "class Mine(DDIM):\n"
        "    pass\n"
        "tt.SAMPLERS['mine'] = Mine\n"
        "def model():\n"
        "    return tt.exact.Gaussian([0.0, 1.0]).eps(tt.NoiseScheduleVP('linear'))\n"
    )
    try:
        own = ("--model", "with_sampler:model")
        done("sample", *own, "--sampler", "mine", "--calls", 3, "--out", "s.npz")
        done("compare", *own, "mine:3", "-n", 10, "--out", "c.npz")
        given = ("--sampler", "mine(eta=0)", "--method", "sequential")
        done("tune", *own, *given, "--calls", 3, "--samples", 16, "--budget", "50calls")
        assert Plan.load("plan.json").sampler == SAMPLERS["mine"]()
    finally:
        SAMPLERS.pop("mine", None)


# --- the command itself ---


def test_entries_of_the_tables_are_in_the_help() -> None:
    for names, commands in ((SAMPLERS, ("tune", "sample")), (SPACINGS, ("tune", "sample")), (TUNERS, ("tune",))):
        for command in commands:
            words = set(re.findall(r"\w+", done(command, "--help").output))
            assert set(names) <= words


def test_every_command_that_runs_a_model_has_the_options_of_models() -> None:
    flags = [f"--{name.replace('_', '-')}" for name in options.MODEL_OPTIONS]
    for command in ("tune", "sample", "compare"):
        words = set(re.findall(r"--[\w-]+", done(command, "--help").output))
        assert set(flags) <= words


def test_help_and_version_are_for_people() -> None:
    for args in ((), ("--help",), ("-h",)):
        assert "time-tuner demo" in done(*args).output
    assert re.fullmatch(r"time-tuner \d+\.\d+\.\d+\n", done("--version").output)
    for command in ("demo", "tune", "sample"):
        help_text = done(command, "--help").output
        assert "--out" in help_text and "[default: " in help_text


def test_the_log_of_the_library_is_a_line_each_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    record = logging.LogRecord("time_tuner", logging.INFO, "", 0, "%d of [%d]", (1, 2), None)
    output.LogHandler().emit(record)
    assert capsys.readouterr().err == "1 of [2]\n"


def test_the_command_is_a_module_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["time_tuner", "show", "digits/ddim-5"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("time_tuner", run_name="__main__", alter_sys=True)
    printed = capsys.readouterr()
    assert not ended.value.code and "DDIM" in printed.out and not printed.err


def test_imports_are_light() -> None:
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
