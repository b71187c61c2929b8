"""The operator's side of a deployment: a declarative folder, and the processes that make Flower agree with it."""
