"""Makes protocol.desc from the .proto files: ``python -m serving.api.protocol.generate`` (needs grpcio-tools).

What protoc itself writes for Python runs only with a protobuf as new as the one that wrote it, and puts the messages in
the default pool, where they collide with those of another package that brings this protocol (tritonclient does) as soon
as one process imports both. So only the compiled description is kept, and the messages are made from it at import, in a
pool of their own; any protobuf from 4.22 does that.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from traces.files import atomic_path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Command line. Returns the exit status of protoc."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "protocol.bin"
        status = protoc.main(
            ["protoc", f"-I{HERE}", f"--descriptor_set_out={made}", *map(str, sorted(HERE.glob("*.proto")))]
        )
        if status != 0:
            return int(status)
        described = FileDescriptorSet.FromString(made.read_bytes()).SerializeToString(deterministic=True)
    with atomic_path(HERE / "protocol.desc") as path:
        path.write_bytes(described)
    return 0


if __name__ == "__main__":
    sys.exit(main())
