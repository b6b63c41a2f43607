import copy
import json
import math
import os
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import moments, seeded
from hypothesis import given
from hypothesis import strategies as st

from time_tuner import SAMPLERS, NoiseScheduleVP, Plan, SeededNoise, exact, make_plan, sample
from time_tuner._checks import check_int
from time_tuner.sampling import coefficients


@pytest.fixture(scope="module")
def tuned(discrete: NoiseScheduleVP) -> Plan:
    """Everything that a plan can hold, with numbers that decimal fractions do not reach."""
    plan = make_plan(SAMPLERS["dpmpp"](order=3, lower_order_final=True), discrete, calls=5)
    corrections = seeded(5, 5).tril(-1) / 3
    provenance = {"objective": {"before": 1 / 3, "after": 0.1}, "tuner": "joint", "seeds": [1, 2], "note": None}
    return plan.with_tau(plan.tau * 0.97).with_corrections(corrections).with_provenance(**provenance)


# --- make_plan ---


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"sampler": "midpoint", "calls": 5}, "sampler must be one of ddpm, ddim, .* got 'midpoint'"),
        ({"calls": 5, "spacing": "even"}, "spacing must be one of linspace, leading, .* got 'even'"),
        ({"calls": 5, "spacing": "linspace", "times": [1, 0]}, "either spacing or times, got spacing='linspace'"),
        ({}, "make_plan needs calls="),
        ({"calls": 0}, "calls must be a whole number .* at least 1, got 0"),
        ({"calls": -3}, "calls must be .* got -3"),
        ({"calls": 5.0}, "calls must be .* got 5.0"),
        ({"calls": True}, "calls must be .* got True"),
        ({"calls": "5"}, "calls must be .* got '5'"),
        ({"calls": 1001}, "calls must be at most the schedule's 1000 trained noise levels, got 1001"),
        ({"times": [0.9, 0.5, 0.5, 0.1]}, "times must fall strictly, got 0.5 then 0.5 at index 1"),
        ({"times": [0.1, 0.5]}, "times must fall strictly, got 0.1 then 0.5 at index 0"),
        ({"times": [1.2, 0.5]}, r"times must lie in the trained range \[0.001, 1\] .* got 1.2"),
        ({"times": [0.9, 0.0005]}, "times must lie in the trained range .* got 0.0005"),
        ({"times": [0.9, 0.0, -0.1]}, "times must lie in the trained range .* got 0"),
        ({"times": [0.9, math.nan]}, "times must be finite"),
        ({"times": [math.inf, 0.1]}, "times must be finite"),
        ({"times": [0.9]}, r"times must be a list of at least two step ends, got shape \(1,\)"),
        ({"times": [[0.9, 0.1]]}, r"times must be a list of at least two step ends, got shape \(1, 2\)"),
        ({"times": "0.9 0.1"}, "times must be numbers"),
        ({"times": [10**400, 0.1]}, "times must be numbers"),
        ({"times": [0.9, 0.5, 0.1], "calls": 3}, "times must hold 4 step ends for calls=3, got 3"),
        ({"sampler": "heun", "calls": 10, "spacing": "linspace"}, "calls of Heun must be odd .* got 10: take 9 or 11"),
        ({"sampler": "heun", "calls": 9, "spacing": "leading"}, "calls of Heun must be even .* got 9: take 8 or 10"),
        ({"sampler": "heun", "calls": 3, "times": [0.9, 0.5, 0.1]}, "calls of Heun must be even .* got 3: take 2 or 4"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], says: str, discrete: NoiseScheduleVP) -> None:
    with pytest.raises(ValueError, match=says):
        make_plan(**{"sampler": "ddim", "schedule": discrete} | arguments)


@pytest.mark.parametrize("wrong", [0, 2.0, True, "5", None, np.float64(3)])
def test_whole_numbers_are_those_of_python_and_numpy(wrong: object) -> None:
    assert (
        check_int("calls", np.int64(5), 1) == check_int("calls", 5, 5) == 5
        and type(check_int("seed", np.int32(-3))) is int
    )
    with pytest.raises(ValueError, match=re.escape(f"calls must be a whole number of at least 1, got {wrong!r}")):
        check_int("calls", wrong, 1)


