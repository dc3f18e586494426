"""The linear layers and the head as a torch module; the same chain of matrices as `onnx_peers.py` builds."""

from collections.abc import Callable

import torch
from torch import nn

from shape import Shape


class Chain(nn.Module):
    """Rows of hidden values in, logits out."""

    def __init__(self, shape: Shape, linear: Callable[[int, int], nn.Module]):
        """`linear(inputs, outputs)` makes one matrix, so that an unquantized model never lies in memory as a whole."""
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: linear(inputs, outputs) for name, inputs, outputs in shape.layer_linears()})
            for _ in range(shape.layers)
        )
        self.head = linear(shape.hidden, shape.vocab)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer["o"](layer["q"](x) + torch.cat([layer["k"](x), layer["v"](x)], dim=1))
            x = layer["down"](layer["gate"](x) + layer["up"](x))
        return self.head(x)


def random_linear(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, bias=False, dtype=dtype)
    nn.init.normal_(linear.weight, std=inputs**-0.5)
    return linear
