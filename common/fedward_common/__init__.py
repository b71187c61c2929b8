"""What both sides of a federation share: nouns, bytes, privacy arithmetic. No flwr outside wire.

Importing any part of fedward turns off telemetry, update checks and run-time installs of the libraries it builds on,
before those are imported: a site's machine calls nobody whom its owner did not name.
"""

import os

for _name, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}.items():
    os.environ[_name] = _value