def test_a_plan_for_a_number_of_calls_of_numpy_is_the_same() -> None:
    schedule = NoiseScheduleVP("linear")
    plan = make_plan("ddim", schedule, np.int64(5))
    assert plan == make_plan("ddim", schedule, 5) == Plan.from_dict(json.loads(json.dumps(plan.to_dict())))


def test_an_untuned_plan_tells_the_network_where_the_solver_is(discrete: NoiseScheduleVP) -> None:
    plan = make_plan("ddim", discrete, calls=6)
    assert (len(plan), plan.tuned, plan.corrections) == (6, False, None)
    assert torch.equal(plan.tau, plan.t[:-1])
    assert torch.equal(plan.step_times, plan.t)
    p = discrete.at(plan.t)
    assert torch.equal(plan.alpha, p.alpha) and torch.equal(plan.sigma, p.sigma)
    assert plan.with_tau(plan.tau * 0.99).tuned and plan.with_corrections(torch.zeros(6, 6)).tuned


@pytest.mark.parametrize(
    ("sampler", "calls", "steps"), [("ddim", 5, 5), ("dpmpp", 1, 1), ("heun", 9, 5), ("pndm", 9, 8)]
)
@pytest.mark.parametrize("end", [0.0, 0.001])
def test_a_spacing_gives_the_grid_of_the_run_alone(sampler: str, calls: int, steps: int, end: float) -> None:
    """A grid of another number of steps need not exist, as with PNDM of diffusers."""
    counts = set[int]()

    def spacing(schedule: NoiseScheduleVP, count: int) -> torch.Tensor:
        counts.add(count)
        return torch.linspace(1, end, count + 1, dtype=torch.float64)

    if sampler == "heun" and end:
        calls = 10  # which sum to five steps of two calls
    make_plan(sampler, NoiseScheduleVP("linear"), calls, spacing)
    assert counts == {steps}


def test_a_spacing_may_end_at_0_with_some_numbers_of_steps_alone() -> None:
    """As DDIM's of diffusers does, whose steps need not divide the levels."""

    def spacing(schedule: NoiseScheduleVP, count: int) -> torch.Tensor:
        return torch.linspace(1, 0.0 if count % 2 else 0.001, count + 1, dtype=torch.float64)

    schedule = NoiseScheduleVP("linear")
    assert make_plan("ddim", schedule, 5, spacing).t[-1] == 0 and make_plan("ddim", schedule, 6, spacing).t[-1] == 0.001
    assert len(make_plan("heun", schedule, 8, spacing).steps) == 4
    with pytest.raises(ValueError, match="calls of Heun must be odd in a run down to 0, got 10"):
        make_plan("heun", schedule, 10, spacing)


def test_heun_stands_twice_at_the_ends_of_its_steps(discrete: NoiseScheduleVP) -> None:
    times = [1.0, 0.6, 0.3, 0.0]
    plan = make_plan("heun", discrete, times=times)
    assert plan.t.tolist() == [1.0, 0.6, 0.6, 0.3, 0.3, 0.0]
    assert (len(plan), plan.steps, plan.step_times.tolist()) == (5, (2, 2, 1), times)
    assert make_plan("heun", discrete, times=[1.0, 0.6, 0.3]).t.tolist() == [1.0, 0.6, 0.6, 0.3, 0.3]


# --- with_... ---


@pytest.mark.parametrize("name", ["ddim", "heun"])
def test_with_times_keeps_ratios_and_rebuilds_the_rest(name: str, discrete: NoiseScheduleVP) -> None:
    plan = make_plan(name, discrete, times=[1.0, 0.6, 0.3, 0.0])
    ratios = torch.linspace(0.9, 1.1, len(plan), dtype=torch.float64)
    corrections = seeded(len(plan), len(plan)).tril(-1)
    ends = [0.95, 0.7, 0.2, 0.0]
    moved = plan.with_tau(plan.tau * ratios).with_corrections(corrections).with_provenance(by="hand").with_times(ends)
    fresh = make_plan(name, discrete, times=ends)
    torch.testing.assert_close(moved.tau, fresh.t[:-1] * ratios, rtol=1e-14, atol=0)
    assert moved == fresh.with_tau(moved.tau).with_corrections(corrections).with_provenance(by="hand")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda p: p.with_times([1.0, 0.5]), "times must hold 6 step ends, got 2"),
        (lambda p: p.with_times([1.0, 0.9, 0.8, 0.8, 0.5, 0.1]), "times must fall strictly"),
        (lambda p: p.with_tau([0.5, 0.1]), r"tau must hold one time for each of 5 calls, got shape \(2,\)"),
        (lambda p: p.with_tau(0.5), r"tau must hold one time for each of 5 calls, got shape \(\)"),
        (lambda p: p.with_tau([*p.tau[:-1], 0.0]), "tau of a plan must be positive, got 0.0"),
        (lambda p: p.with_tau([*p.tau[:-1], math.nan]), "tau of a plan must be finite"),
        (
            lambda p: p.with_corrections(torch.zeros(4, 4)),
            r"corrections must be \(5, 5\) and strictly lower .* \(4, 4\)",
        ),
        (lambda p: p.with_corrections(torch.eye(5)), "strictly lower triangular"),
        (lambda p: p.with_corrections(torch.full((5, 5), math.inf).tril(-1)), "corrections of a plan must be finite"),
    ],
)
def test_bad_changes_are_named(change, says: str, tuned: Plan) -> None:
    with pytest.raises(ValueError, match=says):
        change(tuned)


