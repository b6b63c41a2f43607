"""A plan as ComfyUI's SIGMAS, as a sampler function, and as a patch of MODEL."""

import copy
import logging
from typing import Any

import torch
from torch import Tensor

from .plan_file import NEAR, Plan, same

CHECKED_SIGMAS = (0.02, 100.0)
"""Between these noises the levels of a model are compared with those of the plan."""

OFF = 0.03
"""The largest relative difference of their noises; between two levels the two sides interpolate differently."""


class PlanTimes:
    """`timestep(sigma)` of a patched model: the network time of the plan's conditioning time at the plan's sigmas, and
    what the model had before at others."""

    def __init__(self, plan: Plan, own: Any) -> None:
        self.plan, self.own = plan, own
        if is_discrete(own):
            times = torch.tensor(plan.levels(), dtype=torch.float64)
        else:
            times = own.timestep(torch.tensor(plan.noise_at_tau(), dtype=torch.float64))
        self.times, self.sigmas = times, torch.tensor(plan.called_sigmas, dtype=torch.float64)

    def __call__(self, sigma: Tensor) -> Tensor:
        given = sigma.detach().double().cpu().reshape(-1, 1)
        off, k = ((given - self.sigmas).abs() / self.sigmas).min(1)
        if not (off < NEAR).any():
            return self.own.timestep(sigma)
        found = self.times[k].float().reshape(sigma.shape).to(sigma.device)
        if (off < NEAR).all():
            return found
        known = (off < NEAR).reshape(sigma.shape).to(sigma.device)
        return torch.where(known, found, self.own.timestep(sigma).float())


def is_discrete(sampling: Any) -> bool:
    """Whether a `model_sampling` rounds its time to whole levels."""
    return not sampling.timestep(sampling.sigma_max.reshape(1)).is_floating_point()


def is_flow(sampling: Any) -> bool:
    """Whether a `model_sampling` has states (1 - sigma) x_0 + sigma eps, and not x_0 + sigma eps."""
    half, ones = torch.tensor([0.5]), torch.ones(1, 1)
    return bool(sampling.noise_scaling(half, 0 * ones, ones, False) < 0.75)


def check_model(plan: Plan, sampling: Any) -> None:
    """Raise a ValueError unless the model has the noise schedule of the plan."""
    flow, discrete = is_flow(sampling), is_discrete(sampling)
    got = "a rectified flow" if flow else f"noise with {'discrete levels' if discrete else 'a continuous time'}"
    name = plan.schedule["name"]
    wanted = {"flow": (True, False), "ve": (False, False), "vp": (False, True)}[name]
    if (flow, discrete) != wanted:
        raise ValueError(f"the plan was made on a {name!r} schedule, and MODEL has {got}: choose a plan for this model")
    if name == "vp":
        _check_levels(plan, sampling)
    own, data = getattr(sampling, "sigma_data", None), plan.schedule.get("sigma_data")
    if name == "ve" and None not in (own, data) and abs(own - data) > 1e-6:
        raise ValueError(f"the plan was made for sigma_data={data}, MODEL has {own}: choose a plan for this model")


def _check_levels(plan: Plan, sampling: Any) -> None:
    values = plan.schedule.get("betas") or plan.schedule.get("alphas_cumprod") or ()
    if len(values) != len(sampling.sigmas):
        raise ValueError(
            f"the plan was made for a network with {len(values) or 'no'} discrete levels, MODEL has "
            f"{len(sampling.sigmas)}: choose a plan for this model"
        )
    for t, sigma in zip(plan.t, plan.sigmas, strict=True):
        if not CHECKED_SIGMAS[0] < sigma < CHECKED_SIGMAS[1] or t * len(values) < 1:
            continue
        there = float(sampling.sigma(torch.tensor(t * len(values) - 1)))
        if abs(there / sigma - 1) > OFF:
            raise ValueError(
                f"the plan was made for another noise schedule: at level {t * len(values) - 1:.1f} it has sigma "
                f"{sigma:.4g}, MODEL has {there:.4g}: choose a plan for this model"
            )


