"""The evaluation of plans: its numbers are those of the metrics, its files agree, and its page needs nothing else."""

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import seeded
from PIL import Image
from pipelines import ddpm
from torch import Tensor
from typer.testing import CliRunner

from time_tuner import NoiseScheduleVP, Plan, SeededNoise, evaluate, exact, make_plan, sample
from time_tuner.cli.app import app
from time_tuner.cli.evaluate import split
from time_tuner.evaluation import METRICS, Report, measures
from time_tuner.evaluation.page import page
from time_tuner.metrics import energy_distance, frechet_between, kernel_distance, sliced_wasserstein
from time_tuner.tuners import ReferenceDistance

SCHEDULE = NoiseScheduleVP("linear")
MODEL = exact.Mixture(seeded(5, 1, 4, 4), 0.3).eps(SCHEDULE)
PLAN = make_plan("ddim", SCHEDULE, 4, "quadratic").with_provenance(tuner="joint", note="</script><b>")
QUICK: dict[str, Any] = {"against": ("ddim", "unipc"), "calls": (3, 4), "samples": 12, "budget": None}


@pytest.fixture(scope="module")
def report() -> Report:
    return evaluate(MODEL, {"<mine>": PLAN}, name="a <model>", command="the command", **QUICK | {"budget": "5s"})


def run_of(report: Report, name: str) -> Any:
    (found,) = [run for run in report.runs if run.name == name]
    return found


def drawn(plan: Plan, count: int = 12, seed: int = 0) -> Tensor:
    noise = SeededNoise(range(seed, seed + count))(torch.empty(count, 1, 4, 4))
    return sample(MODEL, plan, plan.initial_state(noise))


def test_distances_are_those_to_a_reference_run_from_the_same_noise(report: Report) -> None:
    noise = SeededNoise(range(12))(torch.empty(12, 1, 4, 4))
    judge = ReferenceDistance(MODEL, SCHEDULE, float(PLAN.t[-1]), noise)
    found = run_of(report, "<mine>").values["distance"]
    values = judge.per_sample(PLAN)
    assert found.value == pytest.approx(float(values.mean()), rel=1e-4)
    assert found.error == pytest.approx(1.96 * float(values.std()) / 12**0.5, rel=1e-3)


def test_distances_of_sets_are_those_of_the_metrics() -> None:
    data = MODEL.distribution.sample(30, 5).float()
    found = evaluate(MODEL, [PLAN], data=data, **QUICK).runs
    (run,) = [run for run in found if run.kind == "plan"]
    x = drawn(PLAN)
    for name, metric in (
        ("energy", energy_distance),
        ("frechet", frechet_between),
        ("kernel", kernel_distance),
        ("sliced", lambda x, y: sliced_wasserstein(x, y, 64)),
    ):
        assert run.values[name].value == pytest.approx(metric(x, data), rel=1e-3, abs=1e-5), name
    assert run.name == "joint-4"


@pytest.mark.parametrize("batch", [5, 12])
def test_numbers_do_not_depend_on_the_batch(report: Report, batch: int) -> None:
    other = run_of(evaluate(MODEL, {"<mine>": PLAN}, batch=batch, **QUICK), "<mine>")
    for name, value in run_of(report, "<mine>").values.items():
        assert other.values[name].value == pytest.approx(value.value, rel=1e-3, abs=1e-5), name


def test_the_best_untuned_plan_of_the_plans_calls_is_beside_them(report: Report) -> None:
    (best,) = [run for run in report.runs if run.kind == "best untuned"]
    assert best.calls == 4 and float(best.plan.t[-1]) == float(PLAN.t[-1])
    assert "tuner" not in best.plan.provenance
    assert best.values["distance"].value <= run_of(report, "<mine>").values["distance"].value, "which is untuned, too"
    assert "the best untuned plan" in report.verdicts()[0]


