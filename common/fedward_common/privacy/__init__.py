"""Privacy arithmetic: randomness, mechanism, events, accounting, calibration, ledger.

Knows nothing of models or messages.
"""
