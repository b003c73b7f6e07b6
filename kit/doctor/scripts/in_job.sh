# shellcheck shell=bash disable=SC2154 # $python, $link and `inside` are set before this text
# report_job: prints what a job sees, a line for each thing: @NAME VALUE. $link is where a published
# environment would be; without one the profile's own Python is looked at.
report_job() {
    local program=$python venv words=(torch)
    printf '@%s %s\n' node "$(hostname)" user "$(id -un)" umask "$(umask)" locale "${LC_ALL:-}" \
        modules "${LOADEDMODULES:-}" srun "$(command -v srun)"
    if venv=$(readlink -e "$link"); then
        program=$venv/bin/python words=(torch ray)
        unset PYTHONPATH
    fi
    inside "$program" -c '
import importlib, sys
print("@python", sys.version.split()[0], sys.executable, flush=True)
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as err:
        print("@missing", err)
if torch := sys.modules.get("torch"):
    print("@torch", torch.__version__)
    print("@gpus", torch.cuda.device_count())
' "${words[@]}"
}
