"""``python -m fedward_server`` is ``fedward-server``."""

from fedward_server.cli import main

if __name__ == "__main__":  # a test imports every module of the server
    main()
