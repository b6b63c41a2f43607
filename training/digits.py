"""Train the bundled digit model: a class-conditional UNet that predicts noise on 28 x 28 MNIST images.

    python training/digits.py --data mnist.npz --out runs/digits

The run can be stopped at any time (Ctrl-C, or a kill) and goes on from its last checkpoint when started again with the
same arguments. The averaged weights are written as `model/` in diffusers' own format (config.json and safetensors).

The npz holds `train_images` (n, 28, 28) uint8 and `train_labels` (n,) uint8.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from loop import fit

STEPS = 1000  # trained noise levels: linear betas 1e-4 .. 0.02
NULL_LABEL = 10  # the eleventh class, "no label", for classifier-free guidance


def build_model() -> UNet2DModel:
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=(24, 48, 72),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        layers_per_block=1,
        attention_head_dim=36,
        norm_num_groups=8,
        num_class_embeds=NULL_LABEL + 1,
    )


def train(data: Path, out: Path, images: int, batch: int, peak: float, dropout: float, seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with np.load(data) as arrays:
        x0 = torch.from_numpy(arrays["train_images"])
        labels = torch.from_numpy(arrays["train_labels"].astype(np.int64))
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0).float()
    torch.manual_seed(seed)
    model = build_model()

    def loss_of(draw: torch.Generator) -> torch.Tensor:
        pick = torch.randint(len(x0), (batch,), generator=draw)
        x = x0[pick, None].float() / 127.5 - 1
        y = torch.where(torch.rand(batch, generator=draw) < dropout, NULL_LABEL, labels[pick])
        # One noise level from each of `batch` equal parts of the range: less variance than independent draws.
        level = (torch.arange(batch) + torch.rand(batch, generator=draw)) / batch
        n = (level * STEPS).long().clamp(max=STEPS - 1)
        eps = torch.randn(x.shape, generator=draw)
        a = alpha_bar[n].view(-1, 1, 1, 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = model(a.sqrt() * x + (1 - a).sqrt() * eps, n, class_labels=y).sample
        return (predicted.float() - eps).square().mean()

    fit(model, loss_of, out, images // batch, peak, seed, batch)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the MNIST npz")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the trained model")
    parser.add_argument("--images", type=int, default=1_000_000, help="training images seen in all")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", dest="peak", type=float, default=2e-3)
    parser.add_argument("--dropout", type=float, default=0.1, help="share of labels replaced by 'no label'")
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))