def test_files_agree(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path)
    kept = json.loads((tmp_path / "report.json").read_text())
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report.csv").read_text())))
    assert [row["run"] for row in rows] == [run["name"] for run in kept["runs"]]
    for row, run in zip(rows, kept["runs"], strict=True):
        for name, value in run["values"].items():
            assert float(row[name]) == value["value"] and float(row[f"{name} low"]) == value["low"]
    (mine,) = [run for run in kept["runs"] if run["name"] == "<mine>"]
    assert Plan.from_dict(mine["plan"]).to_dict() == PLAN.to_dict()
    assert set(kept["metrics"]) <= set(METRICS)
    text = (tmp_path / "report.txt").read_text()
    assert all(run["name"] in text for run in kept["runs"])


def test_the_page_is_one_file_and_shows_texts_as_texts(report: Report, tmp_path: Path) -> None:
    report.write(tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)|url\(|@import|fetch\(", page), "nothing is loaded"
    assert "{{" not in page
    assert "<mine>" not in page.replace('"<mine>"', "") and "&lt;mine&gt;" in page and "a &lt;model&gt;" in page
    assert page.count("</script>") == 2, "a text does not end the program"
    shown = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert {run["name"] for run in shown["runs"]} == {run.name for run in report.runs}
    assert "the command" in page
    assert len(page) < 400_000


@pytest.mark.parametrize(
    ("shape", "shades"), [((2,), 0.1), ((1,), 0.5), ((3, 5), None)], ids=["points", "numbers", "others"]
)
def test_points_and_numbers_are_drawn_and_other_shapes_are_not(shape: tuple[int, ...], shades: float | None) -> None:
    model = exact.Mixture(seeded(4, *shape), 0.1).eps(SCHEDULE)
    text = page(evaluate(model, against=["ddim"], calls=[3], samples=30, budget=None))
    pictures = re.findall(r"data:image/png;base64,([\w+/=]+)", text)
    assert len(pictures) == (0 if shades is None else 2)  # of ddim and of the reference
    for picture in pictures:
        drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("L"))
        assert 0 < (drawn < 128).mean() < shades  # ink


def test_a_number_of_calls_that_a_sampler_cannot_make_is_left_out_and_noted() -> None:
    found = evaluate(MODEL, against=["heun"], calls=[3, 4], samples=4, budget=None)
    (left_out,) = found.left_out
    assert left_out in ("heun:3", "heun:4") and left_out in str(found)
    assert len([run for run in found.runs if run.kind == "untuned"]) == 1


def test_a_plan_that_is_named_as_an_untuned_run_stays_apart() -> None:
    found = evaluate(MODEL, {"ddim:3": make_plan("ddim", SCHEDULE, 3, "quadratic")}, **QUICK)
    assert len({run.name for run in found.runs}) == len(found.runs) and run_of(found, "ddim:3, given").kind == "plan"


def test_a_stochastic_run_has_no_distance_but_those_of_sets() -> None:
    found = run_of(evaluate(MODEL, against=["ddpm"], calls=[3], samples=6, budget=None), "ddpm:3")
    assert "distance" not in found.values and {"energy", "frechet"} <= found.values.keys()


def test_an_untuned_run_that_is_not_finite_is_left_out_and_a_plan_is_refused() -> None:
    def overflows(x: Tensor, t: Any, tau: Any) -> Tensor:
        return MODEL(x, t, tau) * (torch.nan if tau == first else 1.0)

    overflows.schedule, overflows.shape = SCHEDULE, (1, 4, 4)  # type: ignore[attr-defined]
    first = make_plan("ddim", SCHEDULE, 3, "quadratic").tau[1]
    given: dict[str, Any] = {"against": ["ddim@quadratic"], "samples": 4, "budget": None}
    found = evaluate(overflows, calls=[3, 4], **given)
    assert [run.name for run in found.runs] == ["ddim@quadratic:4", "reference"]
    assert "NaN or infinity at call 1" in found.left_out["ddim@quadratic:3"]
    with pytest.raises(ValueError, match="no run is finite: eps returned NaN"):
        evaluate(overflows, calls=[3], **given)
    with pytest.raises(ValueError, match="the run mine: eps returned NaN"):
        evaluate(overflows, {"mine": make_plan("ddim", SCHEDULE, 3, "quadratic")}, calls=[4], **given)


def test_runs_are_grouped_by_evaluations_where_guidance_is_left_out() -> None:
    mixture = exact.ConditionalMixture(seeded(6, 1, 4, 4), torch.arange(6) % 2, 0.3)
    model = mixture.guided(SCHEDULE, torch.tensor([0, 1]), 3.0)
    plans = {"four": make_plan("ddim", SCHEDULE, 4, "quadratic").with_guidance(2)}
    found = evaluate(model, plans, ["ddim"], [3, 4], samples=8, budget="5s")
    sizes = {run.name: (run.calls, run.evaluations) for run in found.runs}
    assert sizes["four"] == (4, 6) and sizes["ddim:3"] == (3, 6) and sizes["reference"] == (100, 200)
    (best,) = [run for run in found.runs if run.kind == "best untuned"]
    assert best.plan.guided == plans["four"].guided, "guidance at the same calls"
    names = [run.name for run in found.sorted()]
    assert names.index("four") < names.index("ddim:4")
    nearest = min((run_of(found, name) for name in ("four", "ddim:3", best.name)),
                  key=lambda run: run.values["distance"].value)  # fmt: skip
    assert found.best("distance", 6) is nearest
    assert "evaluations" in str(found).splitlines()[0] and "6 evaluations" in found.verdicts()[0]
    assert '"sizes": ["calls", "evaluations"]' in page(found) and ">evaluations</th>" in page(found)
    every = evaluate(model, {"all": make_plan("ddim", SCHEDULE, 4)}, ["ddim"], [3], samples=8, budget=None)
    assert "evaluations" not in str(every).splitlines()[0] and run_of(every, "all").evaluations == 8


def test_distances_of_all_pairs_take_part_of_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MOST", 20)
    target = measures.Target(drawn(PLAN, 50, 100), lambda x: x.flatten(1))
    x = drawn(PLAN, 39)
    found = target.measure(x)
    even = torch.arange(20) * 2
    assert found["energy"].value == pytest.approx(energy_distance(x[even].flatten(1), target.pictures), rel=1e-9)
    assert found["frechet"].value == pytest.approx(frechet_between(x, drawn(PLAN, 50, 100)), rel=1e-9), "all of them"


def test_data_are_measured_once_and_kept(tmp_path: Path) -> None:
    data, cache = MODEL.distribution.sample(30, 5).float(), tmp_path / "data.safetensors"
    first = evaluate(MODEL, [PLAN], data=data, cache=cache, **QUICK)
    again = evaluate(MODEL, [PLAN], data=data, cache=cache, **QUICK)
    assert [run.values for run in again.runs] == [run.values for run in first.runs]
    with pytest.raises(ValueError, match=r"has data .* remove it"):
        evaluate(MODEL, [PLAN], data=-data, cache=cache, **QUICK)
    with pytest.raises(ValueError, match="has features 'pixels', not"):
        evaluate(MODEL, [PLAN], data=data, features="time_tuner.evaluation.features:pixels", cache=cache, **QUICK)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"against": ["dimm"]}, "did you mean"),
        ({"against": ["ddim@ays(model=svd)"]}, "spacing ays has the list of svd"),
        ({"against": []}, "evaluate needs plans="),
        ({"calls": [0]}, "calls must be a whole number of at least 1"),
        ({"samples": 2}, "samples must be a whole number of at least 4"),
        ({"features": "digit"}, "features must be one of .* did you mean 'digits'"),
        ({"features": 3}, "features must be a function"),
        ({"features": "digits"}, r"images .*\(1, 1, 4, 4\)"),
        ({"features": torch.nn.Identity().eval(), "cache": "c.safetensors"}, "cache needs features by name"),
        ({"samples": 0}, "samples must be a whole number of at least 4"),
        ({"batch": 0}, "batch must be a whole number of at least 1"),
        ({"budget": "20calls"}, "budget of the ranking must be a time"),
        ({"data": torch.zeros(5, 3)}, r"data must be samples \(m, ...\) of shape \(1, 4, 4\)"),
        ({"data": "nowhere"}, "data 'nowhere' does not exist"),
        ({"plans": {"a": 3}}, "plans must be plans by their names"),
        ({"plans": [make_plan("ddim", NoiseScheduleVP("cosine"), 4)]}, "another noise schedule"),
    ],
)
def test_arguments_are_refused_before_any_sample(given: dict[str, Any], says: str) -> None:
    def never(x: Tensor, t: Any, tau: Any) -> Tensor:
        raise AssertionError("a network call")

    never.schedule, never.shape = SCHEDULE, (1, 4, 4)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=says):
        evaluate(never, **{**QUICK, **given})


