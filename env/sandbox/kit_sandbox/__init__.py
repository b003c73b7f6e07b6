"""The sandbox: real services on one machine for trying and testing the kit."""
