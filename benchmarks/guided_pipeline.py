"""The time of a picture where guidance is left out of the last third of the calls, beside guidance at every call.

    python benchmarks/guided_pipeline.py [--calls 12] [--rounds 3] [--batch 1] [--device cpu] [--json out.json]

The pipeline is Stable Diffusion's on a network of random weights, whose evaluations take nearly all the time. Both
plans are run by turns, and the seconds are the least of the rounds, by the clock and of the processor. The evaluations
are counted at the network.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from rich.console import Console
from rich.table import Table

from time_tuner import Plan, make_plan
from time_tuner.diffusers import TimeTunerScheduler

TOKENS, WIDTH, SIDE = 77, 256, 32


def pipeline(device: str) -> Any:
    torch.manual_seed(0)
    network = UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(128, 256, 256),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
    ).eval()
    nothing = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = StableDiffusionPipeline(
        **nothing,
        unet=network,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        requires_safety_checker=False,
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, plan: Plan, own: Any, inputs: dict[str, Any], evaluated: list[int]) -> tuple[float, float, int]:
    """The seconds of a run by the clock and of the processor, and its evaluations."""
    pipe.scheduler = TimeTunerScheduler.from_plan(plan, own)
    evaluated.clear()
    with pipe.scheduler.attach(pipe):
        clock, processor = time.perf_counter(), time.process_time()
        float(pipe(**inputs, num_inference_steps=len(plan)).images.sum())  # waits for the device
        return time.perf_counter() - clock, time.process_time() - processor, sum(evaluated)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    pipe, evaluated = pipeline(given.device), list[int]()
    forward, own = pipe.unet.forward, pipe.scheduler

    def counted(states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        evaluated.append(len(states))
        return forward(states, *args, **kwargs)

    pipe.unet.forward = counted
    embeds = torch.randn(2, given.batch, TOKENS, WIDTH, device=given.device)
    inputs: dict[str, Any] = {
        "prompt_embeds": embeds[0],
        "negative_prompt_embeds": embeds[1],
        "latents": torch.randn(given.batch, 4, SIDE, SIDE, device=given.device),
        "guidance_scale": 5.0,
        "output_type": "latent",
    }
    plan = make_plan("dpmpp", TimeTunerScheduler.from_config(pipe, calls=given.calls).schedule, given.calls)
    kept = -(-2 * given.calls // 3)
    plans = {"every call": plan, f"the first {kept} calls": plan.with_guidance(kept)}
    run(pipe, plan.with_guidance(1), own, inputs, evaluated)
    rounds = [
        {name: run(pipe, one, own, inputs, evaluated) for name, one in plans.items()} for _ in range(given.rounds)
    ]
    rows: list[dict[str, Any]] = []
    for name, one in plans.items():
        clock, processor, counted_rows = (min(made[name][i] for made in rounds) for i in range(3))
        row: dict[str, Any] = {"guidance at": name, "calls": given.calls, "plan": given.batch * one.evaluations}
        row |= {"counted": counted_rows, "clock": clock, "processor": processor}
        first = rows[0] if rows else row
        rows.append(row | {"ratio": clock / first["clock"], "processor ratio": processor / first["processor"]})
    weights = sum(weight.numel() for weight in pipe.unet.parameters())
    table = Table(title=f"{weights / 1e6:.0f} M weights, batch {given.batch}, {given.device}")
    for column in rows[0]:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
