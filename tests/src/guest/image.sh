#!/bin/sh
# Makes what a guest boots from: DIR/root.ext4 (Debian with systemd), DIR/vmlinuz (its kernel) and DIR/qemu (the
# machine, unpacked and not installed: the host's packages stay as they are). Nothing of orlop is in it.
#
# usage: image.sh DIR AGENT
set -eu
dir=$1 agent=$2
suite=bookworm
packages=systemd,systemd-sysv,dbus,nftables,iproute2,kmod,udev,procps
root=$dir/root

mkdir -p "$root" "$dir/kernel"
mmdebstrap --quiet --variant=extract --include=qemu-system-x86 "$suite" "$dir/qemu" >"$dir/qemu.log" 2>&1 &
qemu=$!

# The kernel's package is unpacked too: installing it would make an initramfs, and this kernel has ext4 and nvme built in.
export KERNEL_DIR="$dir/kernel"
# shellcheck disable=SC2016
mmdebstrap --quiet --variant=minbase --include="$packages" --customize-hook='
    export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
    cd "$KERNEL_DIR"
    apt-get download "$(apt-cache depends linux-image-cloud-amd64 | sed -n "s/.*Depends: \(linux-image-\)/\1/p")"
    ' "$suite" "$root"
for deb in "$dir"/kernel/*.deb; do
    # A plain unpacking would put a directory in place of the link from /lib to /usr/lib.
    dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$root"
done
for kernel in "$root"/lib/modules/*; do
    chroot "$root" depmod "${kernel##*/}"
done
mv "$root"/boot/vmlinuz-* "$dir/vmlinuz"
rm -rf "$root"/usr/share/doc "$root"/usr/share/man "$root"/usr/share/locale "$root"/var/cache/apt/* "$root"/boot/*

units=$root/etc/systemd/system
# What a desk or a mail server wants at boot and a node does not; each costs a second on a processor made of software.
for unit in systemd-udev-trigger systemd-logind systemd-user-sessions systemd-update-utmp systemd-update-utmp-runlevel \
    systemd-firstboot systemd-pstore e2scrub_reap modprobe@fuse modprobe@configfs modprobe@dm_mod modprobe@loop \
    modprobe@drm modprobe@efi_pstore getty@tty1 serial-getty@ttyS0; do
    ln -sf /dev/null "$units/$unit.service"
done
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    sys-fs-fuse-connections.mount sys-kernel-config.mount; do
    ln -sf /dev/null "$units/$unit"
done
echo guest >"$root/etc/hostname"
echo 127.0.0.1 localhost guest >"$root/etc/hosts"
: >"$root/etc/fstab"
: >"$root/etc/machine-id"
printf '%s\n' virtio_pci virtio_net virtio_console >"$root/etc/modules-load.d/guest.conf"
ln -sf /lib/systemd/system/multi-user.target "$units/default.target"

install -m 0755 "$agent" "$root/usr/local/sbin/guest-agent"
cat >"$units/guest-agent.service" <<'UNIT'
[Unit]
Description=Runs the commands of the test outside
After=systemd-modules-load.service

[Service]
ExecStart=/usr/local/sbin/guest-agent
Restart=always

[Install]
WantedBy=multi-user.target
UNIT
cat >"$units/guest-link.service" <<'UNIT'
[Unit]
Description=The link to the test outside
Wants=network.target network-online.target
Before=network.target network-online.target
After=systemd-modules-load.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip addr add 192.0.2.3/24 dev eth0 && ip link set eth0 up && ip route add default via 192.0.2.2'

[Install]
WantedBy=multi-user.target
UNIT
mkdir -p "$units/multi-user.target.wants"
for unit in guest-agent guest-link; do
    ln -sf "../$unit.service" "$units/multi-user.target.wants/$unit.service"
done

truncate -s 2G "$dir/root.ext4"
mkfs.ext4 -q -d "$root" "$dir/root.ext4"
wait "$qemu" || { cat "$dir/qemu.log" >&2; exit 1; }
rm -rf "$root" "$dir/kernel" "$dir/qemu/usr/share/doc" "$dir/qemu/usr/share/locale"
