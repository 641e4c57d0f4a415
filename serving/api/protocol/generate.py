"""Makes inference_pb2.py from inference.proto: ``python -m serving.api.protocol.generate`` (needs grpcio-tools).

What protoc itself writes for Python runs only with a protobuf as new as the one that wrote it, and puts the messages in
the default pool, where they collide with those of another package that brings this protocol (tritonclient does) as soon
as one process imports both. So only the compiled description is kept, and the messages are made from it at import, in a
pool of their own; any protobuf from 4.22 does that.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from traces.files import atomic_write_text

HERE = Path(__file__).resolve().parent
WIDTH = 24  # bytes a line

MODULE = '''\
# Made by: python -m serving.api.protocol.generate (from inference.proto). Do not edit.
# ruff: noqa
"""The messages of inference.proto."""

from typing import Any

from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

_FILE = (
{lines}
)

_pool = DescriptorPool()
_pool.AddSerializedFile(_FILE)
DESCRIPTOR = _pool.FindFileByName("inference.proto")


def __getattr__(name: str) -> Any:
    if name not in DESCRIPTOR.message_types_by_name:
        raise AttributeError(f"no message {{name!r}} in inference.proto")
    made = GetMessageClass(DESCRIPTOR.message_types_by_name[name])
    globals()[name] = made
    return made
'''


def main() -> int:
    """Command line. Returns the exit status of protoc."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "inference.bin"
        status = protoc.main(["protoc", f"-I{HERE}", f"--descriptor_set_out={made}", str(HERE / "inference.proto")])
        if status != 0:
            return int(status)
        described = FileDescriptorSet.FromString(made.read_bytes()).file[0].SerializeToString(deterministic=True)
    lines = "\n".join(f"    {described[i : i + WIDTH]!r}" for i in range(0, len(described), WIDTH))
    atomic_write_text(HERE / "inference_pb2.py", MODULE.format(lines=lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
