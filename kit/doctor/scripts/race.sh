# Create symlinks in the same order as the other side and print whom each of them names.
# The winner of one pauses, so that the other catches up and they meet again and again.
race() { # race NAME COUNT
    for n in $(seq "$2"); do
        ln -sT "$1" "race-$n" 2>/dev/null; winner=$(readlink "race-$n"); echo "$winner"
        [ "$winner" != "$1" ] || sleep "0.00$((RANDOM % 10))"
    done
}
