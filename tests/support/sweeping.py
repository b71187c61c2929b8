"""A sweep of a second a run on the tiny base, and workers that only pretend.

Example:
    file = wards(tmp_path, grid='"privacy.epsilon" = [1.0, 8.0]')
    plan, _ = Plan.load(file)
"""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from fedward_simulations.sweep.worker import Advanced, Ended, Failed, Order
from support.tiny import WORDS, tiny_base

LABELS = ("lung", "skin", "bone")
FIRST = ("cough", "burn", "fracture")


def wards(folder: Path, *, head: str = "", grid: str = "", rounds: int = 2, extra: str = "") -> Path:
    """Lay out data, base, ``run.toml`` and ``sweep.toml`` in a folder and give the sweep file's path."""
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, 3, 150)
    rows = [f"{FIRST[n]} {' '.join(generator.choice(WORDS, 3))},{LABELS[n]}" for n in numbers]
    (folder / "notes.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (folder / "run.toml").write_text(
        f'schema = 1\nname = "wards"\n[model]\nbase = "{tiny_base(folder / "base").base}"\nmax_tokens = 32\n'
        f"[task]\nlabels = {list(LABELS)}\n[adapter]\nrank = 2\nalpha = 8.0\n"
        f'[data]\ntrain = "{folder / "notes.csv"}"\n[partition]\nsites = 2\nminimum_units = 5\n'
        "[privacy]\ndelta = 0.001\nvalidation_fraction = 0.2\n"
        f'[[stages]]\nname = "head"\ntrain = ["head"]\nrounds = {rounds}\n'
        '[[stages]]\nname = "adapter"\ntrain = ["adapter"]\nrounds = 1\nsampling_rate = 0.5\n' + extra
    )
    file = folder / "sweep.toml"
    file.write_text(f'name = "wards"\nrun = "run.toml"\n{head}\n[grid]\n{grid}\n')
    return file


def order(name: str, *, kin: str = "", folder: Path = Path("nowhere")) -> Order:
    """An order for the workers below, who read its name alone."""
    return Order(name=name, run_file="", kin=kin, out=folder / name, log=folder / f"{name}.log")


def pretend(orders: Connection, threads: int) -> None:
    """Do what an order's name says: end, fail, die, be killed, or take for ever."""
    while True:
        try:
            job: Order = orders.recv()
        except EOFError:
            return
        orders.send(Advanced(job.name, 1))
        if job.name.startswith("die"):
            os._exit(3)
        if job.name.startswith("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if job.name.startswith("sleep"):
            time.sleep(3600)
        orders.send(Failed(job.name, "no", "try") if job.name.startswith("fail") else Ended(job.name))


def teller(orders: Connection, threads: int) -> None:
    """As ``pretend``, and the news says which process it was."""
    while True:
        try:
            job: Order = orders.recv()
        except EOFError:
            return
        time.sleep(0.05)
        orders.send(Failed(job.name, str(os.getpid()), ""))
