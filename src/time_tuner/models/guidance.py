"""Guidance: a model around a model, which draws its samples towards a condition."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..schedules import as_float64
from .base import ModelAround, for_samples
from .network import NetworkModel, rows_of


class ClassifierFreeGuidance(ModelAround):
    """eps_u + w (eps_c - eps_u), both predictions in one network call of a doubled batch, the unconditional half first
    (Ho & Salimans, 2022, https://arxiv.org/abs/2207.12598); w is the scale, and the unconditional condition is (1, ...)
    or (B, ...)."""

    inner: NetworkModel

    def __init__(self, conditional: NetworkModel, unconditional: Tensor, scale: float) -> None:
        super().__init__(conditional)
        self.unconditional, self.scale, self.evaluations = unconditional, scale, 2
        if len(unconditional) > 1:
            if self.num_conditions not in (None, len(unconditional)):
                raise ValueError(
                    f"uncond_condition must have a batch of 1 or of condition, {self.num_conditions}, got shape "
                    f"{tuple(unconditional.shape)}"
                )
            self.num_conditions = len(unconditional)

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        unconditional, conditional = self._branches(quantity, x, t, tau)
        return unconditional + self.scale * (conditional - unconditional)

    def parts(
        self, quantity: str, x: Tensor, t: Any, tau: Any = None, guided: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        if not guided:
            return self.inner.predict(quantity, x, t, tau), None
        unconditional, conditional = self._branches(quantity, x, t, tau)
        return conditional, (self.scale - 1) * (conditional - unconditional)

    def _branches(self, quantity: str, x: Tensor, t: Any, tau: Any) -> tuple[Tensor, Tensor]:
        uncond = rows_of("uncond_condition", self.unconditional, x)
        both = self.inner.with_condition(torch.cat([uncond, rows_of("condition", self.inner.condition, x)]))
        predictions = both.predict(quantity, torch.cat([x, x]), self._twice(t, x), self._twice(tau, x))
        unconditional, conditional = predictions.chunk(2)
        return unconditional, conditional

    def _twice(self, time: Any, x: Tensor) -> Any:
        """The times of a doubled batch: those for each sample (B,) are repeated."""
        if time is None or not as_float64(time).dim():
            return time
        for_samples(self.schedule.at(time), x)  # they must be as many as there are samples
        return torch.cat([time, time])

    def fingerprint(self) -> dict[str, Any]:
        return self.inner.fingerprint() | {"guidance_scale": self.scale}

    def select(self, rows: Tensor) -> "ClassifierFreeGuidance":
        uncond = self.unconditional
        if len(uncond) > 1:
            uncond = uncond[rows.to(uncond.device)]
        return ClassifierFreeGuidance(self.inner.select(rows), uncond, self.scale)


class ClassifierGuidance(ModelAround):
    """eps - w sigma grad_x log p(c | x, tau) (Dhariwal & Nichol, 2021, https://arxiv.org/abs/2105.05233).

    sigma is that of the solver's t; the classifier receives tau, as the network does: `log_probability(x, network_time,
    c)` gives log p(c | x), (B,). w is the scale.
    """

    inner: NetworkModel

    def __init__(self, network: NetworkModel, log_probability: Callable[..., Tensor], scale: float) -> None:
        super().__init__(network)
        self.log_probability, self.scale = log_probability, scale

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        prediction, added = self.parts(quantity, x, t, tau)
        return prediction if added is None else prediction + added

    def parts(
        self, quantity: str, x: Tensor, t: Any, tau: Any = None, guided: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        p = for_samples(self.schedule.at(t), x)
        if quantity == "x0" and (p.alpha == 0).any():
            raise ValueError(
                f"guidance by a classifier does not determine the data at alpha = 0 (t = {float(p.t.max()):.4g}): "
                "start the run a little later (times=)"
            )
        factor = -p.sigma if quantity == "eps" else p.sigma**2 / p.alpha
        prediction = self.inner.predict(quantity, x, t, tau)
        if not guided:
            return prediction, None
        return prediction, self.scale * factor * self._gradient(x, t if tau is None else tau)

    def fingerprint(self) -> dict[str, Any]:
        return self.inner.fingerprint() | {"guidance_scale": self.scale}

    def _gradient(self, x: Tensor, tau: Any) -> Tensor:
        time = self.inner.input_time(tau, x)
        condition = rows_of("condition", self.inner.condition, x)
        # Both modes are left: sampling runs without gradients, and this one is part of the prediction.
        keep = torch.is_grad_enabled() and (x.requires_grad or time.requires_grad)
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x if x.requires_grad else x.detach().clone().requires_grad_()
            log_p = self.log_probability(leaf, time, condition)
            if not isinstance(log_p, Tensor) or log_p.shape != (len(x),):
                got = f"shape {tuple(log_p.shape)}" if isinstance(log_p, Tensor) else type(log_p).__name__
                raise ValueError(f"classifier_fn must return log p(c | x) of shape ({len(x)},), got {got}")
            if not log_p.requires_grad:
                raise ValueError(
                    "classifier_fn must return log p(c | x) with a gradient in x, got a tensor without one: remove "
                    "detach() or no_grad() from it"
                )
            return torch.autograd.grad(log_p.sum(), leaf, create_graph=keep)[0]
