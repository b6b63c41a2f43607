"""Train the bundled colour model: a UNet that predicts v on 24 x 24 pictograms of faces and hearts.

    npm pack @iconify-json/fluent-emoji-flat@1.2.6 && pip install resvg-py==0.5.0
    python training/pictograms.py --data iconify-json-fluent-emoji-flat-1.2.6.tgz --out runs/pictograms

The pictures are Microsoft's Fluent Emoji (flat), under the MIT licence, drawn on white; half of the time they are
mirrored. The run can be stopped at any time (Ctrl-C, or a kill) and resumes from its last checkpoint when it is started
again with the same arguments. The averaged weights are written as `model/` in diffusers' own format (config.json and
safetensors), and the pictures as `pictures.npz`.
"""

import argparse
import io
import json
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from digits import STEPS, average, learning_rate, save_atomically
from PIL import Image
from tqdm import tqdm

from time_tuner.pictograms.network import PATCH, SHAPE, PictogramNetwork

SIZE = SHAPE[1]
CATEGORY = "Smileys & Emotion"


def build_model() -> UNet2DModel:
    return UNet2DModel(
        sample_size=SIZE // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        block_out_channels=(48, 64, 64),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        layers_per_block=1,
        attention_head_dim=32,
        norm_num_groups=8,
    )


def draw_pictures(package: Path) -> tuple[np.ndarray, list[str]]:
    """The pictograms of `CATEGORY` in the package, (n, 24, 24, 3) uint8 on white, and their names."""
    import resvg_py

    with tarfile.open(package) as archive:
        icons, metadata = (json.load(archive.extractfile(f"package/{name}.json")) for name in ("icons", "metadata"))
    names = [name for name in metadata["categories"][CATEGORY] if name in icons["icons"]]
    pictures = []
    for name in names:
        body, side = icons["icons"][name]["body"], 4 * SIZE  # averaged over 4 x 4 below
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" width="{side}" height="{side}">{body}</svg>'
        drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
        white = Image.new("RGBA", drawn.size, "white")
        white.alpha_composite(drawn)
        pictures.append(np.asarray(white.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX)))
    return np.stack(pictures), names


def train(data: Path, out: Path, images: int, batch: int, peak: float, seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "pictures.npz").exists():
        pictures, names = draw_pictures(data)
        np.savez_compressed(out / "pictures.npz", pictures=pictures, names=names)
    with np.load(out / "pictures.npz") as arrays:
        x0 = torch.from_numpy(arrays["pictures"]).permute(0, 3, 1, 2).float() / 127.5 - 1
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0).float()

    torch.manual_seed(seed)
    model = build_model()
    network = PictogramNetwork(model)
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
        for step in (bar := tqdm(range(step + 1, total + 1), initial=step, total=total, unit="step", mininterval=10)):
            draw = torch.Generator().manual_seed(seed * 1_000_003 + step)  # so that a resumed run sees the same draws
            x = x0[torch.randint(len(x0), (batch,), generator=draw)]
            mirrored = torch.rand(batch, 1, 1, 1, generator=draw) < 0.5
            x = torch.where(mirrored, x.flip(3), x)
            # One noise level from each of `batch` equal parts of the range, more of them where the picture is seen.
            level = ((torch.arange(batch) + torch.rand(batch, generator=draw)) / batch) ** 1.5
            n = (level * STEPS).long().clamp(max=STEPS - 1)
            eps = torch.randn(x.shape, generator=draw)
            alpha, sigma = (part.sqrt().view(-1, 1, 1, 1) for part in (alpha_bar[n], 1 - alpha_bar[n]))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = network(alpha * x + sigma * eps, n)
            loss = (output.float() - (alpha * eps - sigma * x)).square().mean()
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
        print(f"stopped after step {step}; the same command resumes from the last checkpoint in {out}")
        return
    save()
    model.load_state_dict(mean)
    model.half().save_pretrained(out / "model", safe_serialization=True)
    print(f"loss {running:.5f} after {step} steps of {batch}; averaged weights in {out / 'model'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the package of pictograms, a .tgz")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the trained model")
    parser.add_argument("--images", type=int, default=54_400, help="training images seen in all")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", dest="peak", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))
