"""Train the bundled classifier of clean MNIST digits, whose features the Frechet distance of digits is taken in.

    python training/classifier.py --data mnist.npz --out runs/classifier

The run can be stopped at any time and goes on from its last checkpoint when started again with the same arguments. It
writes three files into the output folder, which belong in `src/time_tuner/digits/assets`:

    classifier.safetensors           the averaged weights in half precision
    mnist-test-features.safetensors  mean, covariance and count of the features of the MNIST test digits
    classifier.json                  the recipe and the final figures

The npz holds `train_images` and `test_images` (n, 28, 28) uint8, `train_labels` and `test_labels` (n,).
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loop import descend, learning_rate, save_atomically
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from tqdm import tqdm

from time_tuner.digits.classifier import DigitClassifier
from time_tuner.metrics import frechet_distance, moments


@dataclass
class Digits:
    train_images: Tensor  # (n, 1, 28, 28) uint8
    train_labels: Tensor  # (n,) int64
    test_images: Tensor
    test_labels: Tensor


def load_digits(path: Path) -> Digits:
    with np.load(path) as arrays:
        data = {name: torch.from_numpy(arrays[name]) for name in Digits.__annotations__}
    return Digits(**{name: x[:, None] if "images" in name else x.long() for name, x in data.items()})


def scaled(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def augment(x: Tensor, draw: torch.Generator, share: float) -> Tensor:
    """Turn by up to 10 degrees, scale by up to 7 %, shift by up to 2 pixels; `share` of the images, the rest as is."""
    angle, size, *shift = torch.rand(4, len(x), generator=draw) * 2 - 1
    angle, size = math.radians(10) * angle, 1 + 0.07 * size
    rows = [size * angle.cos(), -size * angle.sin(), shift[0] * 4 / 28, size * angle.sin(), size * angle.cos()]
    grid = affine_grid(torch.stack([*rows, shift[1] * 4 / 28], 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    moved = grid_sample(x, grid, padding_mode="border", align_corners=False)
    return torch.where((torch.rand(len(x), generator=draw) < share).view(-1, 1, 1, 1), moved, x)


def fit(
    model: nn.Module,
    logits: Callable[[nn.Module, Tensor, torch.Generator], Tensor],
    digits: Digits,
    out: Path,
    images: int,
    batch: int,
    peak: float,
    share: float,
    seed: int,
) -> None:
    """Train `model` by the cross-entropy of `logits(model, x0, draw)`; it ends with averaged, half-rounded weights."""
    out.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.02)
    mean = {name: value.clone() for name, value in model.state_dict().items()}
    done, running, total = 0, math.log(10), images // batch
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        mean, done, running = state["mean"], state["step"], state["running"]
    saved = time.monotonic()
    for step in (bar := tqdm(range(done + 1, total + 1), initial=done, total=total, unit="step", mininterval=1)):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)  # so that a resumed run sees the same draws
        pick = torch.randint(len(digits.train_images), (batch,), generator=draw)
        x0 = augment(scaled(digits.train_images[pick]), draw, share)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            said = logits(model, x0, draw)
        loss = cross_entropy(said.float(), digits.train_labels[pick])
        descend(model, optimizer, mean, loss, step, learning_rate(step, total, peak))
        running += 0.01 * (loss.item() - running)
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)
        if time.monotonic() - saved > 30 or step == total:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "mean": mean}
            save_atomically(state | {"step": step, "running": running}, checkpoint)
            saved = time.monotonic()
    model.load_state_dict(mean)
    model.half().float().eval().requires_grad_(False)


def batched(network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([network(scaled(part)) for part in images.split(500)])


def save_weights(model: nn.Module, path: Path) -> None:
    save_file({name: value.half() for name, value in model.state_dict().items()}, path)


def parser(description: str | None, images: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the MNIST npz")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the results")
    parser.add_argument("--images", type=int, default=images, help="training images seen in all (default %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images a step (default %(default)s)")
    parser.add_argument("--lr", dest="peak", type=float, default=3e-3, help="peak learning rate (default %(default)s)")
    parser.add_argument("--share", type=float, default=0.8, help="share of images augmented (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and draws (default %(default)s)")
    return parser


def write_record(model: nn.Module, options: dict[str, Any], figures: dict[str, Any], path: Path) -> None:
    recipe = {name: value for name, value in options.items() if name not in ("data", "out")}
    parameters = sum(value.numel() for value in model.parameters())
    text = json.dumps({"parameters": parameters, "recipe": recipe, "figures": figures}, indent=2)
    path.write_text(text + "\n")
    print(text)


def main(options: dict[str, Any]) -> None:
    out, digits = options["out"], load_digits(options["data"])
    torch.manual_seed(options["seed"])
    model = DigitClassifier()
    fit(model, lambda model, x0, draw: model(x0), digits, **{k: v for k, v in options.items() if k != "data"})
    save_weights(model, out / "classifier.safetensors")

    test = batched(model.features, digits.test_images)
    mean, covariance = moments(test)
    reference = {"mean": mean, "covariance": covariance, "count": torch.tensor(len(test))}
    save_file(reference, out / "mnist-test-features.safetensors")

    def frechet(images: Tensor) -> float:
        return round(frechet_distance(*moments(batched(model.features, images)), mean, covariance), 5)

    per_class = [digits.train_images[digits.train_labels == label][:500] for label in range(10)]
    figures = {
        "test accuracy": float((model.head(test).argmax(1) == digits.test_labels).double().mean()),
        "test cross-entropy": round(float(cross_entropy(model.head(test), digits.test_labels)), 5),
        "Frechet distance to the test digits": {
            "first 5000 training digits": frechet(digits.train_images[:5000]),
            "first 500 training digits of each class": frechet(torch.cat(per_class)),
        },
    }
    write_record(model, options, figures, out / "classifier.json")


if __name__ == "__main__":
    main(vars(parser(__doc__, images=1_200_000).parse_args()))
