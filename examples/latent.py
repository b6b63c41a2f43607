"""Latent diffusion: TimeTuner tunes 4 calls on images; untuned, tuned and 100-call samples from the same noise.

    python examples/latent.py latent.png

The calibration data are scikit-learn's handwritten digits, on which the model was not trained.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader

from time_tuner import SeededNoise, TimeTuner, make_plan, model_wrapper
from time_tuner.digits.latent import load_latent_digits
from time_tuner.digits.networks import NULL_LABEL
from time_tuner.metrics import distance


def scans(count: int) -> list[dict[str, Any]]:
    """Scans of 8 x 8 pixels with values 0 to 16, as the model's digits: 20 x 20, padded to 28 x 28, in [-1, 1]."""
    data = load_digits()
    images = torch.from_numpy(data.images[:count]).float()[:, None] / 8 - 1
    images = (2 * torch.nn.functional.interpolate(images, size=20, mode="bicubic", antialias=True)).clamp(-1, 1)
    images = torch.nn.functional.pad(images, [4] * 4, value=-1)
    return [{"image": image, "label": label} for image, label in zip(images, data.target.tolist(), strict=False)]


def main(path: Path, calls: int, samples: int, shown: int) -> None:
    model = load_latent_digits()
    wrapped = model_wrapper(
        model.network, model.schedule, guidance_type="classifier-free", guidance_scale=1.5, cond_process_fn=model.embed
    )
    tuner = TimeTuner(wrapped, model.schedule)
    levels = model.schedule.network_time(make_plan("ddim", model.schedule, calls, "quadratic").t[:-1])
    ratios = tuner.optimize_timesteps(
        DataLoader(scans(samples), batch_size=64), encode_fn=model.encode, timesteps=levels, samples=samples,
        uncond_condition=NULL_LABEL, verbose=True,
    )  # fmt: skip
    print("ratios tau / t:", " ".join(f"{ratio:.3f}" for ratio in ratios.tolist()))

    noise = SeededNoise(1000)(torch.empty(samples, *model.shape))  # nothing was tuned on this noise
    conditions = {"condition": torch.arange(samples) % 10, "uncond_condition": NULL_LABEL}
    latents = {
        f"{calls} calls": tuner.ddim_sample(noise, timesteps=levels, **conditions),
        f"{calls} calls, tuned": tuner.ddim_sample(noise, timesteps=levels, t_ratios=ratios, **conditions),
        "100 calls": tuner.ddim_sample(noise, num_steps=100, **conditions),
    }
    images = {name: model.decode(x) for name, x in latents.items()}
    for name in list(latents)[:2]:
        apart = [distance(x[name], x["100 calls"]).mean() for x in (latents, images)]
        print(f"{name}: distance to the end of 100 calls {apart[0]:.3f} in latents, {apart[1]:.3f} in pixels")
    draw({name: x[:shown] for name, x in images.items()}, path)


def draw(rows: dict[str, Tensor], path: Path) -> None:
    """Draws a picture: one row of images (n, 1, 28, 28) for each name."""
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(0.5 * columns, 0.75 * len(rows)), layout="compressed")
    for axes, (name, images) in zip(figure.subplots(len(rows), 1), rows.items(), strict=True):
        axes.imshow(torch.cat(list(images[:, 0]), dim=1).numpy(), cmap="gray_r", vmin=-1, vmax=1)
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_axis_off()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="the picture to write")
    parser.add_argument("--calls", type=int, default=4, help="network calls of the tuned run (default %(default)s)")
    parser.add_argument("--samples", type=int, default=256, help="to tune on, and to draw (default %(default)s)")
    parser.add_argument("--shown", type=int, default=20, help="samples in the picture (default %(default)s)")
    main(**vars(parser.parse_args()))
