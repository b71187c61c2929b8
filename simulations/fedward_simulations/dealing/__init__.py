"""Records, and who gets which: sources, partitions, and the way from an unknown file to a run file."""
