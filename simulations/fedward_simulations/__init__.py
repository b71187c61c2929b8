"""Virtual sites on one machine, through the same coordinator, plan, policy, gate and codec as real ones."""
