"""For all tests: signals reach the processes that tests start, also where the suite itself runs in the background.

Hypothesis tries the same examples in every run; ``--hypothesis-profile=default`` looks for new ones.
"""

from __future__ import annotations

import signal

from hypothesis import settings

settings.register_profile("fixed", derandomize=True)
settings.load_profile("fixed")

# a shell ignores SIGINT for what it starts with '&', nohup ignores SIGHUP, and every child would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
