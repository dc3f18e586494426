"""The transformer that every peer is given: SDAR-1.7B, which has the shape of Qwen3-1.7B.

Weights are random: speed does not depend on them. Every layer has its own, so that nothing stays in the processor's
cache.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    layers: int = 28
    hidden: int = 2048
    q_heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    mlp: int = 6144
    vocab: int = 151936

    @property
    def q_width(self) -> int:
        return self.q_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    def layer_linears(self) -> list[tuple[str, int, int]]:
        """Name, inputs and outputs of the matrices of one layer, in the order they run."""
        return [
            ("q", self.hidden, self.q_width),
            ("k", self.hidden, self.kv_width),
            ("v", self.hidden, self.kv_width),
            ("o", self.q_width, self.hidden),
            ("gate", self.hidden, self.mlp),
            ("up", self.hidden, self.mlp),
            ("down", self.mlp, self.hidden),
        ]

    def parameters(self) -> int:
        """Weights of the matrices; the embedding is the head's matrix."""
        layer = sum(inputs * outputs for _, inputs, outputs in self.layer_linears())
        return self.layers * layer + self.hidden * self.vocab


SHAPE = Shape()

# The chain that stands for the layers uses everything a layer computes, adds little work of its own and depends on the
# result of the layer before: o(q + [k, v]) and down(gate + up).
assert SHAPE.q_width == 2 * SHAPE.kv_width
