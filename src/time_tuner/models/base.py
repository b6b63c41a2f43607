"""The model: a noise prediction eps(x, t, tau) that knows its noise schedule; and models that wrap a model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from inspect import signature
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .._checks import accepts
from .._distributed import num_processes, share
from .._dtypes import like
from ..schedules import NoiseSchedule, Point, as_float64
from ..spacings import Spacing

Hook: TypeAlias = Callable[[str, Tensor, Any, Tensor], None]
"""`hook(quantity, x, t, prediction)`: called after every prediction of a model; quantity is "eps" or "x0"."""


class Model(ABC):
    """A prediction of the noise in a state.

    `model(x, t, tau)` predicts the noise eps in the states x (B, ...) at the solver's time t, which fixes alpha and
    sigma; its network receives tau, t by default, in place of t (Xia et al., 2024). `model.x0(x, t, tau)` predicts the
    data. Times are numbers, or tensors of shape () or (B,). A subclass implements `predict`.

    Attributes:
        schedule: the noise schedule of the network.
        shape: of one sample, without the batch; None where it is not known.
        num_conditions: the number of conditions, n: a batch has n samples, and sample i has condition i. None: all
            samples of a batch of any size share one condition.
        spacing: the spacing of the model; None for the default of its schedule.
        device: the device of its states.
        max_batch: the most states in one network call; None for no limit.
        fixed_start: whether every run begins at the same time, such as in pipelines that draw their first state at a
            fixed noise level.
        has_decoder: whether samples are latents, which `decode` turns into pictures.
        evaluations: of the network for each sample of a prediction, 2 under classifier-free guidance.
        whole_levels: whether its network time means something at whole numbers only, as that of an embedding table.
            Conditioning times are then tuned on whole levels.
    """

    schedule: NoiseSchedule
    shape: tuple[int, ...] | None = None
    num_conditions: int | None = None
    spacing: Spacing | str | None = None
    device: torch.device | str = "cpu"
    max_batch: int | None = None
    fixed_start: bool = False
    has_decoder: bool = False
    whole_levels: bool = False
    evaluations: int = 1

    @abstractmethod
    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        """The noise in x for the quantity "eps", the data for "x0", (B, ...)."""

    def __call__(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        """The noise in x, (B, ...)."""
        return self.predict("eps", x, t, tau)

    def x0(self, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        """The data in x, (B, ...)."""
        return self.predict("x0", x, t, tau)

    def parts(
        self, quantity: str, x: Tensor, t: Any, tau: Any = None, guided: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """The prediction under the condition alone, (B, ...), and what guidance adds to it; None in its place where the
        call is not `guided`, which then costs no evaluation for guidance.

        Raises:
            ValueError: the model has no guidance that can be left out.
        """
        raise ValueError(
            "the plan leaves guidance out of some calls, and the model has none that can be left out: give a model "
            "from model_wrapper with guidance_type='classifier-free' and a guidance_scale other than 1, or a plan with "
            "guidance at every call, plan.with_guidance(len(plan))"
        )

    def both(self, x: Tensor, t: Any, tau: Any = None) -> tuple[Tensor, Tensor]:
        """The noise in x that is predicted under the condition alone, and what guidance adds to it, (B, ...) each, in
        one network call: with the scale w that is (w - 1) (eps_cond - eps_uncond)."""
        conditional, added = self.parts("eps", x, t, tau)
        assert added is not None
        return conditional, added

    def select(self, rows: Tensor) -> "Model":
        """The model for some samples of the batch, with their conditions; `rows` (n,) are their numbers."""
        return self

    def rounded_times(self, tau: Any) -> Tensor:
        """The times, of the shape of tau, that the network really receives: rounded if the network rounds its time."""
        return as_float64(tau).detach()

    def decode(self, x: Tensor) -> Tensor:
        """The pictures (B, C, H, W) in [-1, 1] that samples x (B, ...) stand for; the samples themselves by default."""
        return x

    def facts(self) -> dict[str, Any]:
        """What the provenance of a plan holds of the model, as plain JSON values."""
        return {}

    def fingerprint(self) -> dict[str, Any]:
        """The network and how it is used, as plain JSON values, for `models.fingerprint.differences`: the entries
        "network", "prediction_type", "clip", "thresholding", "guidance_scale", "conditions", as far as known."""
        return {}


class ModelAround(Model):
    """A model that wraps a model. A subclass overrides `predict` to act before or after each prediction."""

    def __init__(self, inner: Model) -> None:
        self.inner = inner
        self.schedule, self.shape, self.num_conditions = inner.schedule, inner.shape, inner.num_conditions
        self.spacing, self.device = inner.spacing, inner.device
        self.max_batch, self.fixed_start, self.has_decoder = inner.max_batch, inner.fixed_start, inner.has_decoder
        self.whole_levels, self.evaluations = inner.whole_levels, inner.evaluations

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        return self.inner.predict(quantity, x, t, tau)

    def parts(
        self, quantity: str, x: Tensor, t: Any, tau: Any = None, guided: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        if type(self).predict is not ModelAround.predict:  # what it does around a prediction would be left out
            raise ValueError(
                f"the plan leaves guidance out of some calls, and {type(self).__name__} acts on whole predictions: "
                "give the model inside of it, or implement parts"
            )
        return self.inner.parts(quantity, x, t, tau, guided)

    def select(self, rows: Tensor) -> "ModelAround":
        other = copy(self)
        other.inner = self.inner.select(rows)
        other.num_conditions = other.inner.num_conditions
        return other

    def rounded_times(self, tau: Any) -> Tensor:
        return self.inner.rounded_times(tau)

    def decode(self, x: Tensor) -> Tensor:
        return self.inner.decode(x)

    def facts(self) -> dict[str, Any]:
        return self.inner.facts()

    def fingerprint(self) -> dict[str, Any]:
        return self.inner.fingerprint()


class HookedModel(ModelAround):
    """A model that calls a hook after each of its predictions."""

    def __init__(self, inner: Model, hook: Hook) -> None:
        super().__init__(inner)
        self.hook = hook

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        prediction = self.inner.predict(quantity, x, t, tau)
        self.hook(quantity, x, t, prediction)
        return prediction

    def parts(
        self, quantity: str, x: Tensor, t: Any, tau: Any = None, guided: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        prediction, added = self.inner.parts(quantity, x, t, tau, guided)
        self.hook(quantity, x, t, prediction if added is None else prediction + added)
        return prediction, added


class FunctionModel(Model):
    """The model of a function `eps(x, t, tau)`, see `as_model`."""

    def __init__(self, eps: Callable[..., Tensor], schedule: NoiseSchedule | None, shape: Sequence[int] | None) -> None:
        own = getattr(eps, "schedule", None) or schedule
        if own is None:
            raise ValueError("eps has no schedule: give schedule=, the noise schedule of its network")
        shape = getattr(eps, "shape", None) or shape
        self.eps, self.schedule = eps, own
        self.shape = None if shape is None else tuple(shape)
        self.num_conditions = getattr(eps, "num_conditions", None)
        self.device = getattr(eps, "device", "cpu")
        self._x0: Callable[..., Tensor] | None = getattr(eps, "x0", None)
        self._parts: Callable[..., Any] | None = getattr(eps, "parts", None)
        self.evaluations = 1 if self._parts is None else getattr(eps, "evaluations", 2)
        self._select: Callable[[Tensor], Any] | None = getattr(eps, "select", None)
        if (self._select is None) != (self.num_conditions is None):
            raise ValueError("eps must have both select(rows) and num_conditions, or none of them")

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        tau = t if tau is None else tau
        if quantity == "eps":
            return self.eps(x, t, tau)
        if self._x0 is not None:
            return self._x0(x, t, tau)
        p = for_samples(self.schedule.at(t), x)
        self._check_alpha(p)
        return (x - p.sigma * check_prediction(self.eps(x, t, tau), x)) / p.alpha

    def parts(
        self, quantity: str, x: Tensor, t: Any, tau: Any = None, guided: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        if self._parts is None:
            return super().parts(quantity, x, t, tau, guided)
        converted = quantity == "x0" and self._x0 is None  # such a function predicts noise alone
        found = self._parts("eps" if converted else quantity, x, t, t if tau is None else tau, guided)
        conditional: Tensor = found[0]
        added: Tensor | None = found[1]
        if not converted:
            return conditional, added
        p = for_samples(self.schedule.at(t), x)
        self._check_alpha(p)
        return (x - p.sigma * conditional) / p.alpha, None if added is None else -p.sigma / p.alpha * added

    def _check_alpha(self, p: Point) -> None:
        if (p.alpha == 0).any():
            raise ValueError(
                f"eps has no .x0, which is needed at t = {float(p.t.max()):.4g}: alpha is 0 there, and the noise does "
                "not determine the data; give a model from model_wrapper, or start the run a little later (times=)"
            )

    def select(self, rows: Tensor) -> Model:
        return self if self._select is None else as_model(self._select(rows), self.schedule, self.shape)


def as_model(eps: Any, schedule: NoiseSchedule | None = None, shape: tuple[int, ...] | None = None) -> Model:
    """The model itself, or the model of a function `eps(x, t, tau)`.

    Args:
        eps: the model or function. A function may have the attributes of a `Model`: `schedule`, `shape`,
            `num_conditions`, `device`, `x0`, `select`, `parts`, and with that `evaluations`, 2 by default.
        schedule: the noise schedule, for a function without this attribute.
        shape: the shape of one sample, for a function without this attribute.

    Returns:
        The model; a `Model` as it is.

    Raises:
        ValueError: eps is neither, such as a network without a wrapper, or there is no schedule.
    """
    if isinstance(eps, Model):
        return eps
    way_out = "wrap a network with model_wrapper(network, schedule)"
    # A network's own third argument is rarely tau: a condition that receives a time would be wrong in silence.
    if isinstance(eps, nn.Module) and "tau" not in signature(eps.forward).parameters:
        raise ValueError(
            f"eps must be a model or a function eps(x, t, tau), got the network {type(eps).__name__}: {way_out}"
        )
    if isinstance(eps, type) or not accepts(eps, 3):
        raise ValueError(f"eps must be a model or a function eps(x, t, tau), got {eps!r}: {way_out}")
    return FunctionModel(eps, schedule, shape)


def check_state(name: str, x: Any, real: bool = False) -> Tensor:
    """The states x (B, ...), checked: a tensor of real or complex numbers, or only of real ones if `real`.

    Raises:
        ValueError: they are something else, such as a dict of tensors or a tensor of integers.
    """
    if not isinstance(x, Tensor):
        way_out = f"torch.tensor({name})"
        if isinstance(x, Mapping | list | tuple):
            way_out = "torch.cat the parts of a state, and split them in the network"
        raise ValueError(f"{name} must be one tensor of states (B, ...), got {type(x).__name__}: {way_out}")
    if not (x.is_floating_point() or (x.is_complex() and not real)):
        way_out = "torch.view_as_real and a network for it" if x.is_complex() else f"{name}.float()"
        raise ValueError(f"{name} must hold real {'' if real else 'or complex '}numbers, got {x.dtype}: give {way_out}")
    if not x.dim():
        raise ValueError(f"{name} must have a batch, (B, ...), got a number")
    return x


def check_prediction(prediction: Any, x: Tensor, where: str = "") -> Tensor:
    """The prediction, checked: a tensor of the shape of x. `where` is added to the message of the ValueError."""
    if isinstance(prediction, Tensor) and prediction.shape == x.shape:
        if prediction.is_complex() and not x.is_complex():
            raise ValueError(f"eps must return real numbers for real states, got {prediction.dtype}{where}")
        return prediction
    got = f"shape {tuple(prediction.shape)}" if isinstance(prediction, Tensor) else type(prediction).__name__
    raise ValueError(
        f"eps must return a tensor of the shape of x, {tuple(x.shape)}, got {got}{where} "
        "(a network with learned variance returns twice the channels: model_wrapper keeps the first half)"
    )


def for_samples(p: Point, x: Tensor) -> Point:
    """The point p, shaped to broadcast against x (B, ...) if each sample has a time of its own, (B,)."""
    if not p.t.dim():
        return p
    if p.t.shape != (len(x),):
        raise ValueError(f"t must be one time, or one for each sample of x, {len(x)}, got shape {tuple(p.t.shape)}")
    return Point(*(like(value, x).view(-1, *[1] * (x.dim() - 1)) for value in (p.t, p.alpha, p.sigma)))


def for_rows(model: Model, rows: Tensor) -> Model:
    """The model for the samples with the numbers `rows` (n,): sample i has condition i modulo `num_conditions`."""
    return model if model.num_conditions is None else model.select(rows % model.num_conditions)


def own_share(model: Model, count: int) -> tuple[Model, Tensor | slice]:
    """The model for the samples of this process among `count`, and their numbers; without other processes for all."""
    if num_processes() == 1:
        return model, slice(None)
    rows = share(count)
    return for_rows(model, rows), rows
