"""Train the bundled classifier of noisy MNIST digits, log p(digit | x_n, n), which guides a sampler to a digit.

    python training/noisy_classifier.py --data mnist.npz --out runs/noisy-classifier

It takes x_n = sqrt(abar_n) x_0 + sqrt(1 - abar_n) eps for the 1000 linear betas 1e-4 .. 0.02 and a level n in [0, 999],
also between whole levels. The run can be stopped and resumed like that of `classifier.py`. It writes two files, which
belong in `src/time_tuner/digits/assets`:

    noisy-classifier.safetensors  the averaged weights in half precision
    noisy-classifier.json         the recipe and the final figures
"""

from typing import Any

import torch
from classifier import Digits, batched, fit, load_digits, parser, save_weights, write_record
from digits import STEPS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from time_tuner.digits.classifier import NoisyDigitClassifier

LOG_ALPHA_BAR = torch.log1p(-torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64)).cumsum(0)


def diffuse(x0: Tensor, n: Tensor, draw: torch.Generator) -> Tensor:
    """x0 (B, 1, 28, 28) at noise levels n (B,); log abar is linear between two whole levels."""
    below = n.long().clamp(max=STEPS - 2)
    log_alpha_bar = torch.lerp(LOG_ALPHA_BAR[below], LOG_ALPHA_BAR[below + 1], n.double() - below)
    a = log_alpha_bar.exp().float().view(-1, 1, 1, 1)
    return a.sqrt() * x0 + (1 - a).sqrt() * torch.randn(x0.shape, generator=draw)


def noisy_logits(model: nn.Module, x0: Tensor, draw: torch.Generator) -> Tensor:
    # One noise level from each of B equal parts of the range: less variance than independent draws.
    n = (torch.arange(len(x0)) + torch.rand(len(x0), generator=draw)) / len(x0) * (STEPS - 1)
    return model(diffuse(x0, n, draw), n)  # type: ignore[no-any-return]


def figures_at(model: nn.Module, digits: Digits, n: int) -> dict[str, float]:
    draw = torch.Generator().manual_seed(n)
    level = torch.tensor(float(n))
    logits = batched(lambda x0: model(diffuse(x0, level.expand(len(x0)), draw), level), digits.test_images)
    accuracy = (logits.argmax(1) == digits.test_labels).double().mean()
    return {
        "test accuracy": round(float(accuracy), 4),
        "test cross-entropy": round(float(cross_entropy(logits, digits.test_labels)), 4),
    }


def main(options: dict[str, Any]) -> None:
    out, digits = options["out"], load_digits(options["data"])
    torch.manual_seed(options["seed"])
    model = NoisyDigitClassifier()
    fit(model, noisy_logits, digits, **{k: v for k, v in options.items() if k != "data"})
    save_weights(model, out / "noisy-classifier.safetensors")
    figures = {f"n = {n}": figures_at(model, digits, n) for n in (0, 100, 200, 300, 400, 500, 600, 700, 800, 999)}
    write_record(model, options, figures, out / "noisy-classifier.json")


if __name__ == "__main__":
    main(vars(parser(__doc__, images=1_280_000).parse_args()))
