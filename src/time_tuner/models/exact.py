"""Models whose noise prediction is known in closed form, at every time: test benches for samplers and tuners."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._dtypes import like
from ..schedules import NoiseSchedule
from .base import Model, for_samples
from .network import check_labels
from .wrapper import model_wrapper


class ExactModel(Model):
    """The exact prediction of the noise in data from a known distribution, for samples of this shape."""

    shape: tuple[int, ...]

    def __init__(self, distribution: "Gaussian | Mixture", schedule: NoiseSchedule, shape: tuple[int, ...]) -> None:
        self.distribution, self.schedule, self.shape = distribution, schedule, shape

    def predict(self, quantity: str, x: Tensor, t: Any, tau: Any = None) -> Tensor:
        p = for_samples(self.schedule.at(t if tau is None else tau), x)
        expected = self.distribution.data if quantity == "x0" else self.distribution.noise
        return expected(x, p.alpha, p.sigma)


class Gaussian:
    """Data x_0 ~ N(mean, std^2) in every coordinate; `mean` and `std` are numbers or tensors of a sample's shape.

    eps(x, tau) = sigma (x - alpha mean) / (alpha^2 std^2 + sigma^2), with alpha, sigma at tau.

    Args:
        mean: of the data, a number or a tensor of a sample's shape.
        std: of the data, positive; a number or a tensor of a sample's shape.
    """

    def __init__(self, mean: Any = 0.0, std: Any = 1.0) -> None:
        self.mean: Tensor
        self.std: Tensor
        self.mean, self.std = torch.broadcast_tensors(_numbers("mean", mean), _numbers("std", std))
        if (self.std <= 0).any():
            raise ValueError(f"std must be positive, got {float(self.std.min())}")

    def eps(self, schedule: NoiseSchedule) -> ExactModel:
        """The model on this schedule. Samples of scalar data have shape (1,)."""
        return ExactModel(self, schedule, tuple(self.mean.shape) or (1,))

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[eps | x] in a state with this alpha and sigma."""
        mean, variance = _beside(self.mean, x), _beside(self.std**2, x)
        return sigma * (x - alpha * mean) / (alpha**2 * variance + sigma**2)

    def data(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x] in a state with this alpha and sigma."""
        mean, variance = _beside(self.mean, x), _beside(self.std**2, x)
        return (alpha * variance * x + sigma**2 * mean) / (alpha**2 * variance + sigma**2)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n draws of the data, float64 (n, *shape)."""
        draw = torch.Generator().manual_seed(seed)
        shape = tuple(self.mean.shape) or (1,)
        return self.mean + self.std * torch.randn(n, *shape, generator=draw, dtype=torch.float64)


