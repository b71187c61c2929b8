"""Doctests are collected by importing: what needs an extra that is not installed is left out."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore_glob = [] if find_spec("ray") else ["fedward_simulations/ray/engine.py"]
