"""The submitter: submits run requests to Slurm and publishes the results."""
