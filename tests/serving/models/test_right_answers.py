"""A model answers as its author's PyTorch does, and what cannot be served rightly is refused when it is loaded."""

from __future__ import annotations

import gc
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn

from serving.api.tensors import plain_values
from serving.models.load import load_model
from serving.models.served import ModelSpec, host_array
from serving.models.tensors import datatype_of
from traces.errors import InputError

STRANGE = ([math.nan, 1, 2, 3], [0, 0, 0, 0], [0.25, 0.5, 0.75, 1], [4, 4, 0, 0], [99, 0, 0, 0], [-1e4, 1, 7, 2])


class IfNan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if torch.isnan(x).any():
            x = torch.nan_to_num(x)
        return x.sum(1, keepdim=True)


class IfEqual(nn.Module):
    """torch warns of no comparison by a function."""

    def forward(self, x: Tensor) -> Tensor:
        return x if torch.equal(x, torch.zeros_like(x)) else x / x.norm(dim=1, keepdim=True)


class IfLarge(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_nonzero((x.max() > 98.5).to(torch.int64)):
            return torch.ones_like(x)
        return x


class Trim(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n = int((x != 0).sum(1).max())
        return x[:, : max(n, 1)].mean(1, keepdim=True)


class Count(nn.Module):
    """A loop whose length is a value, in words that TorchScript does not know."""

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for row in range(int(x.nan_to_num().abs().max()) % 9):
            total = total + float(f"{row:.0f}")
        return total


class Numbers(nn.Module):
    """Out of Python's hands and back."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


class Address(nn.Module):
    """Reads a value where nobody sees it."""

    def forward(self, x: Tensor) -> Tensor:
        import ctypes

        return x + ctypes.c_float.from_address(x.data_ptr()).value


def scripted() -> nn.Module:
    return torch.jit.script(IfNan())


@pytest.mark.parametrize("kind", [IfNan, IfEqual, IfLarge, Trim, Count, Numbers, Address, scripted])
def test_a_model_that_branches_on_values_answers_as_it_does_in_pytorch(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_model(ModelSpec("mine", f"{__name__}:{kind.__name__}", (4,)))
    forward, module = model.build("cpu"), kind()
    for values in STRANGE:
        x = torch.tensor([values], dtype=torch.float32)
        torch.testing.assert_close(forward(x), module(x), equal_nan=True)
    if not isinstance(forward, torch._C.ScriptMethod):
        assert "model mine runs uncompiled" in caplog.text


@pytest.mark.parametrize("script", [False, True])
def test_a_model_that_is_loaded_again_and_again_takes_memory_once(
    script: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "        if x.sum() > 1e9:\n            x = x + 1\n" if script else ""
    text = f"""
import torch
from torch import nn
class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2048, 2048)
    def forward(self, x):
{body}        return self.linear(x)
"""
    (tmp_path / f"large{script}.py").write_text(text)
    spec = ModelSpec("large", f"large{script}:Large", (2048,), folder=str(tmp_path))
    resident = []
    for _ in range(8):
        forward = load_model(spec).build("cpu")
        assert isinstance(forward, torch._C.ScriptMethod)
        forward(torch.zeros(2, 2048))
        del forward
        gc.collect()
        resident.append(psutil.Process().memory_info().rss / 2**20)
    assert resident[-1] - resident[1] < 32, "of six models of 16 MiB each, all were kept"


class Typed(nn.Module):
    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(x)


TYPES = {
    "complex64": torch.fft.fft,
    "complex32": lambda x: torch.complex(x, x).to(torch.complex32),
    "float8_e4m3fn": lambda x: x.to(torch.float8_e4m3fn),
    "sparse": lambda x: x.to_sparse(),
    "quint8": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
    "bfloat16": lambda x: x.to(torch.bfloat16),
    "float64": lambda x: x.double(),
    "uint16": lambda x: x.abs().to(torch.uint16),
    "negative": lambda x: torch.fft.fft(x).conj().imag,
}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("compiled", [False, True])
def test_an_output_is_of_a_type_that_clients_can_read_or_refused_at_load(
    kind: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "made", lambda: Typed(TYPES[kind]), raising=False)
    spec = ModelSpec("mine", f"{__name__}:made", (4,), compiled=compiled)
    if kind in ("complex64", "complex32", "float8_e4m3fn", "sparse", "quint8"):
        with pytest.raises(
            InputError, match=rf"model 'mine': returns a tensor of type .*{kind}.*; supported are"
        ) as caught:
            load_model(spec)
        assert "\n" not in str(caught.value)
        return
    model = load_model(spec)
    x = torch.randn(3, 4)
    output = host_array(model.build("cpu")(x))
    own = {"bfloat16": "BF16", "negative": "FP32"}.get(kind) or datatype_of(kind)
    assert model.outputs[0].datatype == own and output.dtype == model.outputs[0].dtype
    torch.testing.assert_close(
        torch.from_numpy(plain_values(output, own).astype("float64")), TYPES[kind](x).double(), rtol=1e-4, atol=1e-4
    )


class Trained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(x))


@pytest.mark.parametrize("form", ["trace", "script", "export", "decomposed"])
@pytest.mark.parametrize("training", [True, False])
def test_a_file_in_training_mode_is_put_into_evaluation_mode_or_refused(
    form: str, training: bool, tmp_path: Path
) -> None:
    module, x = Trained().train(training), torch.randn(8, 4)
    path = str(tmp_path / ("model.pt" if form in ("trace", "script") else "model.pt2"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form in ("trace", "script"):
            graph = torch.jit.trace(module, x, check_trace=False) if form == "trace" else torch.jit.script(module)
            torch.jit.save(graph, path)
        else:
            program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            torch.export.save(program.run_decompositions() if form == "decomposed" else program, path)
    spec = ModelSpec("mine", path, (4,))
    if training and form != "script":
        with pytest.raises(InputError, match="made in training mode.*call eval"):
            load_model(spec)
        return
    forward = load_model(spec).build("cpu")
    torch.testing.assert_close(forward(x)[:1], forward(x[:1]))
    torch.testing.assert_close(forward(x), forward(x))


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_of_torch_save_is_named_so(suffix: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save(Trained().state_dict(), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        InputError, match=r"it is weights or a pickled module \(torch.save\).*use torch.jit.save"
    ) as caught:
        load_model(ModelSpec("mine", str(path), (4,)))
    assert "corrupt" not in str(caught.value)


def test_a_static_export_is_refused_with_the_argument_that_it_lacks(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Trained().eval(), (torch.randn(2, 4),)), tmp_path / "model.pt2")
    with pytest.raises(InputError, match="dynamic_shapes="):
        load_model(ModelSpec("mine", str(tmp_path / "model.pt2"), (4,)))


@pytest.mark.parametrize(
    "ends",
    [
        "import sys\nsys.exit(3)",
        "class Odd(BaseException): pass\nraise Odd('mine')",
        "raise KeyboardInterrupt",
        "import argparse\nargparse.ArgumentParser().parse_args(['--no'])",
    ],
)
@pytest.mark.parametrize("where", ["import", "call", "run"])
def test_whatever_a_models_code_raises_is_that_models_error(
    ends: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    lines = {place: "pass" if place != where else f"exec({ends!r})" for place in ("import", "call", "run")}
    name = f"ending_{where}_{abs(hash(ends))}"
    (tmp_path / f"{name}.py").write_text(f"""
from torch import nn
{lines["import"]}
class Net(nn.Module):
    def forward(self, x):
        {lines["run"]}
        return x
def make():
    {lines["call"]}
    return Net()
""")
    spec = ModelSpec("mine", f"{name}:make", (4,), folder=str(tmp_path))

    async def load() -> None:  # on a thread, as the server does
        await asyncio.get_running_loop().run_in_executor(None, load_model, spec)

    with pytest.raises(InputError, match="model 'mine': ") as caught:
        asyncio.run(load())
    assert "\n" not in str(caught.value)