# --- the closed-form figures: N(5, 2^2), linear betas, 1000 levels ---

FIGURES = [
    ("ddpm", {}, 10, 4.99919, 1.76542),
    ("ddpm", {}, 100, 4.99919, 1.97657),
    ("ddpm", {}, 1000, 4.99919, 1.99764),
    ("ddim", {}, 10, 4.94627, 1.69161),
    ("ddim", {"eta": 1.0}, 10, 4.99919, 1.50854),
    ("ddim", {}, 1000, 4.93657, 1.99685),
]


@pytest.mark.parametrize(("name", "options", "calls", "mean", "std"), FIGURES)
def test_moments_are_the_closed_form_figures(name, options, calls, mean, std, discrete: NoiseScheduleVP) -> None:
    plan = make_plan(SAMPLERS[name](**options), discrete, calls=calls, spacing="linspace")
    assert moments(plan, 5, 2) == pytest.approx((mean, std), abs=1e-4)


@pytest.mark.parametrize(("name", "options", "calls", "mean", "std"), [row for row in FIGURES if row[2] <= 100])
def test_samples_have_these_moments(name, options, calls, mean, std, discrete: NoiseScheduleVP) -> None:
    n = 10_000
    plan = make_plan(SAMPLERS[name](**options), discrete, calls=calls, spacing="linspace")
    draw = torch.Generator().manual_seed(0)
    x = sample(
        exact.Gaussian(5.0, 2.0).eps(discrete), plan, seeded(n, 1), lambda x: torch.randn(x.shape, generator=draw)
    )
    assert float(x.mean()) == pytest.approx(mean, abs=3 * std / n**0.5)
    assert float(x.std()) == pytest.approx(std, abs=3 * std / (2 * n) ** 0.5)


# --- files ---


@pytest.mark.parametrize("schedule", [NoiseScheduleVP("linear"), NoiseScheduleVP("cosine"), None], ids=repr)
@pytest.mark.parametrize(
    ("name", "options"),
    [("ddim", {"eta": 1 / 3}), ("ddpm", {"variance": "small"}), ("unipc", {"order": 3}), ("heun", {})],
)
def test_json_round_trip_is_exact(name, options, schedule, discrete: NoiseScheduleVP, tmp_path: Path) -> None:
    plan = make_plan(SAMPLERS[name](**options), schedule or discrete, times=[0.9, 1 / 3, 0.1, 0.0])
    plan = plan.with_tau(plan.tau / 1.1).with_corrections(seeded(len(plan), len(plan)).tril(-1))
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan and again.sampler == plan.sampler and again.schedule == plan.schedule
    for column in ("t", "alpha", "sigma", "tau", "corrections"):
        assert torch.equal(getattr(again, column), getattr(plan, column))
    assert torch.equal(coefficients(again), coefficients(plan))


