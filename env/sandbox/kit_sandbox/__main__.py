"""`python -m kit_sandbox`: the same commands as `kit sandbox`."""

from kit_sandbox.commands import group

if __name__ == "__main__":
    group(prog_name="kit sandbox")
