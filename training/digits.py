"""Train the bundled digit model: a class-conditional UNet that predicts noise on 28 x 28 MNIST images.

    python training/digits.py --data mnist.npz --out runs/digits

The run can be stopped at any time (Ctrl-C, or a kill) and goes on from its last checkpoint when started again with the
same arguments. The averaged weights are written as `model/` in diffusers' own format (config.json and safetensors).

The npz holds `train_images` (n, 28, 28) uint8 and `train_labels` (n,) uint8.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from tqdm import tqdm

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


def save_atomically(state: dict, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def train(data: Path, out: Path, images: int, batch: int, peak: float, dropout: float, seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with np.load(data) as arrays:
        x0 = torch.from_numpy(arrays["train_images"])
        labels = torch.from_numpy(arrays["train_labels"].astype(np.int64))
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0).float()

    torch.manual_seed(seed)
    model = build_model()
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

    total = images // batch
    saved = time.monotonic()
    running = losses[-1] if losses else 1.0
    try:
        for step in (bar := tqdm(range(step + 1, total + 1), initial=step, total=total, unit="step")):
            draw = torch.Generator().manual_seed(seed * 1_000_003 + step)  # so that a resumed run sees the same draws
            pick = torch.randint(len(x0), (batch,), generator=draw)
            x = x0[pick, None].float() / 127.5 - 1
            y = torch.where(torch.rand(batch, generator=draw) < dropout, NULL_LABEL, labels[pick])
            # One noise level from each of `batch` equal parts of the range: less variance than independent draws.
            level = (torch.arange(batch) + torch.rand(batch, generator=draw)) / batch
            n = (level * STEPS).long().clamp(max=STEPS - 1)
            eps = torch.randn(x.shape, generator=draw)
            a = alpha_bar[n].view(-1, 1, 1, 1)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                said = model(a.sqrt() * x + (1 - a).sqrt() * eps, n, class_labels=y).sample
            loss = (said.float() - eps).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, total, peak)
            optimizer.step()
            average(mean, model.state_dict(), step)
            running += 0.01 * (loss.item() - running)
            if step % 100 == 0:
                losses.append(running)
                bar.set_postfix(loss=f"{running:.4f}")
            if time.monotonic() - saved > 120:
                save()
                saved = time.monotonic()
    except KeyboardInterrupt:
        print(f"stopped after step {step}; the same command goes on from the last checkpoint in {out}")
        return
    save()
    model.load_state_dict(mean)
    model.half().save_pretrained(out / "model", safe_serialization=True)
    print(f"loss {running:.5f} after {step} steps of {batch}; averaged weights in {out / 'model'}")


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
