# A job that got nothing of the login (sbatch --export=NIL) has no `module`; sites define it for
# their login shells.
if ! command -v module >/dev/null && [ -r /etc/profile ]; then
    mask=$(umask)
    # shellcheck source=/dev/null
    . /etc/profile
    umask "$mask"
fi