def test_a_file_keeps_what_is_known_of_its_making(tuned: Plan, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "plan.json"
    tuned.save(path)
    assert Plan.load(path).provenance == tuned.provenance
    assert [entry.name for entry in path.parent.iterdir()] == ["plan.json"]
    assert Plan.load(path) != tuned.with_provenance(note="another") and tuned != "a plan"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_one_file_may_hold_several_plans(discrete: NoiseScheduleVP, tmp_path: Path) -> None:
    plans = [make_plan("ddim", discrete, calls=calls) for calls in (4, 8)]
    path = tmp_path / "plans.json"
    path.write_text(json.dumps([plan.to_dict() for plan in plans]))
    assert Plan.load(path, calls=8) == plans[1]
    for calls, got in ((None, "got calls=None"), (5, "got calls=5")):
        with pytest.raises(ValueError, match=rf"plans.json has plans for calls = \[4, 8\], {got}: choose one"):
            Plan.load(path, calls=calls)
    plans[0].save(path)
    assert Plan.load(path) == Plan.load(path, calls=4) == plans[0]
    with pytest.raises(ValueError, match=r"has plans for calls = \[4\], got calls=8"):
        Plan.load(path, calls=8)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"plans.json is not a plan file: the list in it is empty"):
        Plan.load(path)


