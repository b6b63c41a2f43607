"""Any network as `eps(x, t, tau)`: prediction type, guidance, conditions and the unit of time are settled here."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..schedules import NoiseSchedule, Point, as_float64

MODEL_TYPES = ("noise", "x_start", "v", "score", "flow", "edm", "edm_v")
GUIDANCE_TYPES = ("uncond", "classifier", "classifier-free")
TIME_DTYPES = ("float32", "int", "bfloat16", "float16")


def to_noise(model_type: str, output: Tensor, x: Tensor, p: Point, sigma_data: float = 0.5) -> Tensor:
    """A network's output as noise. The conversion is at the solver's point p, whatever time the network was told.

    "noise" eps; "x_start" (x - alpha x0) / sigma; "v" (alpha v + sigma x) / (alpha^2 + sigma^2); "score" -sigma s;
    "flow" (x + alpha v) / (alpha + sigma); "edm" sigma x / (sigma_d^2 + sigma^2) - sigma_d F / sqrt(sigma_d^2 +
    sigma^2), and "edm_v" the same of -F.
    """
    if model_type == "noise":
        return output
    if model_type == "x_start":
        return (x - p.alpha * output) / p.sigma
    if model_type == "v":
        return (p.alpha * output + p.sigma * x) / p.scale**2
    if model_type == "score":
        return -p.sigma * output
    if model_type == "flow":
        return (x + p.alpha * output) / (p.alpha + p.sigma)
    deviation = torch.sqrt(sigma_data**2 + p.sigma**2)
    return p.sigma / deviation**2 * x - (_sign(model_type) * sigma_data / deviation) * output


def to_data(model_type: str, output: Tensor, x: Tensor, p: Point, sigma_data: float = 0.5) -> Tensor:
    """A network's output as the data x0, without a detour by the noise; otherwise as `to_noise`.

    "x_start" x0; "v" (alpha x - sigma v) / (alpha^2 + sigma^2); "flow" (x - sigma v) / (alpha + sigma); "edm"
    (sigma_d^2 x + sigma sigma_d sqrt(sigma_d^2 + sigma^2) F) / (sigma_d^2 + sigma^2), and "edm_v" the same of -F; all
    of these at alpha = 0 too. "noise" (x - sigma eps) / alpha and "score" (x + sigma^2 s) / alpha.
    """
    if model_type == "x_start":
        return output
    if model_type == "v":
        return (p.alpha * x - p.sigma * output) / p.scale**2
    if model_type == "flow":
        return (x - p.sigma * output) / (p.alpha + p.sigma)
    if model_type in ("edm", "edm_v"):
        deviation = torch.sqrt(sigma_data**2 + p.sigma**2)
        skip, out = sigma_data**2 / deviation**2, _sign(model_type) * p.sigma * sigma_data / deviation
        return skip * x + out * output
    return (x - p.sigma * to_noise(model_type, output, x, p)) / p.alpha


def _sign(model_type: str) -> int:
    return -1 if model_type == "edm_v" else 1


class model_wrapper:  # noqa: N801 - the published name, called like a function
    """A network, discrete or continuous in time, as a noise prediction in continuous time.

    The result is called `model_fn(x, t, tau=None, condition=None, uncond_condition=None)`: the noise in x (B, ...) at
    the solver's time t, the network being told tau (t when None). `model_fn.bind(condition, uncond_condition)` gives
    the `eps(x, t, tau)` that samplers and tuners take. That also has `.x0(x, t, tau)`, the data: it is what is asked
    for where sigma exceeds 200 alpha, so that a prediction of the data, of v or of a flow loses nothing there, and
    runs may start at alpha = 0. A network that predicts noise or score says nothing of the data there, and is refused.

    Args:
        model: called `model(x, t_input, [cond], **model_kwargs)` with t_input (B,) in float32: `noise_schedule.label`
            of the time, for a discrete schedule the level n = t N - 1, which falls between two levels when t does. Of
            a network with learned variance, which returns (B, 2 C, ...) for x (B, C, ...), the first C channels are
            used, the mean; the variance is the sampler's.
        noise_schedule: the schedule that the network was trained with.
        model_type: what the network predicts: "noise", "x_start" (the data), "v" (alpha eps - sigma x0), "score",
            "flow" (the velocity eps - x0), or, on a `NoiseScheduleVE`, "edm": the network F of D(x) = c_skip x +
            c_out F(c_in x, c_noise) (Karras et al., 2022, table 1); "edm_v" is the same with -c_out, as Stable Video
            Diffusion has it. Of these, c_noise is told of tau; c_in, c_skip and c_out are those of the solver's t.
        guidance_type: "uncond": the network is called without a condition. "classifier": eps - w sigma grad_x
            log p(c | x, tau) (Dhariwal & Nichol, 2021, https://arxiv.org/abs/2105.05233). "classifier-free":
            eps_u + w (eps_c - eps_u), in one call of a doubled batch (Ho & Salimans, 2022,
            https://arxiv.org/abs/2207.12598).
        guidance_scale: w.
        classifier_fn: called `classifier_fn(x, t_input, cond, **classifier_kwargs)`, gives log p(c | x), (B,).
        cond_process_fn: embeds a raw condition, once for each `bind`.
        time_dtype: "float32", or "int" for networks that take only integer levels: tuned times are then rounded to the
            nearest level, and what lies between two levels is lost. "bfloat16" or "float16" where a pipeline casts the
            time to that dtype: then this is what the network hears here, too (bfloat16 knows only every fourth of the
            levels from 512 to 1024), and `plan.with_tau(eps.rounded_times(plan.tau))` is a plan that holds it.

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
        time_dtype: str = "float32",
    ) -> None:
        for name, value, allowed in (
            ("model_type", model_type, MODEL_TYPES),
            ("guidance_type", guidance_type, GUIDANCE_TYPES),
            ("time_dtype", time_dtype, TIME_DTYPES),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        if guidance_type == "classifier" and classifier_fn is None:
            raise ValueError(
                "guidance_type='classifier' needs classifier_fn=, which returns log p(c | x) of shape (B,)"
            )
        if model_type in ("edm", "edm_v") and noise_schedule.sigma_data is None:
            raise ValueError(
                f"model_type={model_type!r} is EDM's preconditioning, on a NoiseScheduleVE, got {noise_schedule!r}"
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
        self.time_dtype = time_dtype
        self._recent: list[tuple[Any, int | None, Tensor | None]] = []

    def __call__(
        self, x: Tensor, t: Any, tau: Any = None, condition: Any = None, uncond_condition: Any = None
    ) -> Tensor:
        return self.bind(condition, uncond_condition)(x, t, tau)

    def x0(self, x: Tensor, t: Any, tau: Any = None, condition: Any = None, uncond_condition: Any = None) -> Tensor:
        """The data in x; arguments as for a call."""
        return self.bind(condition, uncond_condition).x0(x, t, tau)

    def bind(self, condition: Any = None, uncond_condition: Any = None) -> "BoundModel":
        """`eps(x, t, tau=None)` under these conditions, each (B, ...) or (1, ...) for one that all samples share; or a
        `DataLoader` of them, or of dicts that hold them as `label`, which is read to its end, in its order."""
        if self.guidance_type == "uncond":
            return BoundModel(self, None, None)
        if condition is None:
            raise ValueError(f"guidance_type={self.guidance_type!r} needs condition=, of shape (B, ...) or (1, ...)")
        if self.guidance_type == "classifier-free" and self.guidance_scale != 1 and uncond_condition is None:
            raise ValueError("guidance_type='classifier-free' needs uncond_condition= unless guidance_scale is 1")
        return BoundModel(
            self, self._embedded("condition", condition), self._embedded("uncond_condition", uncond_condition)
        )

    def _embedded(self, name: str, raw: Any) -> Tensor | None:
        """A raw condition after `cond_process_fn`, which is not repeated for an object that was just given."""
        if isinstance(raw, DataLoader):
            parts = [self._embedded(name, _of_batch(name, batch)) for batch in raw]
            held = [part for part in parts if part is not None]
            if not held or len(held) < len(parts):
                raise ValueError(f"{name}= must be a data loader of conditions, got one with nothing in it")
            return torch.cat(held)
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
        """What the network is told for tau: (B,), float32, or int64 with time_dtype="int"."""
        n = self._rounded(self.schedule.network_time(tau))
        if self.time_dtype == "int":
            return n.long().expand(len(x)).to(x.device)
        return n.to(device=x.device, dtype=torch.float32).expand(len(x))

    def _rounded(self, n: Tensor) -> Tensor:
        if self.time_dtype == "int":
            return torch.round(n.detach())
        return n if self.time_dtype == "float32" else n.to(getattr(torch, self.time_dtype)).to(n.dtype)

    def rounded_times(self, tau: Any) -> Tensor:
        """The times that the network really hears when it is told `tau`, of the same shape: its labels, rounded."""
        tau = as_float64(tau).detach()
        return (
            tau
            if self.time_dtype == "float32"
            else as_float64(self.schedule.from_network_time(self._rounded(self.schedule.network_time(tau))))
        )


class BoundModel:
    """`eps(x, t, tau=None)` of a wrapped network under fixed conditions; made by `model_wrapper(...).bind(...)`."""

    def __init__(self, wrapper: model_wrapper, condition: Tensor | None, uncond_condition: Tensor | None) -> None:
        self.wrapper = wrapper
        self.schedule = wrapper.schedule
        self.condition = condition
        self.uncond_condition = uncond_condition

    @property
    def samples(self) -> int | None:
        """How many samples the conditions are for; None where any number shares them."""
        counts = [len(c) for c in (self.condition, self.uncond_condition) if c is not None]
        return max((count for count in counts if count > 1), default=None)

    def __call__(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        """The noise in x (B, ...)."""
        return self._predict(x, t, tau, to_noise)

    def x0(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        """The data in x (B, ...).

        Raises:
            ValueError: alpha = 0 at t, where the network, or a classifier that guides it, tells nothing of the data.
        """
        w = self.wrapper
        if (w.model_type in ("noise", "score") or w.guidance_type == "classifier") and (
            w.schedule.at(t).alpha == 0
        ).any():
            what = f"model_type={w.model_type!r}" if w.model_type in ("noise", "score") else "guidance by a classifier"
            raise ValueError(
                f"{what} says nothing of the data at alpha = 0 (t = {float(as_float64(t).max()):.4g}): start the run a "
                "little later (times=)"
            )
        return self._predict(x, t, tau, to_data)

    def rounded_times(self, tau: Any) -> Tensor:
        """The times that the network really hears when it is told `tau`; see `time_dtype` of `model_wrapper`."""
        return self.wrapper.rounded_times(tau)

    def _predict(self, x: Tensor, t: Any, tau: Any, convert: Callable[..., Tensor]) -> Tensor:
        w = self.wrapper
        t_input = w.input_time(t if tau is None else tau, x)
        p = for_samples(w.schedule.at(t), x)
        condition = _for_batch("condition", self.condition, x)
        if w.guidance_type == "classifier-free" and w.guidance_scale != 1:
            uncond = _for_batch("uncond_condition", self.uncond_condition, x)
            if p.t.dim():
                p = Point(*(torch.cat([value, value]) for value in (p.t, p.alpha, p.sigma)))
            told = (torch.cat([t_input, t_input]), torch.cat([uncond, condition]))
            uncond_said, said = self._said(torch.cat([x, x]), *told, p, convert).chunk(2)
            return uncond_said + w.guidance_scale * (said - uncond_said)
        said = self._said(x, t_input, condition, p, convert)
        if w.guidance_type == "classifier":
            factor = -p.sigma if convert is to_noise else p.sigma**2 / p.alpha
            said = said + w.guidance_scale * factor * self._classifier_gradient(x, t_input, condition)
        return said

    def select(self, rows: Tensor) -> "BoundModel":
        """The same for some samples of the batch: each with its own condition, where they have one each."""
        parts = [
            c if c is None or len(c) == 1 else c[rows.to(c.device)] for c in (self.condition, self.uncond_condition)
        ]
        return BoundModel(self.wrapper, *parts)

    def _said(
        self, x: Tensor, t_input: Tensor, condition: Tensor | None, p: Point, convert: Callable[..., Tensor]
    ) -> Tensor:
        w = self.wrapper
        sigma_data = w.schedule.sigma_data or 0.5
        edm = w.model_type in ("edm", "edm_v")
        shown = x / torch.sqrt(sigma_data**2 + p.sigma**2) if edm else x  # c_in
        arguments = (shown, t_input) if condition is None else (shown, t_input, condition)
        output = w.model(*arguments, **w.model_kwargs)
        if isinstance(output, Tensor) and x.dim() > 1 and output.shape == (len(x), 2 * x.shape[1], *x.shape[2:]):
            output = output[:, : x.shape[1]]  # the other half tells the variance
        if not isinstance(output, Tensor) or output.shape != x.shape:
            got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"model must return a tensor of the shape of x, {tuple(x.shape)}, got {got}")
        return convert(w.model_type, output, x, p, sigma_data)

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


def _of_batch(name: str, batch: Any) -> Any:
    """The conditions in what a data loader yields."""
    several = isinstance(batch, list | tuple) and any(isinstance(part, Tensor) for part in batch)
    if several and len(batch) == 1:  # of a data set of tensors
        return batch[0]
    if several or (isinstance(batch, Mapping) and "label" not in batch):
        got = f"dicts with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else f"{len(batch)} tensors each"
        raise ValueError(
            f"{name}= must be a data loader of conditions, or of dicts with 'label', got one of {got}: a "
            "collate_fn of the loader can choose"
        )
    return batch["label"] if isinstance(batch, Mapping) else batch


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
