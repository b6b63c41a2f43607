"""The times that a network receives when its pipeline rounds them; and predictions that belong to one schedule."""

import json

import pytest
import torch

from time_tuner import (
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    Plan,
    make_plan,
    model_wrapper,
    named_betas,
    sample,
)
from time_tuner.schedules import NoiseSchedule

DISCRETE, LINEAR = NoiseScheduleVP(betas=named_betas()), NoiseScheduleVP("linear")


def rounded(label: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(label, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("time_dtype", ["int", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "schedule", [DISCRETE, LINEAR, NoiseScheduleVE(), NoiseScheduleFlow(3.0), NoiseScheduleFlow(scale=1.0)], ids=repr
)
def test_a_plan_holds_the_rounded_times_of_a_network(time_dtype: str, schedule: NoiseSchedule) -> None:
    """A plan of rounded times gives a network that does not round what the first plan gives one that rounds."""
    received: list[float] = []

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        received.append(float(t[0]))
        return torch.tanh(x) * (1 + torch.cos(t.double()))[:, None]

    wrapped = {
        name: model_wrapper(predict, schedule, "flow", time_dtype=name).bind() for name in (time_dtype, "float32")
    }
    times = [0.87 * schedule.T, 0.533 * schedule.T, 0.21 * schedule.T]
    plan = make_plan("ddim", schedule, times=times)
    plan = plan.with_tau(0.987 * plan.tau)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected, expected_times = sample(wrapped[time_dtype], plan, x), received.copy()

    held = plan.with_tau(wrapped[time_dtype].rounded_times(plan.tau))
    assert not torch.equal(held.tau, plan.tau) and torch.equal(held.t, plan.t)
    received.clear()
    torch.testing.assert_close(sample(wrapped["float32"], held, x), expected, rtol=1e-5, atol=1e-5)
    assert received == pytest.approx(expected_times, rel=1e-6)
    again = Plan.from_dict(json.loads(json.dumps(held.to_dict())))
    assert torch.equal(again.tau, held.tau)
    torch.testing.assert_close(wrapped[time_dtype].rounded_times(held.tau), held.tau, rtol=1e-12, atol=0)
    torch.testing.assert_close(wrapped["float32"].rounded_times(plan.tau), plan.tau, rtol=0, atol=0)
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    if time_dtype != "int":
        assert expected_times == [rounded(float(n), dtype[time_dtype]) for n in schedule.network_time(plan.tau)]


def test_bfloat16_holds_every_fourth_level_of_the_noisy_half() -> None:
    wrapped = model_wrapper(lambda x, t: x, DISCRETE, time_dtype="bfloat16")
    times = (torch.arange(512, 1000, dtype=torch.float64) + 1) / 1000
    levels = DISCRETE.network_time(wrapped.rounded_times(times))
    assert sorted({round(float(n), 6) for n in levels}) == [float(n) for n in range(512, 1001, 4)]
    assert float((levels - torch.arange(512, 1000)).abs().max()) == pytest.approx(2)


@pytest.mark.parametrize("model_type", ["edm", "edm_v"])
def test_preconditioning_belongs_to_edm(model_type: str) -> None:
    with pytest.raises(ValueError, match=rf"model_type='{model_type}' is EDM's preconditioning, on a NoiseScheduleVE"):
        model_wrapper(lambda x, t: x, DISCRETE, model_type)
