"""``python -m fedward_simulations`` is ``fedward-sim``."""

from fedward_simulations.cli import main

main()
