"""What is derived from a model of many tensors: its names, types, shapes, buckets, and how outputs follow from the size."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensor_models
import torch
from torch import Tensor, nn

from serving.models.buckets import bucket_sizes, learn_cuts
from serving.models.load import load_buckets, load_model
from serving.models.served import ModelSpec, SizeRule
from serving.models.tensors import TensorSpec, bf16_bits, bf16_numbers
from traces.errors import InputError

IDS = tensor_models.IDS


class Named(nn.Module):
    """Takes a keyword alone, and returns what is no tensor, too."""

    def forward(self, x: Tensor, scale: Tensor | None = None, *, twice: bool = False) -> dict[str, Any]:
        return {"scaled": x * (1 if scale is None else scale), "note": "no tensor", "sum": x.sum(1)}


def described(model: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(one.name, one.datatype, one.shape) for one in (*model.inputs, *model.outputs)]


@pytest.mark.parametrize("form", ["traced", "scripted", "exported", "factory"])
def test_two_inputs_and_two_outputs_from_a_file_or_a_factory(form: str, tmp_path: Path) -> None:
    module = tensor_models.Masked().eval()
    example = (torch.randint(0, 50, (2, 6)), torch.ones(2, 6, dtype=torch.int64))
    path = str(tmp_path / ("model.pt2" if form == "exported" else "model.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "exported":
            free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
            program = torch.export.export(module, example, dynamic_shapes=(free, free))
            torch.export.save(program, path)
        elif form == "factory":
            path = "tensor_models:masked"
        else:
            graph = torch.jit.trace(module, example, strict=False) if form == "traced" else torch.jit.script(module)
            torch.jit.save(graph, path)
    inputs = (
        {"ids": IDS} if form == "exported" else {"ids": IDS, "attention_mask": {"shape": (-1,), "datatype": "INT64"}}
    )
    small, large = load_buckets(ModelSpec("mine", path, inputs=inputs, buckets=(4, 8)))
    if form == "factory":
        module = small.module.module if hasattr(small.module, "module") else small.module
    assert described(small) == [
        ("ids", "INT64", (-1,)),
        ("attention_mask", "INT64", (-1,)),
        ("mean", "FP32", (8,)),
        ("count", "INT64", ()),
    ]
    forward = large.build("cpu")
    for count, size in ((1, 8), (3, 8), (2, 8)):
        ids, mask = torch.randint(0, 50, (count, size)), torch.ones(count, size, dtype=torch.int64)
        expected = module(ids, mask)
        for found, name in zip(forward(ids, mask), ("mean", "count"), strict=True):
            torch.testing.assert_close(found, expected[name])


def test_a_forwards_optional_arguments_are_inputs_only_where_they_are_asked_for() -> None:
    plain = load_model(ModelSpec("mine", f"{__name__}:Named", inputs={"x": {"shape": (3,)}}))
    assert described(plain) == [("x", "FP32", (3,)), ("scaled", "FP32", (3,)), ("sum", "FP32", ())]
    scale = {"shape": (1,), "optional": True, "default": 1.0}
    both = load_model(ModelSpec("mine", f"{__name__}:Named", inputs={"x": {"shape": (3,)}, "scale": scale}))
    assert [one.name for one in both.inputs] == ["x", "scale"]
    found, _ = both.build("cpu")(torch.ones(2, 3), torch.full((2, 1), 5.0))
    assert found.tolist() == [[5.0] * 3] * 2
    chosen = load_model(ModelSpec("mine", f"{__name__}:Named", inputs={"x": {"shape": (3,)}}, outputs={"sum": {}}))
    assert [one.name for one in chosen.outputs] == ["sum"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": {"x": {}}}, "needs input_shape, or a shape of its input 'x'"),
        ({"inputs": {"x": {"shape": (-1,)}}}, "the size of x varies; say up to which"),
        ({"inputs": {"x": {"shape": (3,)}}, "max_size": 8}, "there is none"),
        ({"inputs": {"x": {"shape": (3,)}}, "outputs": {"sum": {"datatype": "INT8"}}}, "output 'sum' is FP32, not INT8"),
        ({"inputs": {"x": {"shape": (3,)}}, "outputs": {"scaled": {"shape": (4,)}}},
         r"has shape \[3\] for one item, not \[4\]"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_model_and_does_not_hold_is_refused_in_a_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_buckets(ModelSpec("mine", f"{__name__}:Named", **change))
    assert "\n" not in str(caught.value)


def test_buckets_are_given_known_from_a_profile_or_powers_of_two() -> None:
    inputs = [TensorSpec("ids", "INT64", (-1,))]
    spec = ModelSpec("m", "x")
    assert bucket_sizes(ModelSpec("m", "x", buckets=(3, 9)), inputs, 512, [5], "m") == (3, 9)
    assert bucket_sizes(spec, inputs, 512, [5, 600], "m") == (5,)
    assert bucket_sizes(spec, inputs, 512, [], "m") == (32, 64, 128, 256, 512)
    assert bucket_sizes(spec, inputs, 100, [], "m") == (4, 8, 16, 32, 64, 100)


@pytest.mark.parametrize(
    ("times", "add", "per"), [(1, 0, 1), (2, 3, 1), (1, -80, 320), (1, 5, 2), (1, -7, 3), (4, 0, 1), (1, 63, 64)]
)
def test_the_rule_of_a_size_is_found_from_a_few_runs(times: int, add: int, per: int) -> None:
    rule = SizeRule(times, add, per)
    asked = []

    def shapes(size: int) -> list[tuple[int, ...]]:
        asked.append(size)
        return [(rule(size), 2)]

    outputs, (cut,) = learn_cuts(shapes, (TensorSpec("y", "FP32", (-1, 2)),), (500, 4000))
    assert [cut[0](size) for size in range(500, 4001)] == [rule(size) for size in range(500, 4001)]
    assert len(asked) < 40 and outputs[0].shape == (-1, 2)


def test_bits_of_bfloat16_are_those_of_torch() -> None:
    numbers = np.array([0.0, -0.0, 1.0, 1.00390625, 1.01171875, -3.4e38, 1e-40, np.inf, -np.inf, np.nan], np.float32)
    numbers = np.concatenate([numbers, np.random.default_rng(0).standard_normal(1000).astype(np.float32)])
    expected = torch.from_numpy(numbers).bfloat16()
    np.testing.assert_array_equal(bf16_numbers(bf16_bits(numbers)), expected.float().numpy())


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no config.json"),
        ({"config.json": {"model_type": "bert"}}, "holds no \\*.safetensors"),
        ({"config.json": {"model_type": "bert"}, "pytorch_model.bin": {}}, "holds no \\*.safetensors"),
        ({"config.json": {"model_type": "nothing"}, "model.safetensors": {}}, "cannot be read"),
        ({"config.json": {"model_type": "bert", "architectures": ["Evil"]}, "model.safetensors": {}}, "is for Evil"),
        (
            {
                "config.json": {
                    "model_type": "x",
                    "auto_map": {"AutoConfig": "evil.Config"},
                    "architectures": ["BertModel"],
                },
                "model.safetensors": {},
            },
            "cannot be read",
        ),
    ],
)
def test_a_folder_of_hugging_face_that_is_none_is_refused_in_a_line(
    files: dict[str, Any], words: str, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(InputError, match=words) as caught:
        load_buckets(ModelSpec("mine", f"hf:{tmp_path}"))
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()
