"""Any network as `eps(x, t, tau)`: prediction type, guidance, conditions and the unit of time are settled here."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .schedules import NoiseSchedule, Point, as_times

MODEL_TYPES = ("noise", "x_start", "v", "score")
GUIDANCE_TYPES = ("uncond", "classifier", "classifier-free")
LABELS = ("float", "round")


def to_noise(model_type: str, output: Tensor, x: Tensor, p: Point) -> Tensor:
    """A network's output as noise. The conversion is at the solver's point p, whatever time the network was told.

    "noise" eps; "x_start" (x - alpha x0) / sigma; "v" alpha v + sigma x; "score" -sigma s.
    """
    if model_type == "noise":
        return output
    if model_type == "x_start":
        return (x - p.alpha * output) / p.sigma
    if model_type == "v":
        return p.alpha * output + p.sigma * x
    return -p.sigma * output


class model_wrapper:  # noqa: N801 - the published name, called like a function
    """A network, discrete or continuous in time, as a noise prediction in continuous time.

    The result is called `model_fn(x, t, tau=None, condition=None, uncond_condition=None)`: the noise in x (B, ...) at
    the solver's time t, the network being told tau (t when None). `model_fn.bind(condition, uncond_condition)` gives
    the `eps(x, t, tau)` that samplers and tuners take.

    Args:
        model: called `model(x, t_input, [cond], **model_kwargs)` with t_input (B,) in float32: for a discrete schedule
            the level n = t N - 1, which falls between two levels when t does; for a continuous one t itself.
        noise_schedule: the schedule that the network was trained with.
        model_type: what the network predicts: "noise", "x_start" (the data), "v" (alpha eps - sigma x0), or "score".
        guidance_type: "uncond": the network is called without a condition. "classifier": eps - w sigma grad_x
            log p(c | x, tau) (Dhariwal & Nichol, 2021, https://arxiv.org/abs/2105.05233). "classifier-free":
            eps_u + w (eps_c - eps_u), in one call of a doubled batch (Ho & Salimans, 2022,
            https://arxiv.org/abs/2207.12598).
        guidance_scale: w.
        classifier_fn: called `classifier_fn(x, t_input, cond, **classifier_kwargs)`, gives log p(c | x), (B,).
        cond_process_fn: embeds a raw condition, once for each `bind`.
        labels: "float", or "round" for networks that take only integer levels: tuned times are then rounded to the
            nearest level, and what lies between two levels is lost.

    Raises:
        ValueError: names the argument, what was got and the way out.
    """

    def __init__(
        self,
        model: Callable[..., Tensor],
        noise_schedule: NoiseSchedule,
        model_type: str = "noise",
        model_kwargs: Mapping[str, Any] | None = None,
        guidance_type: str = "uncond",
        guidance_scale: float = 1.0,
        classifier_fn: Callable[..., Tensor] | None = None,
        classifier_kwargs: Mapping[str, Any] | None = None,
        cond_process_fn: Callable[[Any], Any] | None = None,
        labels: str = "float",
    ) -> None:
        for name, value, allowed in (
            ("model_type", model_type, MODEL_TYPES),
            ("guidance_type", guidance_type, GUIDANCE_TYPES),
            ("labels", labels, LABELS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if guidance_type == "classifier" and classifier_fn is None:
            raise ValueError(
                "guidance_type='classifier' needs classifier_fn=, which returns log p(c | x) of shape (B,)"
            )
        self.model = model
        self.schedule = noise_schedule
        self.model_type = model_type
        self.model_kwargs = dict(model_kwargs or {})
        self.guidance_type = guidance_type
        self.guidance_scale = float(guidance_scale)
        self.classifier_fn = classifier_fn
        self.classifier_kwargs = dict(classifier_kwargs or {})
        self.cond_process_fn = cond_process_fn
        self.labels = labels
        self._recent: list[tuple[Any, int | None, Tensor | None]] = []

    def __call__(
        self, x: Tensor, t: Any, tau: Any = None, condition: Any = None, uncond_condition: Any = None
    ) -> Tensor:
        return self.bind(condition, uncond_condition)(x, t, tau)

    def bind(self, condition: Any = None, uncond_condition: Any = None) -> "BoundModel":
        """`eps(x, t, tau=None)` under these conditions, each (B, ...) or (1, ...) for one that all samples share."""
        if self.guidance_type == "uncond":
            return BoundModel(self, None, None)
        if condition is None:
            raise ValueError(f"guidance_type={self.guidance_type!r} needs condition=, of shape (B, ...) or (1, ...)")
        if self.guidance_type == "classifier-free" and self.guidance_scale != 1 and uncond_condition is None:
            raise ValueError("guidance_type='classifier-free' needs uncond_condition= unless guidance_scale is 1")
        return BoundModel(self, self._embedded(condition), self._embedded(uncond_condition))

    def _embedded(self, raw: Any) -> Tensor | None:
        """A raw condition after `cond_process_fn`, which is not repeated for an object that was just given."""
        if raw is None or self.cond_process_fn is None:
            return _condition(raw)
        if not isinstance(raw, Tensor | str | tuple | int | float):  # it may have been written to since
            return _condition(self.cond_process_fn(raw))
        version = raw._version if isinstance(raw, Tensor) and not raw.is_inference() else None
        same = [entry for entry in self._recent if entry[0] is raw and entry[1] == version]
        found = same[0] if same else (raw, version, _condition(self.cond_process_fn(raw)))
        # Three are kept: the conditions tuned on and judged on, and that of no condition.
        self._recent = [found, *(entry for entry in self._recent if entry is not found)][:3]
        return found[2]

    def input_time(self, tau: Any, x: Tensor) -> Tensor:
        """What the network is told for tau: (B,), float32, or int64 with labels="round"."""
        n = as_times(tau)
        if getattr(self.schedule, "schedule", "discrete") == "discrete":
            n = n * self.schedule.total_N - 1
        if self.labels == "round":
            return torch.round(n.detach()).long().expand(len(x)).to(x.device)
        return n.to(device=x.device, dtype=torch.float32).expand(len(x))


class BoundModel:
    """`eps(x, t, tau=None)` of a wrapped network under fixed conditions; made by `model_wrapper(...).bind(...)`."""

    def __init__(self, wrapper: model_wrapper, condition: Tensor | None, uncond_condition: Tensor | None) -> None:
        self.wrapper = wrapper
        self.schedule = wrapper.schedule
        self.condition = condition
        self.uncond_condition = uncond_condition

    def __call__(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        w = self.wrapper
        t_input = w.input_time(t if tau is None else tau, x)
        p = for_samples(w.schedule.at(t), x)
        condition = _for_batch("condition", self.condition, x)
        if w.guidance_type == "classifier-free" and w.guidance_scale != 1:
            uncond = _for_batch("uncond_condition", self.uncond_condition, x)
            if p.t.dim():
                p = Point(*(torch.cat([value, value]) for value in (p.t, p.alpha, p.sigma)))
            both = self._noise(torch.cat([x, x]), torch.cat([t_input, t_input]), torch.cat([uncond, condition]), p)
            eps_u, eps_c = both.chunk(2)
            return eps_u + w.guidance_scale * (eps_c - eps_u)
        eps = self._noise(x, t_input, condition, p)
        if w.guidance_type == "classifier":
            eps = eps - w.guidance_scale * p.sigma * self._classifier_gradient(x, t_input, condition)
        return eps

    def take(self, rows: Tensor) -> "BoundModel":
        """The same for some samples of the batch: each with its own condition, where they have one each."""
        parts = [
            c if c is None or len(c) == 1 else c[rows.to(c.device)] for c in (self.condition, self.uncond_condition)
        ]
        return BoundModel(self.wrapper, *parts)

    def _noise(self, x: Tensor, t_input: Tensor, condition: Tensor | None, p: Point) -> Tensor:
        w = self.wrapper
        arguments = (x, t_input) if condition is None else (x, t_input, condition)
        output = w.model(*arguments, **w.model_kwargs)
        if not isinstance(output, Tensor) or output.shape != x.shape:
            got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"model must return a tensor of the shape of x, {tuple(x.shape)}, got {got}")
        return to_noise(w.model_type, output, x, p)

    def _classifier_gradient(self, x: Tensor, t_input: Tensor, condition: Tensor | None) -> Tensor:
        w = self.wrapper
        assert w.classifier_fn is not None
        # Both modes are left: sampling runs without gradients, and this one is part of the prediction.
        keep = torch.is_grad_enabled() and (x.requires_grad or t_input.requires_grad)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x if x.requires_grad else x.detach().clone().requires_grad_()
            log_p = w.classifier_fn(leaf, t_input, condition, **w.classifier_kwargs)
            if log_p.shape != (len(x),):
                raise ValueError(
                    f"classifier_fn must return log p(c | x) of shape ({len(x)},), got {tuple(log_p.shape)}"
                )
            return torch.autograd.grad(log_p.sum(), leaf, create_graph=keep)[0]


def for_samples(p: Point, x: Tensor) -> Point:
    """The point of every sample, where they have times (B,) of their own, as it broadcasts against x (B, ...)."""
    if not p.t.dim():
        return p
    if p.t.shape != (len(x),):
        raise ValueError(f"t must be one time, or one for each sample of x, {len(x)}, got shape {tuple(p.t.shape)}")
    return Point(*(value.to(x).view(-1, *[1] * (x.dim() - 1)) for value in (p.t, p.alpha, p.sigma)))


def _condition(value: Any) -> Tensor | None:
    if value is None:
        return None
    tensor = torch.as_tensor(value)
    return tensor[None] if tensor.dim() == 0 else tensor


def _for_batch(name: str, value: Tensor | None, x: Tensor) -> Any:
    if value is None:
        return None
    if len(value) not in (1, len(x)):
        raise ValueError(f"{name} must have a batch of 1 or of x, {len(x)}, got shape {tuple(value.shape)}")
    return value.to(x.device).expand(len(x), *value.shape[1:])
