"""The only torch in common: frozen bases, adapters on them, tasks, metrics. Knows nothing of rounds or privacy."""