def edited(**entries: Any):
    return lambda values: values | entries


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda v: {k: v[k] for k in v if k != "tau"}, "plan lacks tau"),
        (edited(t=None), "plan lacks t"),
        (edited(format="a recipe"), "not a plan: its 'format' must be 'time-tuner plan'"),
        (lambda v: [1], "not a plan"),
        (edited(version=2), "plan has version 2, this library reads up to 1: update time-tuner"),
        (edited(version="1"), "plan has version '1'"),
        (edited(calls=7), "calls of a plan must be the length of its tau, 5, got 7"),
        (lambda v: v | {"t": v["t"][:-1]}, r"t of a plan with 5 calls must have shape \(6,\), got \(5,\)"),
        (
            lambda v: v | {"alpha": [*v["alpha"], 1.0]},
            r"alpha of a plan with 5 calls must have shape \(6,\), got \(7,\)",
        ),
        (lambda v: v | {"tau": v["tau"][:-1]}, "t of a plan with 4 calls must have shape"),
        (edited(tau=[]), r"tau of a plan must have shape \(K,\) with K >= 1, got \(0,\)"),
        (edited(tau="0.5"), "tau of a plan must be a list of numbers"),
        (edited(sigma=[[1.0], [1.0, 2.0]]), "sigma of a plan must be a list of numbers"),
        (edited(corrections=[[0.0, 1.0], [0.0, 0.0]]), r"corrections must be \(5, 5\)"),
        (
            lambda v: v | {"alpha": [v["alpha"][0] * 1.01, *v["alpha"][1:]]},
            "alpha .* does not lie on its noise schedule",
        ),
        (
            lambda v: v | {"t": [v["t"][0] * 0.99, *v["t"][1:]]},
            "does not lie on its noise schedule .* the file was edited",
        ),
        (lambda v: v | {"t": [v["t"][0], v["t"][2], v["t"][1], *v["t"][3:]]}, "times must fall strictly"),
        (
            lambda v: v | {"sampler": v["sampler"] | {"eta": 0.5}},
            "'dpmpp' has no option 'eta'; its options: order, lower",
        ),
        (lambda v: v | {"sampler": v["sampler"] | {"order": 9}}, "order of DPMSolverPP must be one of"),
        (edited(sampler={"order": 2}), "sampler must be one of ddpm, .* got None"),
        (edited(sampler={"name": ["ddim"]}), r"sampler must be one of ddpm, .* got \['ddim'\]"),
        (edited(schedule={"name": {}}), r"schedule name must be one of .* got \{\}"),
        (lambda v: v | {"t": [10**400, *v["t"][1:]]}, "t of a plan must be a list of numbers"),
        (edited(sampler="ddim"), "sampler of a plan must be a JSON object, got str"),
        (edited(schedule={"name": "vx"}), "schedule name must be one of"),
        (lambda v: v | {"rows": v["rows"][::-1]}, "rows of the plan do not follow .* the file was edited"),
        (edited(rows=[]), "rows of the plan do not follow"),
        (edited(provenance=[]), "provenance of a plan must be a JSON object, got list"),
    ],
)
def test_bad_files_are_refused(edit, says: str, tuned: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps([edit(tuned.to_dict())]))
    with pytest.raises(ValueError, match=rf"plan\.json: .*{says}"):
        Plan.load(path)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_are_refused(constant: str, tuned: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    values = tuned.to_dict()
    path.write_text(json.dumps(values).replace(repr(values["tau"][0]), constant))
    with pytest.raises(ValueError, match=rf"plan\.json is not a plan file: it holds {constant}, which is no number"):
        Plan.load(path)


def test_what_is_no_plan_file_is_named(tuned: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    tuned.save(path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\xff\xfe\x00binary"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"plan\.json is not a plan file"):
            Plan.load(path)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        Plan.load(tmp_path / "none.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "betas", "a"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(data=st.data())
def test_any_json_is_a_plan_or_a_value_error(data: st.DataObject) -> None:
    values = copy.deepcopy(WHOLE)
    holder, key = values, data.draw(st.sampled_from(sorted(values)))
    while isinstance(holder[key], dict | list) and holder[key] and data.draw(st.booleans()):
        holder = holder[key]
        key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    holder[key] = data.draw(JSON)
    try:
        plan = Plan.from_dict(values)
    except ValueError:
        return
    assert len(plan.rows) == 3
    assert Plan.from_dict(plan.to_dict()) == plan


WHOLE = (
    make_plan("dpmpp", NoiseScheduleVP(betas=[0.1, 0.2, 0.3, 0.4]), calls=3)
    .with_corrections(torch.zeros(3, 3))
    .to_dict()
)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_rows_of_a_file_are_all_that_a_run_needs(name: str, discrete: NoiseScheduleVP, tmp_path: Path) -> None:
    plan = make_plan(name, discrete, times=[0.9, 0.5, 0.25, 0.1, 0.0])
    plan = plan.with_tau(0.97 * plan.tau).with_corrections(0.1 * seeded(len(plan), len(plan)).tril(-1))
    plan.save(tmp_path / "plan.json")
    values = json.loads((tmp_path / "plan.json").read_text())
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "run_plan.py"))
    noise, x = np.random.default_rng(0), seeded(50, 1)
    got = example["run"](values, example["gaussian"](values), x.numpy(), noise.standard_normal)
    again = np.random.default_rng(0)
    eps = exact.Gaussian(5.0, 2.0).eps(discrete)
    expected = sample(eps, plan, x, lambda x: torch.from_numpy(again.standard_normal(x.shape)))
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_a_file_without_rows_is_a_plan(tuned: Plan) -> None:
    values = tuned.to_dict()
    del values["rows"]
    assert Plan.from_dict(values) == tuned


# --- saving is atomic ---


@pytest.mark.parametrize(("value", "error"), [(math.nan, ValueError), (object(), TypeError)])
def test_a_plan_that_cannot_be_written_leaves_the_old_file(value: Any, error, tuned: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    tuned.save(path)
    with pytest.raises(error, match="JSON"):
        tuned.with_provenance(value=value).save(path)
    assert Plan.load(path) == tuned
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_disk_that_fails_leaves_the_old_file(tuned: Plan, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "plan.json"
    tuned.save(path)

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        tuned.with_provenance(new=True).save(path)
    assert Plan.load(path) == tuned
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_folder_that_is_none_is_an_os_error(tuned: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        tuned.save(tmp_path / "file" / "plan.json")
    assert os.listdir(tmp_path) == ["file"]


def test_a_loaded_plan_runs_as_the_saved_one(tuned: Plan, tmp_path: Path) -> None:
    tuned.save(tmp_path / "plan.json")
    eps, x = exact.Mixture([-1.0, 1.0], 0.3).eps(tuned.schedule), seeded(8, 1)
    loaded = Plan.load(tmp_path / "plan.json")
    assert torch.equal(sample(eps, loaded, x, SeededNoise()), sample(eps, tuned, x, SeededNoise()))


@pytest.mark.parametrize("name", ["digits/ddim", "digits/joint", "latent-digits/ddim", "latent-digits/joint"])
@pytest.mark.parametrize("calls", [5, 10])
def test_plans_that_come_with_a_model_are_loaded_by_name_and_are_no_worse(
    name: str, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = Plan.load(f"{name}-{calls}")
    assert len(plan) == calls and plan.tuned and Plan.load(f"{name}-{calls}.json") == plan
    assert (plan.corrections is not None) == name.endswith("joint")
    assert plan.provenance["distance"]["tuned"] <= plan.provenance["distance"]["untuned"]
    with pytest.raises(OSError, match=r"digits/nothing.*come with a model: .*digits/joint-5"):
        Plan.load("digits/nothing")
    with pytest.raises(OSError, match=r"\.\./digits"):
        Plan.load("../digits/config")  # names do not leave the folder of plans
