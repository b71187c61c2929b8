"""What the promises about speed and size are measured with: ``python -m fedward_simulations.bench``.

One file a benchmark; each gives a :class:`~fedward_simulations.bench.table.Table` and prints nothing.
"""
