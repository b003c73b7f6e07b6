# Try the project's folder ($1): write a MiB, create a symlink twice.
# The last line is `@missing`, `@other`, `@full WHY`, or `@ok LINK`.
[ -d "$1" ] || { echo "@missing"; exit; }
# A run writes below kit/, which its first user made and which is closed to all others.
[ ! -e "$1/kit" ] || [ -O "$1/kit" ] || { echo "@other"; exit; }
folder=$(mktemp -d "$1/.kit-doctor.XXXXXX" 2>&1) || { echo "@full $folder"; exit; }
trap 'rm -rf "$folder"' EXIT
written=$(dd if=/dev/zero of="$folder/file" bs=64k count=16 2>&1) || { echo "@full $written"; exit; }
for value in first second; do ln -sT "$value" "$folder/link" 2>/dev/null; done
echo "@ok $(readlink "$folder/link")"
