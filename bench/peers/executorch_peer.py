"""ExecuTorch with XNNPACK on the linear layers and the head: int8 activations per row, int4 weights in groups of 32."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from shape import SHAPE
from torch_chain import Chain, random_linear

GROUP = 32
MOST_ROWS = 512


def export(path: Path) -> None:
    """Quantizes, lowers and writes the model."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.utils import unwrap_tensor_subclass

    config = Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4, weight_granularity=PerGroup(GROUP))

    def linear(inputs: int, outputs: int) -> torch.nn.Module:
        made = random_linear(inputs, outputs, torch.float32)
        quantize_(made, config)
        return made

    with torch.no_grad():
        torch.manual_seed(0)
        chain = Chain(SHAPE, linear).eval()
        unwrap_tensor_subclass(chain)
        rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
        exported = torch.export.export(chain, (torch.randn(4, SHAPE.hidden),), dynamic_shapes=({0: rows},))
        del chain
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
        del exported
        left = [n.name for n in lowered.exported_program().graph.nodes if "linear" in n.name or "quantize" in n.name]
        if left:
            raise RuntimeError(f"XNNPACK did not take {len(left)} nodes, the first of them {left[0]}")
        program = lowered.to_executorch()
    with path.open("wb") as file:
        program.write_to_file(file)


def load(models: Path, threads: int) -> Callable[[int, int], Callable[[], np.ndarray]]:
    path = models / f"linears-8da4w-g{GROUP}.pte"
    if not path.exists():
        part = path.with_suffix(".part")
        export(part)
        part.rename(path)
    from executorch.extension.pybindings import portable_lib

    portable_lib._unsafe_reset_threadpool(threads)
    module = portable_lib._load_for_executorch(str(path))

    def prepare(rows: int, _depth: int) -> Callable[[], np.ndarray]:
        if rows > MOST_ROWS:
            raise ValueError(f"the program was exported for up to {MOST_ROWS} rows, not {rows}")
        x = torch.randn(rows, SHAPE.hidden)
        return lambda: module.forward((x,), clone_outputs=False)[0].numpy()

    return prepare
