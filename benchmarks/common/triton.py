"""NVIDIA Triton on the CPUs, from the package nvidia-pytriton, whose server runs models of this interpreter's PyTorch.

The package holds the server (``tritonserver``) and its Python backend. The backend runs the Python of the virtual environment
that comes first on the path, so that both servers of a comparison run the same PyTorch.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from serving.models.load import load_model
from serving.models.served import ModelSpec
from traces.errors import InputError

SETUP = "pip install --no-deps --target FOLDER nvidia-pytriton"
HOME = Path("pytriton") / "tritonserver"
MODEL_FILE = Path(__file__).with_name("triton_model.py")
TYPES = {"FP32": "TYPE_FP32", "INT64": "TYPE_INT64"}
NO_TIMEOUT_US = 600_000_000  # of requests without one of their own; theirs may only be shorter


class Batching(NamedTuple):
    """How Triton serves each model.

    Attributes:
        max_batch_size: most requests in a batch.
        instances: processes of each model, which run side by side.
        delay_us: how long a batch that is not full waits for more requests.
    """

    max_batch_size: int = 8
    instances: int = 1
    delay_us: int = 0


class TritonCommand(NamedTuple):
    """What starts a server.

    Attributes:
        words: program and arguments.
        environment: variables beside those of this process.
    """

    words: list[str]
    environment: dict[str, str]


def check_triton(folder: str, flag: str = "--triton") -> None:
    """Refuse a folder without Triton, or a Python that Triton cannot run.

    Raises:
        InputError: with what would be right.
    """
    stubs = Path(folder) / HOME / "python_backend_stubs"
    if not (Path(folder) / HOME / "bin" / "tritonserver").is_file():
        raise InputError(f"{flag} {folder}: it holds no {HOME}/bin/tritonserver; to have it: {SETUP}")
    if not (stubs / _version() / "triton_python_backend_stub").is_file():
        raise InputError(f"{flag} {folder}: Triton has no backend for Python {_version()}")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        raise InputError(f"{flag}: Triton needs a Python with a shared library; {sys.base_prefix} has none")


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def triton_command(folder: str, home: Path, http_port: int, grpc_port: int) -> TritonCommand:
    """The command that serves the model repository ``home / "models"``.

    Args:
        folder: where the package is installed.
        home: folder of this server; gets its backend.
        http_port: port of HTTP.
        grpc_port: port of gRPC.
    """
    installed = Path(folder).absolute()
    backend = home / "backends" / "python"
    shutil.copytree(installed / HOME / "backends" / "python", backend)
    stub = shutil.copy(installed / HOME / "python_backend_stubs" / _version() / "triton_python_backend_stub", backend)
    os.chmod(stub, 0o755)
    server = installed / HOME / "bin" / "tritonserver"
    os.chmod(server, server.stat().st_mode | 0o111)
    libraries = [sysconfig.get_config_var("LIBDIR"), str(installed / "nvidia_pytriton.libs")]
    words = [
        str(server), f"--model-repository={home / 'models'}", f"--backend-directory={home / 'backends'}",
        "--http-address=127.0.0.1", f"--http-port={http_port}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}",
        "--allow-metrics=false",
    ]  # fmt: skip
    path = os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ.get("PATH", "")])
    # Beside torch.set_num_threads, which holds for the thread that calls it.
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return TritonCommand(words, {"LD_LIBRARY_PATH": os.pathsep.join(libraries), "PATH": path} | threads)


def model_config(name: str, data_type: str, shapes: Sequence[Sequence[int]], batching: Batching) -> str:
    """A model's ``config.pbtxt``: dynamic batching by two priorities, the urgent first, timeouts refused.

    Args:
        name: of the model.
        data_type: of its input, in the protocol's words.
        shapes: of an item of its input and of its output.
        batching: how it is served.
    """
    dims = [", ".join(map(str, shape)) for shape in shapes]
    return f"""name: "{name}"
backend: "python"
max_batch_size: {batching.max_batch_size}
input [{{ name: "input", data_type: {TYPES[data_type]}, dims: [{dims[0]}] }}]
output [{{ name: "output", data_type: TYPE_FP32, dims: [{dims[1]}] }}]
instance_group [{{ count: {batching.instances}, kind: KIND_CPU }}]
dynamic_batching {{
  max_queue_delay_microseconds: {batching.delay_us}
  priority_levels: 2
  default_priority_level: 2
  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {NO_TIMEOUT_US}
    allow_timeout_override: true
  }}
}}
"""


def add_model(home: Path, spec: ModelSpec, batching: Batching) -> None:
    """Put a model into the repository ``home / "models"``, as the graph that Strait's CPU executor runs.

    Args:
        home: folder of the server.
        spec: the model; with one input "input" and one output "output".
        batching: how it is served.

    Raises:
        InputError: it cannot be loaded, or it is not such a model.
    """
    served = load_model(spec)
    forward = served.build("cpu")
    if len(served.inputs) != 1 or len(served.outputs) != 1 or not isinstance(forward, torch.ScriptMethod):
        raise InputError(f"model {spec.name!r}: Triton is given graphs with one input and one output only")
    shapes = served.inputs[0].shape, served.outputs[0].shape
    folder = home / "models" / spec.name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(model_config(spec.name, served.inputs[0].datatype, shapes, batching))
    shutil.copy(MODEL_FILE, folder / "1" / "model.py")
    torch.jit.save(forward.owner, str(folder / "1" / "model.pt"))
