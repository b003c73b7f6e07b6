"""MLflow: what a run logs, and delivery that may be repeated."""
