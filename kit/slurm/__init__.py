"""Jobs on any Slurm, at most one execution per attempt."""
