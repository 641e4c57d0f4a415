"""ONNX files: what the graph says of its tensors is what clients see, and what it cannot do is refused at the load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.executors.base import Batch
from serving.executors.cpu import CpuExecutor
from serving.models.load import load_buckets
from serving.models.served import ModelSpec
from traces.errors import InputError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
H, T = onnx.helper, onnx.TensorProto


def write(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any] = ()) -> str:  # type: ignore[assignment]
    graph = H.make_graph(nodes, "made", inputs, outputs, list(constants))
    model = H.make_model(graph, opset_imports=[H.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return str(path)


def masked_sum(path: Path) -> str:
    """The sum of the embedded ids that a mask leaves."""
    table = onnx.numpy_helper.from_array(np.arange(20, dtype=np.float32).reshape(10, 2), "table")
    last = onnx.numpy_helper.from_array(np.array([2]), "last")
    nodes = [
        H.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        H.make_node("Cast", ["attention_mask"], ["float_mask"], to=T.FLOAT),
        H.make_node("Unsqueeze", ["float_mask", "last"], ["wide"]),
        H.make_node("Mul", ["embedded", "wide"], ["tokens"]),
        H.make_node("ReduceSum", ["tokens", "one"], ["pooled"], keepdims=0),
    ]
    one = onnx.numpy_helper.from_array(np.array([1]), "one")
    ids, mask = (H.make_tensor_value_info(n, T.INT64, ["batch", "length"]) for n in ("input_ids", "attention_mask"))
    outputs = [
        H.make_tensor_value_info("pooled", T.FLOAT, ["batch", 2]),
        H.make_tensor_value_info("tokens", T.FLOAT, ["batch", "length", 2]),
    ]
    return write(path, nodes, [ids, mask], outputs, [table, last, one])


def test_a_graph_with_dynamic_axes_is_served_by_its_own_names(tmp_path: Path) -> None:
    spec = ModelSpec("sum", masked_sum(tmp_path / "sum.onnx"), inputs={"input_ids": {"high": 10}}, buckets=(4, 16))
    models = load_buckets(spec)
    assert [model.name for model in models] == ["sum@4", "sum@16"] and not models[0].exact
    assert [(one.name, one.datatype, one.shape) for one in models[0].inputs] == [
        ("input_ids", "INT64", (-1,)),
        ("attention_mask", "INT64", (-1,)),
    ]
    assert [(one.name, one.shape) for one in models[0].outputs] == [("pooled", (2,)), ("tokens", (-1, 2))]
    results = []
    with CpuExecutor(1, results.append) as executor:
        executor.load(models[1])
        items = [(np.arange(size) % 10, np.ones(size, np.int64)) for size in (5, 16, 9)]
        executor.submit(0, Batch(0, "sum@16", 0, items))
    (result,) = results
    for (ids, _), (pooled, tokens) in zip(items, result.outputs):
        expected = np.stack([2 * ids, 2 * ids + 1], 1).astype(np.float32)
        np.testing.assert_allclose(tokens, expected)
        np.testing.assert_allclose(pooled, expected.sum(0))


def test_text_runs_through_a_graph(tmp_path: Path) -> None:
    info = [H.make_tensor_value_info(name, T.STRING, ["batch", 1]) for name in ("text", "same")]
    path = write(tmp_path / "text.onnx", [H.make_node("Identity", ["text"], ["same"])], info[:1], info[1:])
    (model,) = load_buckets(ModelSpec("text", path))
    assert model.inputs[0].datatype == model.outputs[0].datatype == "BYTES"
    (same,) = model.build("cpu")(np.array([["grün".encode()]], object))
    assert same.tolist() == [["grün".encode()]]


@pytest.mark.parametrize(
    ("nodes", "shape", "words"),
    [
        ([H.make_node("Sorcery", ["x"], ["y"])], ["batch", 2], "cannot be run by onnxruntime.*Sorcery"),
        ([H.make_node("Identity", ["x"], ["y"])], [1, 2], "its first side must be dynamic"),
        ([H.make_node("Identity", ["x"], ["y"])], ["batch", "size"], "size of x varies; say up to which"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    nodes: list[Any], shape: list[Any], words: str, tmp_path: Path
) -> None:
    info = [H.make_tensor_value_info(name, T.FLOAT, shape) for name in "xy"]
    with pytest.raises(InputError, match=words) as caught:
        load_buckets(ModelSpec("bad", write(tmp_path / "bad.onnx", nodes, info[:1], info[1:])))
    assert "\n" not in str(caught.value)


def test_a_damaged_file_and_names_that_are_not_there_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(InputError, match="cannot be run by onnxruntime"):
        load_buckets(ModelSpec("bad", str(tmp_path / "bad.onnx")))
    path = masked_sum(tmp_path / "sum.onnx")
    with pytest.raises(InputError, match="has no output 'logits'; it has pooled, tokens"):
        load_buckets(ModelSpec("sum", path, outputs={"logits": {}}, max_size=8))
