"""Sweeps: one run file, many values and seeds, and a table of what came out.

    file       SWEEP.toml: the strict table that a person writes
    plan       the file and its run file -> points, and a job for each point and seed; all checked before anything runs
    folder     DIR on disk: which jobs are done, which failed; what is found again by ``--resume``
    worker     one process that runs jobs, one after the other, on a model and data that it keeps
    team       several workers; a worker that dies costs one job
    sweeping   the whole story: plan and folder -> team -> tables and plots
    table      one row a run, and one row a point with its interval; CSV and Parquet
    tuning     what all runs together would cost at a real site
    plots      pictures
    progress   what is done and how long the rest takes; view draws it

A job is one run: the same path, the same folder and the same bits as ``fedward-sim run`` with that run file.
"""