# --- the command ---


def run_command(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["evaluate", "--budget", "none", "-n", "4", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def check_files(folder: Path, *names: str) -> None:
    page = (folder / "index.html").read_text()
    assert all(name in page for name in (*names, "reference", "time-tuner evaluate"))
    assert "data:image/png" in page


FUNCTION = (
    "import torch, time_tuner as tt\n"
    "def patches(label=None):\n"
    "    data = torch.linspace(-1, 1, 5 * 3 * 4 * 4).reshape(5, 3, 4, 4)\n"
    "    return tt.exact.Mixture(data, 0.3).eps(tt.NoiseScheduleVP('linear'))\n"
    "def features(x):\n"
    "    return x.mean((2, 3))\n"
)


def test_a_function_of_the_users_is_evaluated_with_features_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("evaluated_here.py").write_text(FUNCTION)
    schedule = NoiseScheduleVP("linear")
    Plan.save_several([make_plan("ddim", schedule, n) for n in (3, 4)], Path("mine.json"))
    make_plan("unipc", schedule, 3).save("other.json")
    output = run_command(
        "--model", "evaluated_here:patches", "--plans", "mine.json", "other.json", "--calls", "2,3",
        "--against", "ddim,unipc(order=3)@quadratic", "--features", "evaluated_here:features", "--out", "made",
    )  # fmt: skip
    for name in ("mine:3", "mine:4", "other", "ddim:2", "unipc(order=3)@quadratic:3"):
        assert f"\n{name} " in output, name
    check_files(Path("made"), "mine:3", "other")
    command = json.loads(Path("made/report.json").read_text())["command"]
    assert command.startswith("time-tuner evaluate mine.json other.json --model evaluated_here:patches")


def test_a_saved_pipeline_is_evaluated(tmp_path: Path) -> None:
    ddpm().pipe.save_pretrained(tmp_path / "pipe")
    run_command(
        "--model", str(tmp_path / "pipe"), "--calls", "2,3", "--against", "ddim", "--out", str(tmp_path / "made")
    )
    check_files(tmp_path / "made", "ddim:3")


def test_the_bundled_model_is_evaluated_in_the_features_of_its_classifier(tmp_path: Path) -> None:
    output = run_command("--calls", "2", "--against", "ddim", "--out", str(tmp_path), "digits/joint-5")
    assert "features digits" in output and "digits/joint-5" in output
    check_files(tmp_path, "digits/joint-5")


def test_commas_in_parentheses_do_not_divide_samplers() -> None:
    assert split("ddim, dpmpp(order=2,a=1)@karras(rho=5),unipc") == [
        "ddim",
        "dpmpp(order=2,a=1)@karras(rho=5)",
        "unipc",
    ]
