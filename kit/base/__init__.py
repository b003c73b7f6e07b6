"""Errors, settings, files, secrets, hosts and text: what every other room may use."""
