#!/bin/bash
# boot.sh FOLDER: run systemd as PID 1 of namespaces of its own, on an overlay of / whose changes go to FOLDER and to nobody else.
# Run as root inside `unshare -m -p -u -i -n -C --fork --kill-child`, with FOLDER on a file system that an overlay may write to (tmpfs).
set -euo pipefail
folder=$1
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$folder"
mkdir "$folder"/{upper,work,root}
mount -t overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" overlay "$folder/root"
cd "$folder/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755,nosuid tmpfs dev
for name in null zero full random urandom tty; do touch "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin; ln -s fd/1 dev/stdout; ln -s fd/2 dev/stderr
for path in "${@:2}"; do mkdir -p ".$path"; mount --rbind "$path" ".$path"; done   # what is not on the file system of /
rm -f etc/systemd/system/*.wants/* etc/machine-id
: > etc/machine-id
ln -sf /lib/systemd/system/multi-user.target etc/systemd/system/default.target
hostname box
ip link set lo up 2>/dev/null || true
mkdir old
pivot_root . old
umount -l /old
exec env -i container=offrld-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=journal --show-status=no
