#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Install the Debian packages that a task needs and the machine lacks: install_packages.sh TASK...
# As root it installs; otherwise it says what to install and goes on.
set -euo pipefail

# Each line: what proves that the package is there (a command, a path, a library or a line of
# Python without blanks), and the package.
venv='py:__import__("ensurepip") python3-venv'
run='lib:libbpf.so.1 libbpf1'
build='cc gcc
py:open(__import__("sysconfig").get_path("include")+"/Python.h") python3-dev'
bpf='clang-14 clang-14
llvm-strip-14 llvm-14'
check='clang-format-14 clang-format-14'
vm='qemu-system-x86_64 qemu-system-x86
depmod kmod
busybox busybox-static
/usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring'
containers='podman podman
crun crun
runc runc
busybox busybox-static'
network='ip iproute2
nginx nginx-light
iperf3 iperf3
dnsmasq dnsmasq-base
dig bind9-dnsutils
/usr/sbin/nft nftables
/usr/sbin/conntrack conntrack
tcpdump tcpdump'
peers='/usr/sbin/bpftool bpftool
/usr/sbin/execsnoop libbpf-tools
/usr/sbin/tcpretrans.bt bpftrace'

PATH=$PATH:/usr/sbin:/sbin

present() {
	case $1 in
	lib:*) [[ $(ldconfig -p) == *"${1#lib:} "* ]] ;;
	py:*) "${PYTHON:-python3}" -c "${1#py:}" 2> /dev/null ;;
	/*) [[ -e $1 ]] ;;
	*) command -v "$1" > /dev/null ;;
	esac
}

missing=()
for task in "$@"; do
	while read -r proof package; do
		present "$proof" || missing+=("$package")
	done <<< "${!task}"
done

if [[ ${#missing[@]} -eq 0 ]]; then
	exit 0
fi
if [[ $(id -u) -ne 0 ]] || ! command -v apt-get > /dev/null; then
	echo "not here, and some of what follows needs it: ${missing[*]}" >&2
	echo "as root: apt-get install ${missing[*]}" >&2
	exit 0
fi
echo "installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
# Another source of the machine may be broken; what matters is whether the packages come.
apt-get -qq update < /dev/null || true
apt-get -qq install -y --no-install-recommends "${missing[@]}" < /dev/null > /dev/null ||
	echo "apt-get could not install all of: ${missing[*]}" >&2
