"""Run folders, run ids, the history, pipelines and their stages, run requests."""
