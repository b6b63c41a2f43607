"""Every sampler, schedule and model that the tests of whole tables concern."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from time_tuner import (
    SAMPLERS,
    Model,
    NoiseScheduleFlow,
    NoiseScheduleVE,
    NoiseScheduleVP,
    as_model,
    model_wrapper,
    named_betas,
)
from time_tuner.models.base import HookedModel, ModelAround
from time_tuner.models.batching import BatchedModel
from time_tuner.models.checkpointing import CheckpointedModel
from time_tuner.models.counting import CostLog, CountedModel
from time_tuner.models.exact import Gaussian, Mixture
from time_tuner.models.predictions import PREDICTIONS
from time_tuner.models.thresholding import clipped, dynamically_thresholded
from time_tuner.schedules import NoiseSchedule

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "ddpm": [{"variance": "small"}],
    "ddim": [{"eta": 0.5}, {"eta": 1.0}],
    "dpm": [{"order": 1}, {"order": 3}, {"order": 3, "stage_weight": "midpoint"}],
    "dpmpp": [
        {"order": 1},
        {"order": 3},
        {"lower_order_final": True},
        {"order": 3, "lower_order_final": False},
        {"order": 3, "third_order_weight": "taylor"},
        {"algorithm_type": "dpmsolver"},
        {"order": 3, "algorithm_type": "dpmsolver"},
        {"order": 3, "algorithm_type": "dpmsolver", "third_order_weight": "taylor"},
    ],
    "dpmpp_single": [{"order": 1}, {"order": 3}, {"order": 3, "stage_weight": "midpoint"}],
    "sde_dpmpp": [{"order": 1}],
    "unipc": [
        {"order": 1},
        {"order": 3},
        {"solver_type": "bh1"},
        {"order": 1, "solver_type": "bh1"},
        {"order": 3, "solver_type": "bh1"},
        {"corrector": False},
        {"order": 3, "corrector": False},
    ],
    "deis": [{"order": 1}, {"order": 3}],
    "ipndm": [{"order": 1}, {"order": 2}, {"order": 3}],
    "pndm": [{"skip_prk_steps": False}],
}
EVERY = [kind(**options) for name, kind in SAMPLERS.items() for options in ({}, *OPTIONS.get(name, []))]


DISCRETE, LINEAR, ZERO_SNR = (
    NoiseScheduleVP(betas=named_betas()),
    NoiseScheduleVP("linear"),
    NoiseScheduleVP(alphas_cumprod=[0.9, 0.6, 0.3, 0.1, 0.0]),
)
FEW = NoiseScheduleVP(betas=torch.linspace(0.01, 0.5, 20, dtype=torch.float64))
VE, FLOW = NoiseScheduleVE(), NoiseScheduleFlow(3.0)
EVERY_SCHEDULE = [DISCRETE, LINEAR, NoiseScheduleVP("cosine"), FEW, VE, NoiseScheduleFlow(), FLOW]
MIXTURE = Mixture([[2.0, 0.0], [-1.0, 1.5], [0.5, -2.0]], 0.2)


def network(x: Tensor, n: Tensor, condition: Tensor | None = None) -> Tensor:
    """A prediction that depends on the state, on the time and on the condition of each sample."""
    shift = 0.0 if condition is None else condition.float().view(-1, 1)
    return torch.tanh(x + 0.1 * shift) * (1 + 0.1 * torch.cos(n.double() / 200)).to(x)[:, None]


def classifier(x: Tensor, n: Tensor, condition: Tensor) -> Tensor:
    return -(x - 0.1 * condition.float().view(-1, 1)).square().sum(1)


def wrapped(guidance: str, several: bool, schedule: NoiseSchedule = DISCRETE, model_type: str = "noise") -> Model:
    made = model_wrapper(
        network,
        schedule,
        model_type,
        guidance_type=guidance,
        guidance_scale=2.0,
        classifier_fn=classifier,
        shape=(2,),
    )
    if guidance == "uncond":
        return made.bind()
    return made.bind(torch.arange(6) if several else torch.tensor([3]), torch.tensor([9]))


INNER = {
    **{f"{guidance}, {'six conditions' if several else 'one condition'}": (lambda g=guidance, s=several: wrapped(g, s))
       for guidance in ("uncond", "classifier", "classifier-free") for several in (True, False)},
    **{f"{name} on {type(schedule).__name__}": (lambda n=name, s=schedule: wrapped("classifier-free", True, s, n))
       for name in PREDICTIONS for schedule in ([VE] if name.startswith("edm") else [DISCRETE, FLOW])},
    "bfloat16 times": lambda: model_wrapper(network, DISCRETE, time_dtype="bfloat16", shape=(2,)).bind(),
    "whole levels": lambda: model_wrapper(network, DISCRETE, time_dtype="int", shape=(2,)).bind(),
    "Gaussian": lambda: Gaussian([1.0, 2.0], 0.5).eps(LINEAR),
    "Mixture": lambda: MIXTURE.eps(FLOW),
    "function": lambda: as_model(lambda x, t, tau: torch.tanh(x) * float(tau), LINEAR, (2,)),
}  # fmt: skip
AROUND: dict[str, Callable[[Model], ModelAround]] = {
    "hooked": lambda inner: HookedModel(inner, lambda quantity, x, t, prediction: None),
    "counted": lambda inner: CountedModel(inner, CostLog()),
    "batched": lambda inner: BatchedModel(inner, 4),
    "checkpointed": CheckpointedModel,
    "clipped": lambda inner: clipped(inner, 0.5),
    "dynamically thresholded": lambda inner: dynamically_thresholded(inner, 0.6, 0.5),
    "batched, clipped, counted": lambda inner: BatchedModel(clipped(CountedModel(inner, CostLog()), 0.5), 3),
    "clipped, batched, hooked": lambda inner: clipped(BatchedModel(HookedModel(inner, lambda *_: None), 3), 0.5),
}
