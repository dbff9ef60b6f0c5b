#!/bin/bash
# In the guest: runs what the test outside says, one command after the other. A line in is `ID SCRIPT`, a line out is
# `done ID OUTPUT`, script and output in base64; the output's last line is the exit code.
port=(/dev/vport*)
exec <>"${port[0]}" >&0
echo "ready $(</proc/sys/kernel/random/boot_id)"
while read -r id text; do
    base64 -d <<<"$text" >/run/guest-command
    out=$(bash /run/guest-command 2>&1 </dev/null; echo "$?")
    echo "done $id $(base64 -w0 <<<"$out")"
done
