# Print the first bytes of the server at host $1, port $2; an sshd sends SSH-2.0 first.
exec 3<>"/dev/tcp/$1/$2" && head -c 4 <&3
