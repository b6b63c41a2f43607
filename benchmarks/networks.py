"""The trained networks that spacings are compared on, and the training of the tiny ones among them.

    python benchmarks/networks.py FOLDER [--networks plane linear cosine flow ve] [--steps 1500]

Trains the tiny networks from fixed seeds, about a minute of a core each, and writes their weights into the folder. All
but "plane" are trained on MNIST (`--data`, an npz with `train_images` and `train_labels`), 14 x 14 pixels as four
channels of 7 x 7, under labels of which a tenth are left out.
"""

import argparse
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from problems import labelled, linear_schedule, two_spirals
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pixel_unshuffle

from time_tuner import Model, NoiseScheduleFlow, NoiseScheduleVE, NoiseScheduleVP, load_model, model_wrapper
from time_tuner.digits.networks import NULL_LABEL
from time_tuner.models.base import for_samples
from time_tuner.models.predictions import PREDICTIONS
from time_tuner.schedules import NoiseSchedule

TRAINED = ["plane", "linear", "cosine", "flow", "ve"]
WIDTH, BLOCKS, FREQUENCIES = 32, 3, 16
AVERAGED = 0.995  # of the running mean of the weights


def cosine_schedule() -> NoiseScheduleVP:
    """1000 levels, beta at most 0.999 (Nichol & Dhariwal, 2021, https://arxiv.org/abs/2102.09672)."""
    t = torch.arange(1001, dtype=torch.float64) / 1000
    alphas_cumprod = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    return NoiseScheduleVP("discrete", betas=(1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999))


SCHEDULES: dict[str, tuple[NoiseSchedule, str]] = {
    "linear": (linear_schedule(), "noise"),
    "cosine": (cosine_schedule(), "v"),
    "flow": (NoiseScheduleFlow(), "flow"),
    "flow shifted": (NoiseScheduleFlow(shift=3.0), "flow"),  # the same network as "flow", for other times of its runs
    "ve": (NoiseScheduleVE(), "edm"),
    "plane": (linear_schedule(), "noise"),
}
"""The tiny networks: schedule and prediction type."""


