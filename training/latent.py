"""Train the bundled latent model: an autoencoder of MNIST digits, then a noise prediction network on its latents.

    python training/latent.py --data mnist.npz --out runs/latent

It takes about eight minutes on one core. The run can be stopped at any time and goes on from its last checkpoint when
started again with the same arguments. It writes two files into the output folder, which belong in
`src/time_tuner/digits/assets/latent`:

    model.safetensors  the averaged weights in half precision
    model.json         the recipe and the final figures

The npz holds `train_images` and `test_images` (n, 28, 28) uint8, `train_labels` and `test_labels` (n,).
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from classifier import Digits, batched, load_digits, save_weights, scaled, write_record
from loop import descend, learning_rate, save_atomically
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from time_tuner import SeededNoise, TimeTuner, model_wrapper
from time_tuner.digits.latent import AutoEncoder, LatentDigits
from time_tuner.digits.metrics import digit_accuracy, digit_frechet
from time_tuner.digits.networks import NULL_LABEL
from time_tuner.metrics import distance

PENALTY = 1e-3  # on the mean square of the latents: it keeps them small beside the noise below
BLUR = 0.4  # standard deviation of the noise that latents get before they are decoded in training


def fit(
    name: str, model: nn.Module, loss: Callable[[torch.Generator], Tensor], steps: int, options: dict[str, Any]
) -> None:
    """Train `model` by `loss(draw)`; it ends with averaged, half-rounded weights."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options["peak"], betas=(0.9, 0.99), weight_decay=0.01)
    mean = {key: value.clone() for key, value in model.state_dict().items()}
    done, running = 0, 0.0
    checkpoint = options["out"] / f"checkpoint-{name}.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        mean, done, running = state["mean"], state["step"], state["running"]
    saved = time.monotonic()
    for step in (bar := tqdm(range(done + 1, steps + 1), name, initial=done, total=steps, unit="step", mininterval=1)):
        draw = torch.Generator().manual_seed(options["seed"] * 1_000_003 + step)  # the same draws in a resumed run
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(draw)
        descend(model, optimizer, mean, value, step, learning_rate(step, steps, options["peak"]))
        running += max(0.01, 1 / step) * (value.item() - running)
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)
        if time.monotonic() - saved > 30 or step == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "mean": mean}
            save_atomically(state | {"step": step, "running": running}, checkpoint)
            saved = time.monotonic()
    model.load_state_dict(mean)
    model.half().float().eval()


def train_autoencoder(model: AutoEncoder, digits: Digits, options: dict[str, Any]) -> Tensor:
    """Returns the latents of the training images, (n, 4, 7, 7), each channel of mean 0 and variance 1."""

    def loss(draw: torch.Generator) -> Tensor:
        x = scaled(digits.train_images[torch.randint(len(digits.train_images), (options["batch"],), generator=draw)])
        z = model.encoder(x).float()
        logits = model.decoder(z + BLUR * torch.randn(z.shape, generator=draw)).float()
        # The decoder's tanh(y) is 2 sigmoid(2 y) - 1: the pixel's grey value as a probability.
        return binary_cross_entropy_with_logits(2 * logits, (x + 1) / 2) + PENALTY * z.square().mean()

    fit("autoencoder", model, loss, options["images"] // options["batch"], options)
    with torch.no_grad():
        z = batched(model.encoder, digits.train_images)
        model.mean.copy_(z.mean((0, 2, 3)).half().view_as(model.mean))
        model.std.copy_(z.std((0, 2, 3)).half().view_as(model.std))
        return (z - model.mean) / model.std


def train_network(model: LatentDigits, latents: Tensor, labels: Tensor, options: dict[str, Any]) -> None:
    trained = nn.ModuleDict({"network": model.network, "labels": model.labels})
    n_max, batch = model.schedule.total_N, options["latent_batch"]
    points = model.schedule.at((torch.arange(n_max) + 1) / n_max)
    alpha, sigma = points.alpha.float(), points.sigma.float()
    weight = (1 / alpha**2).clamp(max=25)  # the same error in the noise is a greater one in x_0 where there is much

    def loss(draw: torch.Generator) -> Tensor:
        pick = torch.randint(len(latents), (batch,), generator=draw)
        y = torch.where(torch.rand(batch, generator=draw) < options["dropout"], NULL_LABEL, labels[pick])
        # One noise level from each of `batch` equal parts of the range: less variance than independent draws.
        level = (torch.arange(batch) + torch.rand(batch, generator=draw)) / batch
        n = (level * n_max).long().clamp(max=n_max - 1)
        eps = torch.randn(latents[pick].shape, generator=draw)
        x = alpha[n].view(-1, 1, 1, 1) * latents[pick] + sigma[n].view(-1, 1, 1, 1) * eps
        error = (model.network(x, n.float(), model.embed(y)).float() - eps).square().mean((1, 2, 3))
        return (weight[n] * error).mean() / weight.mean()

    fit("network", trained, loss, options["latents"] // batch, options)


@torch.no_grad()
def figures(model: LatentDigits, digits: Digits) -> dict[str, Any]:
    test, size = scaled(digits.test_images), 500
    again = torch.cat([model.decode(model.encode(part)) for part in test.split(size)])
    labels = torch.arange(2000) % 10
    guided = model_wrapper(
        model.network, model.schedule, guidance_type="classifier-free", guidance_scale=2.0, cond_process_fn=model.embed
    )
    tuner = TimeTuner(guided, model.schedule)
    noise = SeededNoise(0)(torch.empty(len(labels), *model.shape))
    drawn = [
        model.decode(tuner.ddim_sample(x, num_steps=50, condition=y, uncond_condition=NULL_LABEL))
        for x, y in zip(noise.split(size), labels.split(size), strict=True)
    ]
    images = torch.cat(drawn)
    return {
        "test digits encoded and decoded": {
            "mean square error, pixels in [-1, 1]": round(float((again - test).square().mean()), 5),
            "mean distance": round(float(distance(again, test).mean()), 3),
            "recognised": digit_accuracy(again, digits.test_labels),
            "recognised before": digit_accuracy(test, digits.test_labels),
            "Frechet distance to the test digits": round(digit_frechet(again), 4),
        },
        "2000 samples, 50 calls of DDIM, guidance 2": {
            "recognised": digit_accuracy(images, labels),
            "Frechet distance to the test digits": round(digit_frechet(images), 4),
        },
    }


def main(options: dict[str, Any]) -> None:
    out, digits = options["out"], load_digits(options["data"])
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options["seed"])
    model = LatentDigits()
    latents = train_autoencoder(model.autoencoder, digits, options)
    train_network(model, latents, digits.train_labels, options)
    model.eval().requires_grad_(False)
    save_weights(model, out / "model.safetensors")
    write_record(model, options, figures(model, digits), out / "model.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the MNIST npz")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoints and the results")
    parser.add_argument("--images", type=int, default=102_400, help="images the autoencoder sees (default %(default)s)")
    parser.add_argument("--batch", type=int, default=128, help="images a step (default %(default)s)")
    parser.add_argument("--latents", type=int, default=600_000, help="latents the network sees (default %(default)s)")
    parser.add_argument("--latent-batch", type=int, default=256, help="latents a step (default %(default)s)")
    parser.add_argument("--lr", dest="peak", type=float, default=3e-3, help="peak learning rate (default %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.1, help="share of labels dropped (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and draws (default %(default)s)")
    main(vars(parser.parse_args()))