class Mixture:
    r"""Data drawn from M points blurred by `std`: x_0 ~ sum_i weights_i N(means_i, std^2 I); `means` is (M, ...).

    With v = alpha^2 std^2 + sigma^2, eps(x, tau) = sigma (x - alpha m) / v, where m = sum_i w_i means_i and
    w = softmax(log weights_i + (2 alpha x . means_i - alpha^2 |means_i|^2) / (2 v)), alpha and sigma at tau. With a
    data set as `means` this is that data set's own denoiser.

    Args:
        means: the M points, (M, ...).
        std: the deviation around each point, a positive number.
        weights: of the points, (M,); equal by default.
    """

    def __init__(self, means: Any, std: float, weights: Sequence[float] | Tensor | None = None) -> None:
        self.means = _numbers("means", means)
        if self.means.dim() < 1 or not len(self.means):
            raise ValueError(f"means must have shape (M, ...) with M >= 1, got {tuple(self.means.shape)}")
        if self.means.dim() == 1:
            self.means = self.means[:, None]  # scalar data: samples of shape (1,)
        if not std > 0:
            raise ValueError(f"std must be positive, got {std}")
        self.std = float(std)
        self.weights = _numbers("weights", torch.ones(len(self.means)) if weights is None else weights)
        if self.weights.shape != (len(self.means),) or (self.weights < 0).any() or not self.weights.sum() > 0:
            raise ValueError(f"weights must be {len(self.means)} numbers >= 0, not all 0, one for each of the means")
        self.weights = self.weights / self.weights.sum()
        self._cached: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}

    def eps(self, schedule: NoiseSchedule) -> ExactModel:
        """The model on this schedule."""
        return ExactModel(self, schedule, tuple(self.means.shape[1:]))

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[eps | x] in a state with this alpha and sigma."""
        flat, m, v = self._mean(x, alpha, sigma)
        return (sigma * (flat - alpha * m) / v).view_as(x)

    def data(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x] in a state with this alpha and sigma."""
        flat, m, v = self._mean(x, alpha, sigma)
        return ((alpha * self.std**2 * flat + sigma**2 * m) / v).view_as(x)

    def _mean(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, possible: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x, flat; the mean m of the points that it may come from, of all or of those possible (B, M); v."""
        key = (x.dtype, x.device)
        if key not in self._cached:
            with torch.inference_mode(False):  # they are for later calls with a gradient, too
                means = self.means.flatten(1)
                self._cached[key] = [like(one, x) for one in (means, means.square().sum(1), torch.log(self.weights))]
        means, squares, log_weights = self._cached[key]
        v = alpha**2 * self.std**2 + sigma**2
        flat = x.flatten(1)
        alpha, sigma, v = (value.flatten(1) if value.dim() else value for value in (alpha, sigma, v))
        logits = log_weights + (alpha / v) * (flat @ means.T) - (alpha**2 / (2 * v)) * squares
        if possible is not None:
            logits = logits.masked_fill(~possible, -torch.inf)
        return flat, torch.softmax(logits, dim=1) @ means, v

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n draws of the data, float64 (n, ...)."""
        draw = torch.Generator().manual_seed(seed)
        pick = torch.multinomial(self.weights, n, replacement=True, generator=draw)
        shape = (n, *self.means.shape[1:])
        return self.means[pick] + self.std * torch.randn(shape, generator=draw, dtype=torch.float64)


class ConditionalMixture(Mixture):
    """A mixture whose points have classes 0 .. C - 1: the exact predictions with a class and without one, and their
    classifier-free guidance; `labels` are the classes of the points, (M,). Other arguments are those of `Mixture`.

    Args:
        means: the M points, (M, ...).
        labels: the classes of the points, (M,).
        std: the deviation around each point, a positive number.
        weights: of the points, (M,); equal by default.
    """

    def __init__(self, means: Any, labels: Any, std: float, weights: Sequence[float] | Tensor | None = None) -> None:
        super().__init__(means, std, weights)
        self.labels = torch.as_tensor(labels)
        if self.labels.shape != (len(self.means),) or self.labels.is_floating_point() or (self.labels < 0).any():
            raise ValueError(f"labels must be {len(self.means)} classes from 0, one for each of the means")
        self.num_classes = int(self.labels.max()) + 1

    def guided(self, schedule: NoiseSchedule, condition: Any, scale: float) -> Model:
        """The model of samples of these classes (n,) on this schedule, under classifier-free guidance of this scale; of
        the classes alone where the scale is 1.

        Raises:
            ValueError: a condition that is no class.
        """

        # The noise does not determine the data at alpha = 0.
        predicted = "noise" if float(schedule.at(schedule.T).alpha) else "x_start"

        def network(x: Tensor, time: Tensor, classes: Tensor) -> Tensor:
            p = for_samples(schedule.at(schedule.from_network_time(time)), x)
            labels = self.labels.to(x.device)
            possible = (classes[:, None] == labels) | (classes == self.num_classes)[:, None]  # of no class: all
            flat, m, v = self._mean(x, like(p.alpha, x), like(p.sigma, x), possible)
            alpha, sigma = (like(one.flatten(1) if one.dim() else one, x) for one in (p.alpha, p.sigma))
            data = (alpha * self.std**2 * flat + sigma**2 * m) / v
            return (data if predicted == "x_start" else sigma * (flat - alpha * m) / v).view_as(x)

        check_labels("condition", condition, self.num_classes)
        wrapped = model_wrapper(
            network,
            schedule,
            predicted,
            guidance_type="classifier-free",
            guidance_scale=scale,
            shape=tuple(self.means.shape[1:]),
        )
        return wrapped.bind(condition, torch.tensor([self.num_classes]))


def _beside(value: Tensor, x: Tensor) -> Tensor:
    """`value` as x is; a single number as it is, for it computes with every dtype and device."""
    return like(value, x) if value.dim() else value


def _numbers(name: str, values: Any) -> Tensor:
    tensor = torch.as_tensor(values, dtype=torch.float64, device="cpu")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity in it")
    return tensor
