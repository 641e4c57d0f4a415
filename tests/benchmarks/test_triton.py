"""The comparison with Triton: what is offered and counted, how Triton is set up; with Triton itself where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.common import triton as set_up
from benchmarks.common.open_loop import Answer, poisson_arrivals
from benchmarks.common.triton import Batching, add_model, model_config, triton_command
from benchmarks.triton import Counts, TritonBenchmark, arrivals_of, counted, main, summarise
from serving.models.served import ModelSpec
from traces.errors import InputError

FOLDER = os.environ.get("TRITON_FOLDER", "")


def test_arrivals_come_by_time_at_the_rates_asked_for() -> None:
    arrivals = poisson_arrivals((300.0, 700.0), 20.0, 3, np.random.default_rng(0))
    assert np.all(np.diff(arrivals.due_s) >= 0) and arrivals.due_s[0] >= 0 and arrivals.due_s[-1] < 20.0
    n = len(arrivals.due_s)
    assert n == pytest.approx(20_000, abs=5 * 20_000**0.5)
    assert (arrivals.priority == 0).sum() == pytest.approx(6000, abs=5 * 6000**0.5)
    assert np.bincount(arrivals.model) == pytest.approx(np.full(3, n / 3), abs=5 * (n / 3) ** 0.5)
    gaps = np.diff(arrivals.due_s)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "exponential gaps"


def test_servers_are_offered_the_same_and_rounds_differ() -> None:
    config = TritonBenchmark(triton="")
    first, again, other = (arrivals_of(config, 400.0, 1.1, number) for number in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first.due_s, other.due_s)


def test_only_answers_that_the_client_has_in_time_are_goodput() -> None:
    answers = [
        Answer(0, 200, True, 90.0, 89.0),
        Answer(0, 200, True, 110.0, 20.0),  # in time by the server's clock, not by the client's
        Answer(1, 200, False, 240.0, 1.0),  # Triton does not say whether it is in time
        Answer(1, 503, False, 1.0, 1.0),
        Answer(1, 200, True, 251.0, 1.0),
    ]
    assert counted(answers, (100.0, 250.0), 2.0) == pytest.approx(
        {"goodput": 1.0, "high_violated": 50.0, "low_violated": 100 * 2 / 3, "refused": 20.0}
    )
    assert counted(answers[2:], (100.0, 250.0), 1.0)["high_violated"] == 0.0


def test_strait_is_ahead_only_if_it_is_at_every_load_above_the_first() -> None:
    def rows(*goodput: float) -> Counts:
        by_load = {load: [{"goodput": one + i} for i in range(3)] for load, one in zip((0.7, 1.1, 1.5), goodput)}
        return Counts([100.0, 101.0, 102.0], by_load)

    lost_below = summarise({"strait": rows(90, 120, 130), "triton": rows(100, 110, 120)})
    assert lost_below["ahead_above_0.9"] and lost_below["ahead"]["0.7"] == [-10.0, -10.0, -10.0]
    assert lost_below["capacity_rps"] == {"strait": 101.0, "triton": 101.0}
    assert lost_below["strait"]["1.1"]["goodput"] == 121.0
    assert not summarise({"strait": rows(100, 120, 119), "triton": rows(100, 110, 120)})["ahead_above_0.9"]
    assert "ahead" not in summarise({"strait": rows(1, 2, 3)})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": ["nothing"]}, "no built-in model 'nothing'"),
        ({"loads": []}, "--models, --loads"),
        ({"triton_margin_ms": 100.0}, "--triton_margin_ms: 100.0; it must be shorter"),
        ({"triton": "/nowhere"}, "pip install --no-deps --target FOLDER nvidia-pytriton"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TritonBenchmark(**({"triton": ""} | settings))


def test_triton_batches_by_two_priorities_and_rejects_what_waited_too_long() -> None:
    text = model_config("bert", "INT64", ((64,), (2, 3)), Batching(16, 2, 500))
    lines = [line.strip() for line in text.splitlines()]
    assert {
        'name: "bert"', "max_batch_size: 16", "max_queue_delay_microseconds: 500", "priority_levels: 2",
        "timeout_action: REJECT", "allow_timeout_override: true", "instance_group [{ count: 2, kind: KIND_CPU }]",
        'input [{ name: "input", data_type: TYPE_INT64, dims: [64] }]',
        'output [{ name: "output", data_type: TYPE_FP32, dims: [2, 3] }]',
    } <= set(lines)  # fmt: skip


class FakeTensor:
    """A tensor of Triton's."""

    def __init__(self, name: str, values: torch.Tensor) -> None:
        self.name, self.values = name, values

    @classmethod
    def from_dlpack(cls, name: str, values: torch.Tensor) -> FakeTensor:
        return cls(name, torch.utils.dlpack.from_dlpack(values))

    def to_dlpack(self) -> Any:
        return torch.utils.dlpack.to_dlpack(self.values)


def test_what_triton_runs_answers_each_request_of_a_batch_as_the_model_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(
        Tensor=FakeTensor,
        InferenceResponse=lambda outputs: outputs,
        get_input_tensor_by_name=lambda request, name: request[name],
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake)
    monkeypatch.setattr(os, "nice", lambda change: 0)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(torch._C, "_jit_set_profiling_executor", lambda on: on)
    monkeypatch.setattr(torch._C, "_jit_set_profiling_mode", lambda on: on)
    add_model(tmp_path, ModelSpec("wide", "toy_models:wide", (4,), "float32"), Batching(4))
    spec = importlib.util.spec_from_file_location("model", tmp_path / "models" / "wide" / "1" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    given = {"data_type": "TYPE_FP32", "dims": ["4"]}
    model.initialize({"model_config": json.dumps({"input": [given], "max_batch_size": 4})})
    inputs = [torch.randn(size, 4) for size in (1, 2, 1)]
    answers = model.execute([{"input": FakeTensor("input", one)} for one in inputs])
    for (answer,), one in zip(answers, inputs):
        torch.testing.assert_close(answer.values, model.forward(one))
        assert answer.name == "output"


def test_a_model_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Triton is given graphs"):
        add_model(tmp_path, ModelSpec("wide", "toy_models:wide", (4,), "float32", compiled=False), Batching())


def test_triton_runs_the_python_of_this_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "installed" / set_up.HOME
    stub = home / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    for folder in (home / "bin", home / "backends" / "python", stub):
        folder.mkdir(parents=True)
    (home / "bin" / "tritonserver").touch()
    with pytest.raises(InputError, match="no backend for Python"):
        set_up.check_triton(str(tmp_path / "installed"))
    (stub / "triton_python_backend_stub").touch()
    monkeypatch.setattr(set_up.sysconfig, "get_config_var", lambda name: "/lib" if name == "LIBDIR" else 1)
    set_up.check_triton(str(tmp_path / "installed"))
    words, environment = triton_command(str(tmp_path / "installed"), tmp_path, 1, 2)
    assert os.access(words[0], os.X_OK) and "--http-port=1" in words
    assert environment["PATH"].startswith(str(Path(sys.prefix) / "bin"))
    assert os.access(tmp_path / "backends" / "python" / "triton_python_backend_stub", os.X_OK)


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="needs nvidia-pytriton in a folder that TRITON_FOLDER names")
def test_triton_and_strait_answer_the_same_requests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--models", "[lstm]", "--loads", "[0.5]", "--seconds", "1", "--rounds", "1", "--triton", FOLDER]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    for server in ("strait", "triton"):
        assert found["capacity_rps"][server] > 0 and found[server]["0.5"]["goodput"] > 0
