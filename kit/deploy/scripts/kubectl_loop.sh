# Keep `kubectl port-forward …` (the arguments after the first) running until the ssh connection ends,
# which closes stdin, or until stdin brought no line for $1 seconds: of a client whose network has
# vanished, sshd may not learn for hours. sshd gave this command a process group of its own, which
# is ended as a whole, also if this shell was killed before. A trap for TERM would leave a kubectl
# that is just started. After kubectl ended, `@ended CODE` is printed.
# The lines are joined to one for a csh login, so each command ends with a semicolon.
exec 3<&0;
silence="$1"; shift;
{ while timeout --foreground "$silence" head -n 1 <&3 | grep -q ""; do :; done; kill 0; } >/dev/null 2>&1 &
while :; do
    kubectl "$@" </dev/null 3<&- 2>&1;
    echo "@ended $?";
    sleep 3;
done
