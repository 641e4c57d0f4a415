"""The example of real models: tritonclient calls each by its own tensor names, and the answers are those of a direct call."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from tensor_server import Client

from benchmarks.common.server import free_port
from serving.config import ServeConfig
from serving.server import Server

pytestmark = pytest.mark.slow
onnxruntime = pytest.importorskip("onnxruntime")
transformers = pytest.importorskip("transformers")
EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "real_models"


def module_of(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"real_models_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("real_models")
    module_of(EXAMPLE / "make.py").write(made, width=32, layers=2)
    return made


@pytest.fixture(scope="module")
def ports(folder: Path) -> Iterator[dict[str, int]]:
    """The example, served on a thread of its own until the tests have ended."""
    found = {"http": free_port(), "grpc": free_port()}
    config = ServeConfig(
        models=str(folder), port=found["http"], grpc=True, grpc_port=found["grpc"], streams=2, batch_sizes=[1, 2]
    )
    config.deadline_floor_ms = 10_000.0
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        opened = await asyncio.to_thread(Server(config).open)
        running = await opened.start()
        ready.set()
        await asyncio.to_thread(stop.wait)
        await running.drain()
        await running.close()
        await opened.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    while not ready.wait(0.1):
        assert thread.is_alive(), "the server did not start"
    yield found
    stop.set()
    thread.join()


def network(folder: Path, name: str, kind: str, **tensors: np.ndarray) -> dict[str, np.ndarray]:
    """What transformers answers by itself."""
    module = getattr(transformers, kind).from_pretrained(folder / name).eval()
    with torch.inference_mode():
        result = module(**{key: torch.from_numpy(one) for key, one in tensors.items()})
    return {key: one.numpy() for key, one in result.items()}


Given = dict[str, np.ndarray]
RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ids(*shape: int) -> np.ndarray:
    return RNG.integers(0, 1000, shape)


def masked(size: int) -> Given:
    mask = np.ones((2, size), np.int64)
    mask[1, max(size // 2, 1) :] = 0
    return {"input_ids": ids(2, size), "attention_mask": mask}


def by_onnx(folder: Path, given: Given) -> Given:
    session = onnxruntime.InferenceSession(str(folder / "tagger.onnx"))
    return dict(zip(["tags"], session.run(None, given)))


def by_factory(folder: Path, name: str, given: Given) -> Given:
    result = module_of(folder / f"{name}.py").make()(**given)
    return result if isinstance(result, dict) else {"probability": result}


def by_words(folder: Path, given: Given) -> Given:
    words = module_of(folder / "words.py")
    made = words.labels(**network(folder, "bert", "BertForSequenceClassification", **words.tokens(**given)))
    return made | {"label": made["label"].astype(str)}


Direct = Callable[[Path, Given], Any]
CALLS: list[tuple[str, Given, list[str], Direct]] = [
    *(("bert", masked(size), ["logits"],
       lambda folder, given: network(folder, "bert", "BertForSequenceClassification", **given))
      for size in (1, 8, 13, 77, 128)),
    ("vit", {"pixel_values": floats(2, 3, 64, 64)}, ["logits"],
     lambda folder, given: network(folder, "vit", "ViTForImageClassification", **given)),
    ("resnet", {"pixel_values": floats(2, 3, 64, 64)}, ["logits"],
     lambda folder, given: network(folder, "resnet", "ResNetForImageClassification", **given)),
    ("yolos", {"pixel_values": floats(2, 3, 64, 64)}, ["logits", "pred_boxes", "last_hidden_state"],
     lambda folder, given: network(folder, "yolos", "YolosForObjectDetection", **given)),
    *(("wav2vec2", {"input_values": floats(1, size)}, ["logits"],
       lambda folder, given: network(folder, "wav2vec2", "Wav2Vec2ForCTC", **given)) for size in (512, 3001, 16000)),
    *(("tagger", {"ids": ids(3, size)}, ["tags"], by_onnx) for size in (1, 9, 100)),
    ("forest", {"features": RNG.standard_normal((2, 8)).astype(np.float32)}, ["probability"],
     lambda folder, given: by_factory(folder, "forest", given)),
    ("mood", {"text": np.array([[b"great day"], ["schlecht, ja böse".encode()]], object)}, ["mood", "chance"],
     lambda folder, given: by_factory(folder, "mood", given)),
    ("reader", {"text": np.array([b"a great day", b"the day after a poor day"], object)}, ["label", "chance"], by_words),
]  # fmt: skip
TYPES = {"float32": "FP32", "int64": "INT64", "object": "BYTES"}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(
    ("model", "given", "outputs", "direct"), CALLS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_model_answers_as_it_does_directly(
    model: str, given: Given, outputs: list[str], direct: Direct, protocol: str, folder: Path, ports: dict[str, int]
) -> None:
    client = Client(protocol, ports[protocol])
    answer = client.infer(model, **{name: (one, TYPES[one.dtype.name]) for name, one in given.items()})
    expected = direct(folder, given)
    for name in outputs:
        found = answer.as_numpy(name)
        if found.dtype == object:
            assert [one.decode() for one in found.ravel()] == expected[name].ravel().tolist()
        else:
            np.testing.assert_allclose(found, expected[name], atol=1e-4, rtol=1e-4)
