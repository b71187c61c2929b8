"""For all tests: signals reach the processes that tests start, also where the suite itself runs in the background."""

from __future__ import annotations

import signal

# a shell ignores SIGINT for what it starts with '&', nohup ignores SIGHUP, and every child would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
