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
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DModel
from digits import STEPS
from loop import fit
from PIL import Image

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

    def loss_of(draw: torch.Generator) -> torch.Tensor:
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
        return (output.float() - (alpha * eps - sigma * x)).square().mean()

    fit(model, loss_of, out, images // batch, peak, seed, batch)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the package of pictograms, a .tgz")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the trained model")
    parser.add_argument("--images", type=int, default=54_400, help="training images seen in all")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", dest="peak", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args()))
