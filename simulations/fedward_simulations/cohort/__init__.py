"""The cohort engine: the data work of many virtual sites in one batched forward and backward over one frozen base.

    LocalWork of K sites -> engine    groups those that can be computed together; evaluates, then takes the local steps
                            records   the drawn records of all sites, cut into physical batches of like lengths
                            stacking  the trained layers, a weight for each site; per-record gradients as they pass
                            sums      records to units, clipped, one float64 sum for each site
                            memory    how many records and sites fit
                         -> LocalResult of each site, or what went wrong there

    doors                   between Grid and sites: opens the messages of a round ahead, K at a time

What is computed is what :class:`~fedward_client.training.LocalTrainer` computes for each site alone; tests say so.
Which sites share a batch has no effect on any of them beyond rounding.
"""
