#!/bin/busybox sh
# The first process of the machine: this one's files below a layer in memory, then systemd with a single service.
PATH=/bin
mkdir -p /proc /sys /dev /host /layer /machine
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in $(cat /modules); do insmod "$module"; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host
mount -t tmpfs -o size=75% layer /layer
mkdir /layer/upper /layer/work
mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work machine /machine
mkdir -p /machine/run
mount -t tmpfs run /machine/run
mkdir -p /machine/run/systemd/system
cp -r /unit/* /machine/run/systemd/system
ip link set lo up
umount /dev /proc
exec switch_root /machine /lib/systemd/systemd --unit=machine.service --log-level=err --show-status=false