class Waves(nn.Module):
    """Sines and cosines of arctan(sigma / alpha) at the network times (B,), (B, 2 * FREQUENCIES)."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, time: Tensor) -> Tensor:
        angle = self.schedule.at(self.schedule.from_network_time(time)).angle
        waves = angle.float()[:, None] * torch.arange(1, FREQUENCIES + 1)
        return torch.cat([waves.sin(), waves.cos()], 1)


class Convolutions(nn.Module):
    """Images (B, 4, 7, 7), times (B,) and labels (B,); residual blocks, each moved by time and label."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.waves = Waves(schedule)
        self.time, self.label = nn.Linear(2 * FREQUENCIES, 64), nn.Embedding(NULL_LABEL + 1, 64)
        self.inlet = nn.Conv2d(4, WIDTH, 3, padding=1)
        self.places = nn.ModuleList(nn.Linear(49, 49) for _ in range(BLOCKS))
        self.moves = nn.ModuleList(nn.Linear(64, WIDTH) for _ in range(BLOCKS))
        self.first, self.second = (
            nn.ModuleList(
                nn.Sequential(nn.GroupNorm(4, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))
                for _ in range(BLOCKS)
            )
            for _ in range(2)
        )
        self.outlet = nn.Sequential(nn.GroupNorm(4, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, 4, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        embedded = nn.functional.silu(self.time(self.waves(time)) + self.label(labels))
        h = self.inlet(x)
        for places, move, first, second in zip(self.places, self.moves, self.first, self.second, strict=True):
            h = h + places(h.flatten(2)).view_as(h)
            h = h + second(first(h) + move(embedded)[..., None, None])
        prediction: Tensor = self.outlet(h)
        return prediction


class Perceptron(nn.Module):
    """Points (B, 2) and times (B,)."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.waves = Waves(schedule)
        sizes = (2 + 2 * FREQUENCIES, 128, 128, 128, 2)
        layers = [[nn.Linear(a, b), nn.SiLU()] for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(*[layer for pair in layers for layer in pair][:-1])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        prediction: Tensor = self.layers(torch.cat([x, self.waves(time)], 1))
        return prediction


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return (Perceptron if name == "plane" else Convolutions)(SCHEDULES[name][0])


def trained_as(name: str) -> str:
    """The name of the network that was trained."""
    return name.partition(" ")[0]


def wrapped(name: str, network: nn.Module, guidance_scale: float = 1.0) -> Model:
    """The tiny network as a model, under the labels 0 to 9 in a cycle."""
    schedule, kind = SCHEDULES[name]
    if name == "plane":
        return model_wrapper(network, schedule, model_type=kind, shape=(2,)).bind()
    return model_wrapper(
        network, schedule, model_type=kind, guidance_type="classifier-free", guidance_scale=guidance_scale,
        shape=(4, 7, 7),
    ).bind(torch.arange(10), torch.tensor([NULL_LABEL]))  # fmt: skip


def mnist(path: Path) -> tuple[Tensor, Tensor]:
    """14 x 14 pixels in [-1, 1] as (60000, 4, 7, 7), and labels."""
    with np.load(path) as arrays:
        images, labels = (torch.from_numpy(arrays[f"train_{name}"]) for name in ("images", "labels"))
    return pixel_unshuffle(avg_pool2d(images[:, None] / 127.5 - 1, 2), 2), labels.long()


def train(name: str, data: Path, steps: int, batch: int = 64) -> nn.Module:
    """The tiny network with the running mean of its weights, trained by the mean square error of its own output."""
    network, draw = build(name), torch.Generator().manual_seed(1)
    schedule, kind = SCHEDULES[name]
    prediction = PREDICTIONS[kind].on(schedule)
    images, labels = (two_spirals().sample(20000).float(), None) if name == "plane" else mnist(data)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    mean = {key: value.clone() for key, value in network.state_dict().items()}
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (steps - step) / (steps / 2))
        rows = torch.randint(len(images), (batch,), generator=draw)
        x0, eps = images[rows], torch.randn(batch, *images.shape[1:], generator=draw)
        t = times(schedule, batch, draw)
        p = for_samples(schedule.at(t), x0)
        state, time = p.alpha * x0 + p.sigma * eps, schedule.network_time(t).float()
        condition: tuple[Tensor, ...] = ()
        if labels is not None:
            dropped = torch.rand(batch, generator=draw) < 0.1
            condition = (torch.where(dropped, NULL_LABEL, labels[rows]),)
        target = prediction.output(x0, eps, p)
        output = network(prediction.network_input(state, p), time, *condition)
        loss = (output - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for key, value in network.state_dict().items():
            mean[key].lerp_(value, max(1 - AVERAGED, 1 / (step + 1)))
        if step % 250 == 0:
            print(f"{name} {step} {loss.item():.4f}", flush=True)
    network.load_state_dict(mean)
    return network


def times(schedule: NoiseSchedule, count: int, draw: torch.Generator) -> Tensor:
    """Times that are even over the levels, or log-normal in sigma with EDM's -1.2 and 1.2, float64 (count,)."""
    if schedule.levels is None:
        noise = torch.randn(count, generator=draw, dtype=torch.float64)
        return torch.exp(1.2 * noise - 1.2).clamp(schedule.t_min, schedule.T)
    even = torch.rand(count, generator=draw, dtype=torch.float64)
    return schedule.t_min + (schedule.T - schedule.t_min) * even


def tiny(folder: Path, name: str, guidance_scale: float = 1.0) -> Model:
    """A tiny network from its weights in the folder."""
    network = build(name)
    network.load_state_dict(load_file(folder / f"{trained_as(name)}.safetensors"))
    return wrapped(name, network.eval().requires_grad_(False), guidance_scale)


def networks(folder: Path) -> dict[str, Callable[[], Model]]:
    """Every network and guidance scale, by a name such as "pixels, guidance 2"."""
    found: dict[str, Callable[[], Model]] = {"plane": lambda: tiny(folder, "plane")}
    found["pictograms"] = lambda: load_model("pictograms")
    for scale in (1.0, 2.0, 4.0):
        for name in ("linear", "cosine", "flow", "flow shifted", "ve"):
            found[f"{name}, guidance {scale:g}"] = lambda name=name, scale=scale: tiny(folder, name, scale)
        for name, bundled in (("latents", "latent-digits"), ("pixels", "digits")):
            found[f"{name}, guidance {scale:g}"] = lambda name=bundled, scale=scale: labelled(name, scale)
    return found


def main(folder: Path, names: list[str], data: Path, steps: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        save_file(train(name, data, steps).state_dict(), folder / f"{name}.safetensors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", dest="names", nargs="+", choices=TRAINED, default=TRAINED)
    parser.add_argument("--data", type=Path, default=Path("mnist.npz"))
    parser.add_argument("--steps", type=int, default=1500)
    main(**vars(parser.parse_args()))
