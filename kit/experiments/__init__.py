"""The experiments that the kit runs, and the contract they keep."""
