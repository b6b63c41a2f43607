"""Measure the bundled digit model and write its figures beside the weights.

    python training/evaluate_digits.py --data mnist.npz [--bfloat16]

Recognised share: of 2000 samples (balanced labels, DDIM, 50 calls, no guidance), those that the bundled classifier,
which was trained on MNIST apart, gives the label they were asked for. Frechet distance: of 5000 samples (balanced
labels, DDIM, 250 calls) to the MNIST test set in that classifier's features; beside it, that of 5000 training images
drawn the same way (500 of each label), and of the first 5000.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from time_tuner import SeededNoise, load_model, make_plan, sample
from time_tuner.digits.metrics import digit_accuracy, digit_frechet

BATCH = 250


def draw(n: int, calls: int, first_seed: int, bfloat16: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """n samples with labels 0, 1, .. 9, 0, 1, ...; seeds from `first_seed` on."""
    labels = torch.arange(n) % 10
    images = []
    for i in tqdm(range(0, n, BATCH), desc=f"{n} samples, {calls} calls", unit="batch"):
        part = labels[i : i + BATCH]
        model = load_model("digits", label=part)
        plan = make_plan("ddim", model.schedule, calls=calls, spacing="trailing")
        x = SeededNoise(first_seed + i)(torch.empty(len(part), *model.shape))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            images.append(sample(model, plan, x))
    return torch.cat(images), labels


def main(data: Path, out: Path, bfloat16: bool, quick: int) -> None:
    with np.load(data) as arrays:
        balanced = np.concatenate([np.flatnonzero(arrays["train_labels"] == digit)[:500] for digit in range(10)])
        real = torch.from_numpy(arrays["train_images"])[:, None]
    recognised = digit_accuracy(*draw(2000 // quick, 50, 0, bfloat16))
    images, _ = draw(5000 // quick, 250, 100_000, bfloat16)
    figures = {
        "recognised, DDIM 50 calls, 2000 samples": recognised,
        "Frechet distance, DDIM 250 calls, 5000 samples": digit_frechet(images),
        "Frechet distance, 5000 training images, balanced labels": digit_frechet(real[balanced].float() / 127.5 - 1),
        "Frechet distance, the first 5000 training images": digit_frechet(real[:5000].float() / 127.5 - 1),
        "network in bfloat16 autocast": bfloat16,
    }
    print(json.dumps(figures, indent=2))
    if quick == 1:
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the MNIST npz")
    parser.add_argument("--out", type=Path, default=Path("src/time_tuner/digits/assets/digits/figures.json"))
    parser.add_argument("--bfloat16", action="store_true", help="run the network in bfloat16 autocast")
    parser.add_argument("--quick", type=int, default=1, help="a divisor of the sample counts, for a first look")
    main(**vars(parser.parse_args()))
