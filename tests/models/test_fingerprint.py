"""A plan knows the network, the schedule, the guidance and the size that it was tuned for, and says what differs."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from helpers import seeded
from torch import Tensor, nn

from time_tuner import Joint, Plan, SeededNoise, make_plan, model_wrapper, named_betas, sample, tune
from time_tuner.diffusers import PipelineModel, TimeTunerScheduler, tune_pipeline
from time_tuner.digits.pipeline import digits_pipeline
from time_tuner.models.base import as_model
from time_tuner.models.exact import Gaussian
from time_tuner.models.fingerprint import (
    MEASURE,
    OTHER,
    SAME,
    differences,
    fingerprint_of,
    network_fingerprint,
)
from time_tuner.schedules import NoiseScheduleVP

SCHEDULE = NoiseScheduleVP(betas=named_betas("linear", 1000))


class Network(nn.Module):
    """A small network of pictures, under a label."""

    def __init__(self, seed: int = 0, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.first = nn.Conv2d(1, width, 3, padding=1)
            self.norm = nn.GroupNorm(2, width)
            self.last = nn.Conv2d(width, 1, 3, padding=1)
            self.labels = nn.Embedding(3, width)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.norm(self.first(x)) + t.reshape(-1, 1, 1, 1) / 1000
        if label is not None:
            h = h + self.labels(label)[:, :, None, None]
        return self.last(torch.tanh(h))


def model(network: nn.Module, scale: float | None = None, model_type: str = "noise") -> Any:
    if scale is None:
        return model_wrapper(network, SCHEDULE, model_type).bind()
    wrapped = model_wrapper(network, SCHEDULE, model_type, guidance_type="classifier-free", guidance_scale=scale)
    return wrapped.bind(torch.tensor([1]), torch.tensor([0]))


def tuned_for(made_for: Any, shape: tuple[int, ...] = (1, 8, 8)) -> Plan:
    return make_plan("ddim", SCHEDULE, 4).with_provenance(made_for=fingerprint_of(made_for, shape))


def found(made_for: Any, used: Any) -> dict[str, str]:
    """What differs, and what to expect of it, through a JSON file."""
    one, other = (json.loads(json.dumps(fingerprint_of(m, (1, 8, 8)))) for m in (made_for, used))
    return {difference.what: difference.expect for difference in differences(one, other)}


def moved(network: nn.Module, share: float) -> nn.Module:
    """A copy whose weights are moved by a share of their deviation, as by training on."""
    other = copy.deepcopy(network)
    with torch.no_grad():
        for i, weight in enumerate(other.parameters()):
            weight += share * weight.std() * seeded(*weight.shape, seed=i).float() if weight.dim() > 1 else 0
    return other


# --- networks ---


def test_the_same_network_has_no_differences() -> None:
    assert found(model(Network()), model(Network())) == {}
    assert found(model(Network()), model(nn.Sequential(Network()))) == {}  # a wrapper
    calls = []
    network = Network()
    network.register_forward_hook(lambda *_: calls.append(1))
    fingerprint_of(model(network))
    assert not calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_is_probably_harmless(dtype: torch.dtype) -> None:
    assert found(model(Network()), model(Network().to(dtype))) == {"dtype": SAME}


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_fine_tune_is_probably_harmless(share: float) -> None:
    assert found(model(Network()), model(moved(Network(), share))) == {"weights": SAME}


def test_another_training_needs_another_plan() -> None:
    assert found(model(Network()), model(Network(seed=1))) == {"weights": OTHER}


def test_another_architecture_needs_another_plan() -> None:
    assert found(model(Network()), model(Network(width=10))) == {"architecture": OTHER}
    assert found(model(Network()), model(nn.Conv2d(1, 1, 3, padding=1))) == {"network": OTHER}


def test_a_quantised_copy_is_to_be_measured() -> None:
    quantised = Network()
    for part in (quantised.first, quantised.last):  # as bitsandbytes keeps packed weights
        packed = torch.zeros(part.weight.numel() // 2, 1, dtype=torch.uint8)
        part.weight = nn.Parameter(packed, requires_grad=False)  # type: ignore[assignment]
    assert found(model(Network()), model(quantised)) == {"quantisation": MEASURE}
    assert network_fingerprint(quantised)["quantisation"] == "uint8"
    named = Network()
    named.config = {"quantization_config": {"quant_method": "gguf"}}  # type: ignore[assignment]
    assert found(model(Network()), model(named)) == {"quantisation": MEASURE}
    assert found(model(named), model(copy.deepcopy(named))) == {}


def test_adapters_are_to_be_measured() -> None:
    class Adapted(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base_layer, self.lora_A = base, nn.Linear(2, 2, bias=False)

    network = Network()
    network.first = Adapted(network.first)  # type: ignore[assignment]
    assert found(model(Network()), model(network)) == {"adapters": MEASURE}


def test_weights_that_are_not_there_are_left_out() -> None:
    with torch.device("meta"):
        offloaded = Network()
    assert network_fingerprint(offloaded)["weights"] == {}
    assert found(model(Network()), model(offloaded)) == {}


def test_another_memory_format_is_no_difference() -> None:
    other = Network().to(memory_format=torch.channels_last)
    other.scale = nn.Parameter(torch.tensor(2.0))
    assert found(model(Network()), model(other)) == {}


def test_functions_and_exact_models_are_never_refused() -> None:
    assert network_fingerprint(lambda x, t: x) == {}
    assert fingerprint_of(Gaussian().eps(SCHEDULE)) == {}
    assert found(model(Network()), as_model(lambda x, t, tau: x, SCHEDULE, (1, 8, 8))) == {}


# --- schedule, guidance, size ---


def test_another_prediction_needs_another_plan() -> None:
    assert found(model(Network()), model(Network(), model_type="v")) == {"prediction_type": OTHER}


@pytest.mark.parametrize(("scale", "expect"), [(4.2, SAME), (7.0, MEASURE), (1.0, MEASURE)])
def test_another_guidance_scale_is_recognised(scale: float, expect: str) -> None:
    assert found(model(Network(), 4.0), model(Network(), scale)) == {"guidance_scale": expect}


def test_conditions_are_recognised() -> None:
    assert found(model(Network()), model(Network(), 1.0)) == {"conditions": MEASURE}


def test_another_size_is_recognised_on_use() -> None:
    plan, x = tuned_for(model(Network())), SeededNoise([0])(torch.empty(1, 1, 8, 8))
    sample(model(Network()), plan, plan.initial_state(x))
    larger = SeededNoise([0])(torch.empty(1, 1, 16, 16))
    with pytest.warns(UserWarning, match=r"another model: shape \(1, 8, 8, now 1, 16, 16: measure the plan\)"):
        sample(model(Network()), plan, plan.initial_state(larger))


def test_another_schedule_is_refused_on_use() -> None:
    other = model_wrapper(Network(), NoiseScheduleVP(betas=named_betas("scaled_linear", 1000))).bind()
    with pytest.raises(ValueError, match="another noise schedule"):
        sample(other, tuned_for(model(Network())), seeded(1, 1, 8, 8).float())


def test_the_gravest_difference_comes_first_in_the_warning() -> None:
    plan = tuned_for(model(Network(), 4.0))
    with pytest.warns(UserWarning, match="another model") as warned:
        sample(model(Network(seed=1), 8.0), plan, seeded(1, 1, 8, 8).float())
    text = str(warned[0].message)
    assert text.index("weights") < text.index("guidance_scale")
    assert "tune another plan" in text and "cosine" in text


def test_plans_without_a_fingerprint_say_nothing() -> None:
    sample(model(Network()), make_plan("ddim", SCHEDULE, 3), seeded(1, 1, 8, 8).float())


def test_tuning_notes_what_the_plan_belongs_to(tmp_path: Path) -> None:
    own = model(Network(), 2.0)
    tuner = Joint(teacher=make_plan("ddim", SCHEDULE, 8), pairs=8, iterations=1)
    plan = tune(own, calls=3, tuner=tuner, samples=8, shape=(1, 8, 8), budget="2000calls", guard=False)
    plan.save(tmp_path / "plan.json")
    made_for = Plan.load(tmp_path / "plan.json").provenance["made_for"]
    assert made_for == json.loads(json.dumps(fingerprint_of(own, (1, 8, 8))))
    assert made_for["guidance_scale"] == 2.0 and made_for["shape"] == [1, 8, 8]
    assert len(json.dumps(made_for)) < 2000


# --- pipelines ---


def changed_pipeline(**config: Any) -> Any:
    pipe = digits_pipeline()
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **config)
    return pipe


def test_a_plan_of_a_pipeline_names_other_networks_and_schedulers() -> None:
    with PipelineModel(digits_pipeline(), class_labels=[1]) as own:
        plan = make_plan("ddim", own.schedule, 3).with_provenance(made_for=fingerprint_of(own))
    TimeTunerScheduler.from_plan(plan, digits_pipeline())
    with pytest.warns(UserWarning, match=r"clip \(none, now 1: measure the plan\)"):
        TimeTunerScheduler.from_plan(plan, changed_pipeline(clip_sample=True))
    other = digits_pipeline()
    other.unet = type(other.unet).from_config(other.unet.config)
    with pytest.warns(UserWarning, match="those of another training"):
        TimeTunerScheduler.from_plan(plan, other)
    scheduler = TimeTunerScheduler.from_plan(plan, digits_pipeline())
    again = digits_pipeline()
    again.scheduler = scheduler
    with PipelineModel(again, class_labels=[1]) as same, warnings.catch_warnings():
        sample(same, plan, plan.initial_state(seeded(1, 1, 28, 28).float()))
    with (
        PipelineModel(digits_pipeline(), class_labels=[1], guidance_scale=3.0) as guided,
        pytest.warns(UserWarning, match=r"guidance_scale \(1, now 3: measure the plan\)"),
    ):
        sample(guided, plan, plan.initial_state(seeded(1, 1, 28, 28).float()))


def test_tuning_a_pipeline_notes_what_the_plan_belongs_to() -> None:
    pipe = digits_pipeline()
    plan = tune_pipeline(pipe, 2, "sequential", class_labels=[1], samples=2, guard=False, budget="40calls")
    made_for = plan.provenance["made_for"]
    assert made_for["network"]["class"] == type(pipe.unet).__name__
    assert made_for["conditions"] == ["class_labels"] and made_for["shape"] == [1, 28, 28]
    TimeTunerScheduler.from_plan(plan, pipe)
