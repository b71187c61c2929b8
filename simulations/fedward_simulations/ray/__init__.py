"""Flower's Ray engine: the same apps, with virtual sites on all processors of a machine or of a Ray cluster.

    cluster   a Ray of our own, or one that runs: joined, or refused in a few seconds; ended without a trace
    engine    the driver's side: Flower's in-memory Grid and simulation engine around a running ServerApp
    sites     a worker's side: any site, from a description that all workers share and from what Flower keeps of it

Any worker serves any site. What must outlive a message, a site's ledger and its newest reply, travels in Flower's
``Context.state``; what never changes lies in Ray's object store, once.
"""
