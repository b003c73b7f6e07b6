# The login node's side of the race: in folder $1, with $2 symlinks, waiting $3 times 0.05 s.
cd "$1" || exit 74
for _ in $(seq "$3"); do [ -e ready ] && break; sleep 0.05; done
touch go; race login "$2"
for _ in $(seq "$3"); do [ -e seen ] && break; sleep 0.05; done
echo "@job"; cat seen
rm -f race-* ready go
