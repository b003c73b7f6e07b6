"""The `kit` command."""
