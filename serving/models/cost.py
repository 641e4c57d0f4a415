"""Counts what a model costs by running it once: operations and bytes written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten


def count_costs(forward: Callable[..., Any], batch: Sequence[Tensor]) -> tuple[float, float]:
    """Run `forward` once on `batch` and count.

    Args:
        forward: the batched inference, eager or TorchScript, on the CPU.
        batch: each input, of shape (batch, ...).

    Returns:
        Floating-point operations and bytes written by operations, both per item of the batch. Counted are matrix
        products, convolutions, attention and recurrent layers (a multiply-add is two operations); element-wise work is
        in the bytes only.
    """
    flops = FlopCounterMode(display=False, custom_mapping=_EXTRA_FLOPS)
    written = _BytesWritten()
    with torch.no_grad(), written, flops:
        forward(*batch)
    return flops.get_total_flops() / len(batch[0]), written.total / len(batch[0])


def count_weights(module: nn.Module) -> tuple[int, int]:
    """Return the number of weights and the bytes of weights and buffers, constants of a frozen graph included."""
    parameters = list(module.parameters())
    weights = sum(tensor.numel() for tensor in parameters)
    weight_bytes = sum(tensor.nbytes for tensor in (*parameters, *module.buffers()))
    if weights == 0 and isinstance(module, torch.jit.ScriptModule):
        # Freezing turns parameters into constants of the graph; a small one (a scale, an index) is no weight.
        constants = {tensor.data_ptr(): tensor for tensor in _graph_constants(module) if tensor.dim() > 0}
        weights = sum(tensor.numel() for tensor in constants.values())
        weight_bytes += sum(tensor.nbytes for tensor in constants.values())
    return weights, weight_bytes


def _graph_constants(module: torch.jit.ScriptModule) -> list[Tensor]:
    graph: Any = module.inlined_graph  # kept in a name: its nodes die with it
    nodes = graph.findAllNodes("prim::Constant")
    return [node.t("value") for node in nodes if "value" in node.attributeNames() and node.kindOf("value") == "t"]


class _BytesWritten(TorchDispatchMode):
    """Adds up the bytes of every operation's results that are not views of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if not func.is_view:
            for result in results if isinstance(results, tuple | list) else (results,):
                if isinstance(result, Tensor):
                    self.total += result.nbytes
        return results


def _attention_flops(query: tuple[int, ...], key: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Two products of (length, width) by (width, length) for each head."""
    batch, heads, length, width = query
    return 2 * 2 * batch * heads * length * key[2] * width


def _recurrent_flops(sequence: tuple[int, ...], input_weight: tuple[int, ...], state_weight: tuple[int, ...],
                     *_: Any, **__: Any) -> int:  # fmt: skip
    """Every step multiplies the input and the state by their weight matrices."""
    steps_times_batch = sequence[0] * sequence[1]
    return 2 * steps_times_batch * (input_weight[0] * input_weight[1] + state_weight[0] * state_weight[1])


# Operations that torch.utils.flop_counter of torch 2.13 does not know: the CPU's fused attention and recurrent layer.
_EXTRA_FLOPS: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten.mkldnn_rnn_layer: _recurrent_flops,
}
