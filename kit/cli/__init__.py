"""The `kit` command: thin commands, one file a group, each imported when it is called.

A command reads its options, calls one room and prints the answer. Begin reading with `main`
(how commands are found, exit codes), then `options` (what all commands share).
"""
