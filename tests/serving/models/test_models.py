"""The served models: what they are, what they cost, and which sources are refused."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from serving.models.builtin.registry import BUILTIN, DEFAULT_MODELS
from serving.models.compile import compile_forward
from serving.models.cost import count_costs
from serving.models.load import builtin_spec, load_model
from serving.models.served import ModelSpec, ServedModel
from traces.errors import InputError


@pytest.fixture(scope="module")
def loaded() -> dict[str, ServedModel]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # nothing of torch.jit's reaches a user
        return {name: load_model(builtin_spec(name)) for name in BUILTIN}


class Doubled(nn.Module):
    """A user's model: one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return 2 * self.linear(values)


class FixedBatch(nn.Module):
    """Reads its batch size as a Python number, which a trace bakes in."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.ones(int(values.shape[0]), 1) * len(values) + values[:, :1]


class OnlyOne(nn.Module):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values.reshape(1, 6)


class Pair(nn.Module):
    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, int]:
        return values, 2


def is_graph(forward: Any) -> bool:
    return isinstance(forward, torch._C.ScriptMethod)


def not_a_module() -> int:
    return 3


def test_six_models_are_default_and_two_are_kept_unseen() -> None:
    assert len(DEFAULT_MODELS) == 6
    assert set(BUILTIN) - set(DEFAULT_MODELS) == {"unet", "mixer", "empty"}  # the last for simulated devices
    assert len({model.kind for model in BUILTIN.values()}) == len(BUILTIN)


@pytest.mark.parametrize("name", BUILTIN)
def test_compiled_model_answers_as_the_eager_one_at_every_batch_size(name: str, loaded: dict[str, ServedModel]) -> None:
    model = loaded[name]
    forward = model.build("cpu")
    rng = np.random.default_rng(1)
    for size in (1, 2, 3, 8):
        batch = torch.from_numpy(np.stack([model.example(rng)[0] for _ in range(size)]))
        with torch.inference_mode():
            expected = model.module(batch)
        assert expected.shape == (size, *model.outputs[0].shape)
        torch.testing.assert_close(forward(batch), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", BUILTIN)
def test_items_of_a_batch_do_not_mix(name: str, loaded: dict[str, ServedModel]) -> None:
    model = loaded[name]
    forward = model.build("cpu")
    batch = torch.from_numpy(np.stack([model.example(np.random.default_rng(seed))[0] for seed in range(3)]))
    together, alone = forward(batch), torch.cat([forward(batch[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


def test_weights_come_from_the_seed_and_leave_the_callers_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again = (load_model(ModelSpec("a", "builtin:lstm", seed=3)) for _ in range(2))
    other = load_model(ModelSpec("a", "builtin:lstm", seed=4))
    assert torch.rand(1) == expected
    weights = [next(model.module.parameters()) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_costs_of_known_layers_are_counted_by_hand(loaded: dict[str, ServedModel]) -> None:
    flops, written = count_costs(nn.Linear(6, 3), [torch.randn(5, 6)])
    assert (flops, written) == (2 * 6 * 3, 3 * 4)
    # Two layers, 32 steps: the input's and the state's product with 4 gates each; then the 384 x 64 head.
    width, steps = 384, 32
    products = steps * 4 * width * (64 + width) + steps * 4 * width * (width + width) + width * 64
    assert loaded["lstm"].flops_per_item == 2 * products
    # One attention layer, 64 tokens: two products of 64 x 64 x 256, beside the linear layers.
    linear = 4 * 64 * (256 * 768 + 256 * 256 + 2 * 256 * 1024) + 256 * 64
    assert loaded["bert"].flops_per_item == 2 * (linear + 4 * 2 * 64 * 64 * 256)


def test_description_matches_the_arrays(loaded: dict[str, ServedModel]) -> None:
    for model in loaded.values():
        entry = model.describe()
        assert entry["input_bytes_per_item"] == model.example(np.random.default_rng(0))[0].nbytes
        assert entry["parameters"] == sum(tensor.numel() for tensor in model.module.parameters())
        assert entry["weight_bytes"] >= 4 * entry["parameters"]
        assert entry["flops_per_item"] > 0 and entry["activation_bytes_per_item"] >= entry["output_bytes_per_item"]


def _waits_for_the_lock(forward: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> float:
    """Run a forward on a thread while this one never gives the lock away: how many switch intervals it was held up."""
    interval_s = 0.02
    done = False

    def run() -> None:
        nonlocal done
        forward(batch)
        done = True

    forward(batch)
    start_s = time.perf_counter()
    forward(batch)
    alone_s = time.perf_counter() - start_s
    usual = sys.getswitchinterval()
    sys.setswitchinterval(interval_s)
    try:
        worker = threading.Thread(target=run)
        worker.start()
        start_s = time.perf_counter()
        while not done:
            pass
        held_up_s = time.perf_counter() - start_s - alone_s
        worker.join()
    finally:
        sys.setswitchinterval(usual)
    return held_up_s / interval_s


@pytest.mark.parametrize("name", BUILTIN)
def test_a_forward_runs_without_pythons_lock(name: str, loaded: dict[str, ServedModel]) -> None:
    model = loaded[name]
    batch = torch.from_numpy(np.stack([model.example(np.random.default_rng(0))[0]] * 2))
    forward = model.build("cpu")
    assert is_graph(forward)
    # The shortest wait of three: other processes may hold the main thread up, but not make it wait less.
    assert min(_waits_for_the_lock(forward, batch) for _ in range(3)) < 10


def _python_calls(forward: Any, batch: torch.Tensor) -> int:
    """Python functions that a forward enters: each holds the lock, however busy the machine is."""
    entered = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal entered
        entered += event == "call"

    usual = sys.getprofile()
    sys.setprofile(note)
    try:
        forward(batch)
    finally:
        sys.setprofile(usual)
    return entered


def test_an_uncompiled_forward_needs_the_lock_between_operations(loaded: dict[str, ServedModel]) -> None:
    model = load_model(ModelSpec("eager", "builtin:bert", compiled=False))
    batch = torch.from_numpy(np.stack([model.example(np.random.default_rng(0))[0]] * 2))
    compiled = _python_calls(loaded["bert"].build("cpu"), batch)
    assert _python_calls(model.build("cpu"), batch) > compiled + 20


def test_a_model_with_a_fixed_batch_size_in_its_trace_is_not_traced() -> None:
    example = torch.randn(4, 6)
    forward = compile_forward(FixedBatch().eval(), [[example]], "mine")
    torch.testing.assert_close(forward(example[:3]), 3 + example[:3, :1])


@pytest.mark.parametrize("form", ["traced", "scripted", "frozen", "exported", "factory"])
def test_users_own_model_from_file_or_factory(form: str, tmp_path) -> None:
    eager = Doubled().eval()
    example = torch.randn(2, 6)
    path = str(tmp_path / ("model.pt2" if form == "exported" else "model.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "exported":
            program = torch.export.export(eager, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            torch.export.save(program, path)
        elif form == "factory":
            path = f"{__name__}:Doubled"
        else:
            graph = torch.jit.trace(eager, example) if form == "traced" else torch.jit.script(eager)
            torch.jit.save(torch.jit.freeze(graph) if form == "frozen" else graph, path)
    model = load_model(ModelSpec("mine", path, input_shape=(6,)))
    if form == "factory":
        eager = model.module  # its weights are drawn from the spec's seed
    forward = model.build("cpu")
    for size in (1, 2, 5):
        batch = torch.randn(size, 6)
        torch.testing.assert_close(forward(batch), eager(batch))
    assert is_graph(forward)
    assert (model.parameters, model.weight_bytes) == (21, 84)
    assert model.outputs[0].shape == (3,)
    assert model.flops_per_item == 36


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("m", "builtin:alexnet"), r"model 'm': no built-in model 'alexnet'; there are resnet, "),
        (ModelSpec("m", "builtin:bert", input_shape=(9,)), r"input_shape is \(9,\), but builtin:bert takes \(64,\)"),
        (
            ModelSpec("m", "weights.bin", (6,)),
            "not builtin:NAME, hf:FOLDER, a .pt, .pt2 or .onnx file, or module:factory",
        ),
        (ModelSpec("m", "absent.pt", (6,)), "no file absent.pt"),
        (ModelSpec("m", f"{__name__}:Doubled"), "needs input_shape"),
        (ModelSpec("m", f"{__name__}:Doubled", (0,)), r"input_shape is \(0,\); every side must be a positive"),
        (ModelSpec("m", f"{__name__}:Doubled", (6,), "bfloat17"), "input_dtype 'bfloat17' is not one of bool, "),
        (ModelSpec("m", f"{__name__}:Doubled", (7,)), r"fails on an input of shape \(1, 7\)"),
        (ModelSpec("m", f"{__name__}:OnlyOne", (6,)), r"fails on an input of shape \(3, 6\)"),
        (ModelSpec("m", f"{__name__}:Pair", (6,)), "returns int; it must return a tensor, or a tuple or mapping"),
        (
            ModelSpec("m", f"{__name__}:not_a_module", (6,)),
            "returned int; it must return a torch.nn.Module or a callable",
        ),
        (ModelSpec("m", f"{__name__}:Nothing", (6,)), "cannot import"),
        (ModelSpec("m", "no_such_package_here:make", (6,)), "cannot import"),
    ],
)
def test_bad_specs_are_refused_in_one_line(spec: ModelSpec, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_a_corrupt_file_and_a_pickle_are_refused(suffix: str, tmp_path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match="is not a readable"):
        load_model(ModelSpec("m", str(path), (6,)))
    torch.save(Doubled(), path)  # a pickled module must never be opened
    with pytest.raises(InputError, match="is not a readable"):
        load_model(ModelSpec("m", str(path), (6,)))