def patched(model: Any, plan: Plan) -> Any:
    """A clone of MODEL whose network receives the plan's conditioning times at the plan's sigmas.

    Raises:
        ValueError: the model has another noise schedule than the plan.
    """
    clone, own = model.clone(), model.get_model_object("model_sampling")
    if isinstance(getattr(own, "timestep", None), PlanTimes):  # a plan that was set before
        own = own.timestep.own
    check_model(plan, own)
    changed = copy.deepcopy(own)
    changed.timestep = PlanTimes(plan, own)
    clone.add_object_patch("model_sampling", changed)
    return clone


class PlanGuidance:
    """What a guider does at the calls of a plan that leaves guidance out of some: there it evaluates the model under
    the positive condition alone, and adds what the plan reuses of the guidance of earlier calls.

    A guider derives from this class and from `CFGGuider`. `PlanSampler` names the call before each prediction.
    """

    _call: tuple[Plan, int] | None = None

    def begin_call(self, plan: Plan, k: int, first: int) -> None:
        """The next prediction is that of call k, of a run that began with call `first`."""
        if k == first:
            self._added: dict[int, Tensor] = {}
        self._call = plan, k

    def guided_or_not(self, x: Tensor, guided: Any, conditional: Any) -> Tensor:
        """The predicted data in the state x at the named call.

        `guided(record)` predicts it under guidance, and calls `record(whole, conditional)` with the data predicted with
        guidance and under the condition alone; `conditional()` predicts the latter.
        """
        named, self._call = self._call, None
        if named is None:  # another sampler
            return guided(lambda whole, alone: None)
        plan, k = named
        row, unit = plan.rows[k], self._unit(plan, k)
        if "guidance" not in row:

            def record(whole: Tensor, alone: Tensor) -> None:
                self._added[k] = (whole - alone) * unit

            return guided(record)
        x0 = conditional()
        for _, ago, weight in row["guidance"]:
            x0 = x0 + (weight / unit) * self._added[k - ago].to(x0)
        return x0

    @staticmethod
    def _unit(plan: Plan, k: int) -> float:
        """What a unit of the data is in the quantity that row k predicts: 1, or -alpha / sigma of the noise."""
        return 1.0 if plan.rows[k].get("predicts") == "x0" else -plan.alpha[k] / plan.sigma[k]


