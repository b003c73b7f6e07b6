# load_module NAME: exit 96 where it cannot be loaded. Modules 3.2 exits 0 all the same: then
# LOADEDMODULES neither has the name nor has changed (an alias is listed under another name).
load_module() {
    local before=${LOADEDMODULES-}
    if ! module load "$1"; then
        echo "the module $1 could not be loaded" >&2
        exit 96
    fi
    case :${LOADEDMODULES-}: in *":$1:"* | *":$1/"*) return ;; esac
    if [ "${LOADEDMODULES-}" = "$before" ]; then
        echo "the module $1 could not be loaded: it is not in LOADEDMODULES" >&2
        exit 96
    fi
}
