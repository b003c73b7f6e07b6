"""The checks of a profile, and their diagnoses."""
