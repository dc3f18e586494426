"""PyTorch on the linear layers and the head: bf16, and its 4-bit kernel for CPUs with groups of 32."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from shape import SHAPE
from torch_chain import Chain, random_linear

GROUP = 32


class Int4Linear(nn.Module):
    """Weights packed for the 4-bit kernel, with a scale and a zero for every group."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        nibbles = torch.randint(0, 16, (outputs, inputs), dtype=torch.int32)
        self.packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, 1)
        scale = torch.full((inputs // GROUP, outputs), inputs**-0.5 / 4.6)
        # The kernel computes (nibble - 8) * scale + zero; uniform nibbles are half a step below zero on average.
        self.scales_and_zeros = torch.stack([scale, scale / 2], dim=2).to(torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, GROUP, self.scales_and_zeros)


def load(peer: str, threads: int) -> Callable[[int, int], Callable[[], np.ndarray]]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    linear = Int4Linear if peer == "torch-int4" else lambda k, n: random_linear(k, n, torch.bfloat16)
    chain = Chain(SHAPE, linear).eval()

    def prepare(rows: int, _depth: int) -> Callable[[], np.ndarray]:
        x = torch.randn(rows, SHAPE.hidden, dtype=torch.bfloat16)

        def run() -> np.ndarray:
            with torch.inference_mode():
                logits = chain(x)
            # numpy has no bf16; a few values tell whether the run computed.
            return logits[:, :64].float().numpy()

        return run

    return prepare
