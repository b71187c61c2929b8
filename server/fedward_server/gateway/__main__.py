"""``python -m fedward_server.gateway``."""

from __future__ import annotations

import sys

from fedward_server.gateway.process import main

if __name__ == "__main__":
    sys.exit(main())
