"""The operator's only public port, a process of its own: nothing here imports Flower or knows what a run is."""
