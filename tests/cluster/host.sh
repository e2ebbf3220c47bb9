#!/usr/bin/env bash
# Process 1 of a host: sshd in namespaces of its own. host.sh NAME FOLDER, from `unshare` as two_hosts.py calls it.
set -euo pipefail
name=$1 folder=$2
hostname "$name"
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
mount --bind "$folder/passwd" /etc/passwd # with a home of this host's own
ip link set lo up
while ! ip link show eth0 > /dev/null 2>&1; do sleep 0.1; done # comes from outside
ip address add "$(cat "$folder/address")" dev eth0
ip link set eth0 up
ip route add default via "$(cat "$folder/gateway")"
exec /usr/sbin/sshd -D -E "$folder/sshd.log" -f "$folder/sshd_config"
