"""Everything that runs on the supercomputer, and nothing else."""
