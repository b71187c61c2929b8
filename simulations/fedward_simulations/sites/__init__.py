"""The virtual sites of a run: what each is, how it behaves, and what is kept of it."""
