"""Usage multiplied by the profile's rates: estimates, bills, waste."""
