# Keep `kubectl port-forward …` (the arguments) running until the ssh connection ends, which
# closes stdin: sshd gave this command a process group of its own, which is ended as a whole,
# also if this shell was killed before. A trap for TERM would leave a kubectl that is just started.
# After kubectl ended, `@ended CODE` is printed.
# The lines are joined to one for a csh login, so each command ends with a semicolon.
exec 3<&0;
{ cat <&3; kill 0; } >/dev/null 2>&1 &
while :; do
    kubectl "$@" </dev/null 3<&- 2>&1;
    echo "@ended $?";
    sleep 3;
done
