"""The loop in which the bundled UNets are trained: learning rate, averaged weights, checkpoints."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import ModelMixin
from tqdm import tqdm


def learning_rate(seen: int, total: int, peak: float) -> float:
    """Linear warm-up over the first 2 %, constant, then down to zero along a cosine over the last 35 %."""
    u = seen / total
    if u < 0.02:
        return peak * u / 0.02
    if u < 0.65:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * min((u - 0.65) / 0.35, 1.0)))


def average(mean: dict[str, torch.Tensor], new: dict[str, torch.Tensor], step: int, gamma: float = 16.97) -> None:
    """Power-function average (Karras et al., 2024, eq. 121): weight of step s is proportional to s^gamma.

    gamma = 16.97 averages over about the last 5 % of the run so far, whatever its length.
    """
    beta = (1 - 1 / step) ** (gamma + 1)
    for name, value in new.items():
        mean[name].lerp_(value, 1 - beta)


def descend(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    mean: dict[str, torch.Tensor],
    loss: torch.Tensor,
    step: int,
    rate: float,
) -> None:
    """A step of the optimizer at this learning rate, with a gradient of norm 1 at most, and one of the mean weights."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    average(mean, model.state_dict(), step)


def save_atomically(state: dict, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def fit(
    model: ModelMixin,
    loss_of: Callable[[torch.Generator], torch.Tensor],
    out: Path,
    total: int,
    peak: float,
    seed: int,
    batch: int,
) -> None:
    """Train a model for so many steps, and write its averaged weights in half precision into the folder.

    It continues from the last checkpoint in the folder. `loss_of` returns the loss of a batch, drawn by the generator.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
    mean = {name: value.clone() for name, value in model.state_dict().items()}
    step, losses = 0, []
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        mean, step, losses = state["mean"], state["step"], state["losses"]

    def save() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        save_atomically(state | {"mean": mean, "step": step, "losses": losses}, checkpoint)

    saved = time.monotonic()
    running = losses[-1] if losses else 1.0
    try:
        for step in (bar := tqdm(range(step + 1, total + 1), initial=step, total=total, unit="step", mininterval=10)):
            # A generator of its own for each step, so that a resumed run sees the same draws.
            loss = loss_of(torch.Generator().manual_seed(seed * 1_000_003 + step))
            descend(model, optimizer, mean, loss, step, learning_rate(step, total, peak))
            running += 0.01 * (loss.item() - running)
            if step % 100 == 0:
                losses.append(running)
                bar.set_postfix(loss=f"{running:.4f}")
            if time.monotonic() - saved > 120:
                save()
                saved = time.monotonic()
    except KeyboardInterrupt:
        print(f"stopped after step {step}; the same command resumes from the last checkpoint in {out}")
        return
    save()
    model.load_state_dict(mean)
    model.half().save_pretrained(out / "model", safe_serialization=True)
    print(f"loss {running:.5f} after {step} steps of {batch}; averaged weights in {out / 'model'}")
