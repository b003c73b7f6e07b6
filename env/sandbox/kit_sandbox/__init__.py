"""The sandbox: the services of a cloud and of a Slurm site on this machine, for `kit sandbox`.

A package of its own beside the configuration that it fills in; it uses `kit.base` only and `kit`
finds it by an entry point. Begin with `up` in `commands.py`. The services are started from the
checkout that the command is called from.
"""
