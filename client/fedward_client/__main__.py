"""``python -m fedward_client`` is ``fedward-client``."""

from fedward_client.cli import main

main()
