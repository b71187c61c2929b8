"""Make ``door_pb2.py`` and ``door_pb2_grpc.py`` from ``door.proto``: ``python -m fedward_client.door.generate``.

For developers: needs grpcio-tools. A test makes them again and compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["generate"]

HERE = Path(__file__).parent
SOURCE, MODULES = "door.proto", ("door_pb2.py", "door_pb2_grpc.py")
PLAIN, RELATIVE = "import door_pb2 as door__pb2\n", "from . import door_pb2 as door__pb2\n"


def generate(target: Path) -> None:
    """Write both modules into a folder, with the import of one by the other made relative.

    Raises:
      RuntimeError: the compiler refuses the source.
    """
    from grpc_tools import protoc

    arguments = [f"--proto_path={HERE}", *(f"--{kind}_out={target}" for kind in ("python", "grpc_python"))]
    if protoc.main(["protoc", *arguments, SOURCE]) != 0:
        raise RuntimeError(f"protoc refuses {SOURCE}")
    stubs = target / MODULES[-1]
    text = stubs.read_text(encoding="utf-8")
    if text.count(PLAIN) != 1:
        raise RuntimeError("the compiler writes another import than expected")
    stubs.write_text(text.replace(PLAIN, RELATIVE), encoding="utf-8")


if __name__ == "__main__":
    generate(HERE)
    sys.exit(0)
