"""The coordinator of a federation: round loop, admission, aggregation, checkpoints. Runs without torch."""
