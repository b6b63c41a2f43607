"""Pipelines that pass sigmas or a shift of their own: the untuned plan has the grid that they run."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

pytest.importorskip("transformers", reason="the text encoders of most pipelines; in the dev extra")

from flow_pipelines import FLOWS
from pipelines import FAMILIES

from time_tuner import make_plan
from time_tuner.diffusers import PipelineModel, TimeTunerScheduler


def one(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs for the first condition alone."""
    return {name: value[:1] if isinstance(value, Tensor) else value for name, value in inputs.items()}


def flux(**scheduler: Any) -> tuple[Any, dict[str, Any]]:
    family = FAMILIES["flux"]()
    family.pipe.scheduler = FlowMatchEulerDiscreteScheduler(**scheduler)
    family.pipe.set_progress_bar_config(disable=True)
    return family.pipe, one(family.inputs)


def flux2() -> tuple[Any, dict[str, Any]]:
    family = FLOWS["flux2"]()
    family.pipe.set_progress_bar_config(disable=True)
    return family.pipe, family.inputs


CASES = {
    "schnell": lambda: flux(shift=1.0),
    "dev": lambda: flux(use_dynamic_shifting=True, shift=3.0),
    "flux2": flux2,
    "sd3": lambda: (FAMILIES["sd3"]().pipe, one(FAMILIES["sd3"]().inputs)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("calls", [4, 9])
def test_the_untuned_grid_is_the_one_that_the_pipeline_runs(name: str, calls: int) -> None:
    pipe, given = CASES[name]()
    with torch.no_grad():
        pipe(**given, num_inference_steps=calls)
    expected = pipe.scheduler.sigmas.double()
    with PipelineModel(pipe, **given) as eps:
        plan = make_plan("ddim", eps.schedule, calls, eps.spacing)
    torch.testing.assert_close(plan.sigma, expected.cpu(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["schnell", "sd3"])
@pytest.mark.parametrize("calls", [4, 9])
def test_the_grid_of_a_scheduler_for_a_pipeline_is_the_one_that_the_pipeline_runs(name: str, calls: int) -> None:
    """Flux passes even sigmas from 1 to 1/n to its scheduler, Stable Diffusion 3 passes none."""
    pipe, given = CASES[name]()
    with torch.no_grad():
        pipe(**given, num_inference_steps=calls)
        own, pipe.scheduler = pipe.scheduler, TimeTunerScheduler.from_config(pipe, calls=calls, sampler="ddim")
        pipe(**given, num_inference_steps=calls)
    torch.testing.assert_close(pipe.scheduler.sigmas, own.sigmas.cpu(), rtol=1e-4, atol=1e-6)


def test_without_a_pipeline_flows_have_the_grid_that_most_pipelines_pass() -> None:
    own = FlowMatchEulerDiscreteScheduler(shift=1.0)
    plan = TimeTunerScheduler.from_config(own, calls=4, sampler="ddim").plan
    torch.testing.assert_close(plan.sigma, torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64))


def test_pndm_with_runge_kutta_steps_has_the_grid_of_its_own_number_of_steps() -> None:
    own = diffusers.PNDMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    for sampler, calls in (("ddim", 10), ("pndm(skip_prk_steps=False)", 19)):
        plan = TimeTunerScheduler.from_config(own, calls=calls, sampler=sampler).plan
        assert len(plan.steps) == 10
    with pytest.raises(ValueError, match=r"PNDMScheduler has no grid of 2 steps: with skip_prk_steps=False"):
        TimeTunerScheduler.from_config(own, calls=2, sampler="ddim")
