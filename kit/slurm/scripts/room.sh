# $1 a folder. Prints what df and, where the site has them, Lustre's and Linux' quota tools say of it:
# for the folder's project, the user and the group. A tool that does not answer costs 10 s each.
# `@there` comes first if the path $2 exists.
export LC_ALL=C
[ ! -e "$2" ] || echo @there
echo @blocks; df -Pk "$1"
echo @inodes; df -Pi "$1"
echo @quota
if command -v lfs >/dev/null; then
    read -r project _ < <(timeout 10 lfs project -d "$1")
    [ "${project:-0}" = 0 ] || timeout 10 lfs quota -p "$project" "$1"
    timeout 10 lfs quota -u "$(id -u)" "$1"
    timeout 10 lfs quota -g "$(id -g)" "$1"
elif command -v quota >/dev/null; then
    line=$(df -P "$1" | tail -n 1)
    timeout 10 quota --user --group --no-wrap --raw-grace --filesystem="${line##* }"
fi 2>/dev/null
exit 0
