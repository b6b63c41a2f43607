"""Betas: the named lists of diffusers, their rescaling to zero terminal SNR, and the betas of a subset of levels."""

import math
from typing import Any

import torch
from torch import Tensor

from .base import Values, as_float64

MOST_LEVELS = 100_000
"""The most noise levels of a named list, and of a scheduler's configuration."""

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")


def named_betas(name: str = "linear", N: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """The betas that have this name in diffusers, float64 (N,).

    - "linear": even from beta_start to beta_end (Ho et al., 2020).
    - "scaled_linear": even in their square root (Rombach et al., 2022; Stable Diffusion has 0.00085 to 0.012).
    - "squaredcos_cap_v2": of alpha_bar(t) = cos^2(pi/2 (t + 0.008) / 1.008), at most 0.999 (Nichol & Dhariwal, 2021).
    - "sigmoid": beta_start + (beta_end - beta_start) sigmoid(u), u even from -6 to 6 (Xu et al., 2022).

    Args:
        name: of the list above.
        N: the number of levels.
        beta_start: the first beta; of no effect for "squaredcos_cap_v2".
        beta_end: the last beta; of no effect for "squaredcos_cap_v2".

    Returns:
        The betas.

    Raises:
        ValueError: another name, or N < 1.
    """
    if not 1 <= N <= MOST_LEVELS:
        raise ValueError(f"N must be the number of noise levels, 1 to {MOST_LEVELS}, got {N}")
    if name == "linear":
        return torch.linspace(beta_start, beta_end, N, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, N, dtype=torch.float64) ** 2
    if name == "squaredcos_cap_v2":
        t = torch.arange(N + 1, dtype=torch.float64) / N
        alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    if name == "sigmoid":
        return beta_start + (beta_end - beta_start) * torch.linspace(-6, 6, N, dtype=torch.float64).sigmoid()
    raise ValueError(f"beta schedule must be one of {', '.join(BETA_SCHEDULES)}, got {name!r}: give the betas")


def rescale_zero_terminal_snr(betas: Values) -> Tensor:
    """The alphas_cumprod (N,) of these betas after rescaling to zero terminal SNR.

    alpha is shifted and scaled so that its last value is exactly 0 and its first is kept (Lin et al., 2024, alg. 1,
    https://arxiv.org/abs/2305.08891).

    Args:
        betas: of all N levels, (N,).

    Returns:
        The alphas_cumprod, float64 (N,), for `NoiseScheduleVP(alphas_cumprod=...)`.
    """
    levels = checked_levels("betas", betas)
    if len(levels) < 2:
        raise ValueError("betas must be at least 2 to be rescaled, got 1")
    return rescaled_to_zero_snr(torch.exp(torch.log1p(-as_float64(levels)).cumsum(0)))


def rescaled_to_zero_snr(alphas_cumprod: Tensor) -> Tensor:
    """alphas_cumprod (N,) rescaled to zero terminal SNR, see `rescale_zero_terminal_snr`; N is at least 2."""
    alpha = alphas_cumprod.sqrt()
    return ((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))) ** 2


def respaced_betas(betas: Values, indices: Any) -> Tensor:
    r"""The betas of a DDPM on a subset of its noise levels, float64 (K,), as in a run of K steps.

    beta~_i = 1 - alpha_bar_i / alpha_bar_{i-1} over the kept levels, with alpha_bar = prod (1 - beta) and
    alpha_bar_0 = 1: the cumulative product of 1 - beta~ gives the kept alpha_bar back.

    Args:
        betas: of all N levels.
        indices: the K levels to keep, whole numbers in 0 .. N-1, strictly rising.

    Returns:
        The betas of the K levels.

    Raises:
        ValueError: names the argument, what was got and the way out.
    """
    log_alpha_bar = torch.log1p(-as_float64(checked_levels("betas", betas))).cumsum(0)
    try:
        kept = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"indices must be K whole numbers, got {type(indices).__name__}: {error}") from None
    if kept.dim() != 1 or not len(kept) or kept.is_floating_point() or kept.is_complex() or kept.dtype == torch.bool:
        raise ValueError(f"indices must be K whole numbers, K >= 1, got {kept.dtype} of shape {tuple(kept.shape)}")
    kept = kept.long().cpu()
    last = len(log_alpha_bar) - 1
    if (kept.diff() <= 0).any() or kept[0] < 0 or kept[-1] > last:
        raise ValueError(f"indices must rise strictly and lie in 0 .. {last}, the levels of betas, got {kept.tolist()}")
    return -torch.expm1(log_alpha_bar[kept].diff(prepend=torch.zeros(1, dtype=torch.float64)))


def checked_levels(name: str, values: Values) -> tuple[float, ...]:
    """`betas` or `alphas_cumprod` as N floats in (0, 1); the last level may hold no data: a beta of 1, an alpha_bar of
    0."""
    try:
        levels = as_float64(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{name} must be N numbers, got {type(values).__name__}: {error}") from None
    if levels.dim() != 1 or not len(levels):
        raise ValueError(f"{name} must have shape (N,) with N >= 1, got {tuple(levels.shape)}")
    if not torch.isfinite(levels).all():
        raise ValueError(f"{name} must be finite, got {float(levels[~torch.isfinite(levels)][0])} in it")
    bad = (levels <= 0) | (levels >= 1)
    if len(levels) > 1 and levels[-1] == (0 if name == "alphas_cumprod" else 1):
        bad[-1] = False
    if name == "alphas_cumprod":
        bad[1:] |= levels.diff() >= 0
    if bad.any():
        n = int(bad.nonzero()[0])
        falling = " and fall from each level to the next" if name == "alphas_cumprod" else ""
        raise ValueError(f"{name} must lie in (0, 1){falling}, got {float(levels[n])} at level {n}")
    return tuple(levels.tolist())