class PlanSampler:
    """A sampler function, as `KSAMPLER` takes it: the rows of the plan.

    Args:
        plan: the plan.
        tails: plans for the rest of its run, from the same file, for runs that begin later.
    """

    __name__ = "time_tuner_plan"

    def __init__(self, plan: Plan, tails: list[Plan] | None = None) -> None:
        self.plan, self.tails = plan, [tail for tail in tails or [] if tail.is_tail_of(plan)]

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Any = None,
        disable: Any = None,
        noise_sampler: Any = None,
    ) -> Tensor:
        """The state after the plan's calls between the first and the last of `sigmas`, which are K + 1 of the plan, or
        several of them in a row.

        `model(x, sigma, **extra_args)` returns the predicted data x_0 (B, ...) after guidance. `callback` receives a
        dictionary after each call. `noise_sampler(x)` draws noise; by default from a generator with the seed of the
        run.

        Raises:
            ValueError: other sigmas, a start at which the rows need earlier calls, or a model without the plan's times.
        """
        plan, first, last = self._run_of([float(s) for s in sigmas])
        self._check_patch(model)
        if plan.shape and plan.shape != tuple(x.shape[1:]):
            logging.warning(
                "the plan was tuned for samples of shape %s, got %s: compare the result with an untuned sampler",
                list(plan.shape),
                list(x.shape[1:]),
            )
        extra_args = extra_args or {}
        noise_scale = float(getattr(_sampling_of(model), "noise_scale", 1.0))
        noise = noise_sampler or _seeded(x, extra_args.get("seed"))
        x = x * plan.scales[first]
        if first == 0 and plan is self.plan:
            x = self._from_noise(model, x, noise_scale)
        calls: list[dict[str, Tensor]] = []
        guider = self._guider(model)
        called = self.plan.called_sigmas[len(self.plan) - len(plan) :]  # of a tail, those of the whole plan
        for k in range(first, last):
            row, sigma = plan.rows[k], called[k]
            state = x / plan.scales[k]
            if guider is not None:
                guider.begin_call(plan, k, first)
            x0 = model(state, x.new_full((len(x),), sigma), **extra_args)
            if callback is not None:
                at = sigmas[k - first]
                callback({"x": state, "i": k - first, "sigma": at, "sigma_hat": at, "denoised": x0})
            if row.get("predicts") == "x0":
                call = {"x": x, "x0": x0}
            else:
                call = {"x": x, "eps": (x - plan.alpha[k] * x0) / plan.sigma[k]}
            calls.append(call)
            if "corrected" in row:
                call["c"] = _combine(calls, row["corrected"])
            if any(kind == "z" for kind, _, _ in row["next_state"]):
                call["z"] = noise_scale * noise(x)
            x = _combine(calls, row["next_state"])
        return x / plan.scales[last]

    def _run_of(self, sigmas: list[float]) -> tuple[Plan, int, int]:
        """The plan, the first call and the end of a run over these sigmas."""
        plan, count = self.plan, len(sigmas)
        starts = [k for k in range(len(plan) + 2 - count) if same(plan.sigmas[k : k + count], sigmas)]
        if count < 2 or not starts:
            raise ValueError(
                f"sigmas must be those of the plan, {_text(plan.sigmas)}, or several of them in a row, got "
                f"{_text(sigmas)}: connect the SIGMAS of the plan's node"
            )
        first, last = starts[0], starts[0] + count - 1
        if all(plan.reads_from(k) >= first for k in range(first, last)):
            return plan, first, last
        for tail in self.tails:
            if len(tail) == len(plan) - first:
                return tail, 0, last - first
        raise ValueError(
            f"a run from sigma {sigmas[0]:.4g} on needs the {first} calls before it, because the plan looks back on "
            "them: export the plan with time_tuner.exports.save_with_tails, or run all of its sigmas"
        )

    def _check_patch(self, model: Any) -> None:
        sampling = _sampling_of(model)
        if sampling is None:
            return
        times = getattr(sampling, "timestep", None)
        if not isinstance(times, PlanTimes) or not same(times.plan.tau, self.plan.tau):
            raise ValueError(
                "MODEL must be the one that the plan's node returns: its network receives the plan's times. Connect it "
                "to the guider, and put nodes that change the model's sampling before the plan's node"
            )

    def _guider(self, model: Any) -> Any:
        """The guider of a plan that leaves guidance out of some calls; None for other plans."""
        if self.plan.guides_all:
            return None
        guider = getattr(model, "inner_model", None)
        if not isinstance(guider, PlanGuidance):
            raise ValueError(
                "the plan leaves guidance out of some calls, and the guider gives it to all: connect the GUIDER of the "
                "node 'Time Tuner guider'"
            )
        return guider

    def _from_noise(self, model: Any, x: Tensor, noise_scale: float) -> Tensor:
        """The first state: without an image, noise of the deviation sqrt(alpha^2 + sigma^2)."""
        latent, noise = getattr(model, "latent_image", None), getattr(model, "noise", None)
        if noise is None or (latent is not None and torch.count_nonzero(latent) > 0):
            return x
        scale = (self.plan.alpha[0] ** 2 + self.plan.sigma[0] ** 2) ** 0.5
        return noise_scale * scale * noise.to(x)


def _sampling_of(model: Any) -> Any:
    """The `model_sampling` of the model that a sampler function receives; None outside of ComfyUI."""
    guider = getattr(model, "inner_model", None)
    return getattr(getattr(guider, "inner_model", None), "model_sampling", None)


def _combine(calls: list[dict[str, Tensor]], terms: list[list[Any]]) -> Tensor:
    """The sum of weight times tensor over terms [tensor, calls ago, weight]."""
    total = torch.zeros_like(calls[-1]["x"])
    for kind, ago, weight in terms:
        total.add_(calls[-1 - ago][kind], alpha=weight)
    return total


def _seeded(x: Tensor, seed: Any) -> Any:
    generator = torch.Generator().manual_seed(int(seed or 0))
    return lambda state: torch.randn(state.shape, generator=generator, dtype=torch.float32).to(x)


def _text(sigmas: Any) -> str:
    return f"[{', '.join(f'{s:.4g}' for s in sigmas)}]"
