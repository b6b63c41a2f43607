"""Measure the bundled colour model and write its figures beside the weights.

    python training/evaluate_pictograms.py [--samples 400]

Frechet distance: of samples (DDIM, 50 calls) to the pictures that the model was trained on, in pictures averaged to 8 x
8 pixels; beside it that of as many of these pictures, and of as many pictures of noise. Nearest: the root mean squared
difference of a sample from the nearest of the pictures, mean; beside it that of a picture from the nearest other one,
mirror images left out, and that of the noise.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from time_tuner import SeededNoise, load_model, make_plan, sample
from time_tuner.pictograms import load_pictograms, pictogram_frechet

BATCH = 50


def draw(samples: int) -> Tensor:
    model = load_model("pictograms")
    plan = make_plan("ddim", model.schedule, calls=50, spacing="trailing")
    starts = SeededNoise(0)(torch.empty(samples, *model.shape)).split(BATCH)
    return torch.cat([sample(model, plan, plan.initial_state(x)) for x in tqdm(starts)])


def nearest(x: Tensor, pictures: Tensor, skipped: int = 0) -> float:
    """The mean of the root mean squared difference from the nearest picture, after so many nearer ones."""
    distances = torch.cdist(x.flatten(1), pictures.flatten(1)) / x[0].numel() ** 0.5
    return float(distances.kthvalue(skipped + 1, dim=1).values.mean())


def main(samples: int, out: Path) -> None:
    pictures, drawn = load_pictograms(), draw(samples).clamp(-1, 1)
    noise = SeededNoise(10**6)(torch.empty_like(drawn)).clamp(-1, 1)
    some = pictures[torch.randint(len(pictures), (samples,), generator=torch.Generator().manual_seed(0))]
    ones = pictures[: len(pictures) // 2]
    figures = {
        f"Frechet distance, DDIM 50 calls, {samples} samples": pictogram_frechet(drawn),
        f"Frechet distance, {samples} of the pictures": pictogram_frechet(some),
        f"Frechet distance, {samples} of noise": pictogram_frechet(noise),
        "nearest, samples": nearest(drawn, pictures),
        "nearest, pictures": nearest(ones, ones, skipped=1),
        "nearest, noise": nearest(noise, pictures),
    }
    print(json.dumps(figures, indent=2))
    out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path("src/time_tuner/pictograms/assets/figures.json"))
    main(**vars(parser.parse_args()))
