#!/usr/bin/env bash
# Fetches what guest tests run: QEMU with its libraries, a cloud kernel and busybox, as Debian or Ubuntu packages them.
#
#   bench/vm/fetch.sh       QEMU, its libraries, a cloud kernel and busybox (60 MB)
#   bench/vm/fetch.sh rt    a kernel with PREEMPT_RT, which a few tests want besides (110 MB)
#   bench/vm/fetch.sh zerocopy    a kernel whose drivers have AF_XDP zero-copy for the NICs that QEMU plays (120 MB)
#
# All of it goes to target/vm (or $CARGO_TARGET_DIR/vm), the other kernels to rt and zerocopy in it: nothing is installed, no setting of apt is changed, no root is needed. apt
# checks the archive's signatures. A second run fetches nothing: to fetch anew, remove target/vm.
#
# Exit status: 0 when all is there, 3 where this machine cannot have it, 1 when something failed. One line says why.
set -u
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
# Raise it when what is fetched changes.
readonly recipe=1
case $* in
"") kernels=(linux-image-cloud-amd64 linux-image-virtual) folder=vm ;;
rt) kernels=(linux-image-rt-amd64) folder=vm/rt ;;
zerocopy) kernels=(linux-image-amd64) folder=vm/zerocopy ;;
*) echo "usage: bench/vm/fetch.sh [rt | zerocopy]" >&2 && exit 1 ;;
esac
readonly kernels vm=${CARGO_TARGET_DIR:-$PWD/target}/$folder
# What a stuck mirror may cost.
readonly limit_s=300

stop() { echo "fetch: $2" >&2 && exit "$1"; }
cannot() { stop 3 "$1"; }

fetched() { [[ $(cat "$vm/fetched" 2>/dev/null) == "$recipe" ]]; }
fetched && exit 0
[[ $(uname -m) == x86_64 ]] || cannot "the guest is x86-64, this machine is $(uname -m)"
for tool in apt-get dpkg-deb flock; do
    command -v $tool >/dev/null || cannot "QEMU and a kernel come from Debian's or Ubuntu's archive, and this machine has no $tool"
done

mkdir -p "$vm" || stop 1 "cannot make $vm"
{ exec 9>"$vm/lock"; } 2>/dev/null || stop 1 "cannot write to $vm"
flock -w $limit_s 9 || stop 1 "another run holds $vm/lock: end it, or wait"
fetched && exit 0 # by the run that held the lock

readonly work=$vm/fetch log=$vm/fetch.log
rm -rf "$work" "$vm"/{root,modules}
mkdir -p "$work"/{lists,archives}/partial || stop 1 "cannot write to $vm"
: >"$log"
trap 'rm -rf "$work"' EXIT
complaint() { grep -m 1 -E '^(E|W): ' "$log" || tail -n 1 "$log"; }
failed() { stop 1 "$1: $(complaint) (all of it: $log)"; }

# The first entry of the machine's own sources is the distribution's, with the mirror it uses.
# Bookworm's QEMU and kernel are too old: its backports have newer ones.
# shellcheck disable=SC1091 # the machine's own
source /etc/os-release 2>/dev/null
readonly release=${ID-}-${VERSION_CODENAME-}
backports='' suites='&'
if [[ $folder == vm/zerocopy ]]; then
    [[ ${ID-} == debian ]] || cannot "of the distributions that this script knows, only Debian has such a kernel"
    # Nothing of it runs on the machine itself, so that it may be a later release's.
    [[ $release == debian-@(bookworm|trixie) ]] && backports=trixie-backports suites="Suites: $backports"
elif [[ $release == debian-bookworm ]]; then
    backports=bookworm-backports suites="& $backports"
fi
readonly list=/etc/apt/sources.list
for stanzas in /etc/apt/sources.list.d/{debian,ubuntu}.sources; do
    [[ -r $stanzas ]] && break
done
if [[ -r $stanzas ]]; then
    sources=$work/distribution.sources
    awk 'NF && !/^#/ { print; found = 1 } !NF && found { exit }' "$stanzas" | sed -E "s/^Suites:.*/$suites/" >"$sources"
else
    sources=$work/distribution.list
    grep -m 1 -E '^deb .*://' $list 2>/dev/null >"$sources" || cannot "neither $list nor debian.sources or ubuntu.sources beside it names an archive"
    [[ $backports ]] && sed -E "s/^(deb +(\[[^]]*\] +)?[^ ]+ +)[^ ]+/\1$backports/" "$sources" >"$work/backports" &&
        cat "$work/backports" >>"$sources"
fi

# apt with lists and archives of its own, without what the machine runs after an update (it is about the machine's own lists), and
# with the machine's keys, proxies and mirror settings.
cat >"$work/apt.conf" <<EOF
#clear APT::Update;
Dir::Etc { SourceList "$sources"; SourceParts "/dev/null"; };
Dir::State::Lists "$work/lists";
Dir::Cache "$work";
Dir::Cache::Archives "$work/archives";
APT::Default-Release "$backports";
APT::Sandbox::User "";
Debug::NoLocking "true";
Acquire { Retries "2"; http::Timeout "20"; https::Timeout "20"; };
EOF
get() { timeout -k 5 $limit_s apt-get -q -y -c "$work/apt.conf" "$@" </dev/null >>"$log" 2>&1; }

# apt may call an archive that does not answer a success.
get update || true
compgen -G "$work/lists/*Packages*" >/dev/null || cannot "the archive is out of reach: $(complaint)"

kernel=
for meta in "${kernels[@]}"; do
    kernel=$(apt-cache -c "$work/apt.conf" depends "$meta" 2>>"$log" | awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }')
    [[ $kernel ]] && break
done
if [[ ! $kernel ]]; then
    [[ $folder == vm/rt ]] && cannot "the archive has no kernel with PREEMPT_RT (Debian has linux-image-rt-amd64)"
    failed "the archive has no ${kernels[*]}"
fi
# The files of a package that match these patterns, all into $work/root.
unpack() {
    dpkg-deb --fsys-tarfile "$1" 2>>"$log" | tar --extract --directory "$work/root" --wildcards "${@:2}" 2>>"$log"
}
if [[ $folder == vm/rt ]]; then
    (cd "$work/archives" && get download "$kernel") || failed "cannot fetch $kernel"
    # Its modules are half a gigabyte, and nobody loads one.
    mkdir "$work/root" || stop 1 "cannot write to $vm"
    unpack "$work"/archives/*.deb './boot/vmlinuz-*' || failed "cannot unpack $kernel"
    mv "$work"/root/boot/vmlinuz-* "$vm/vmlinuz" 2>>"$log" || failed "$kernel holds not one kernel"
    echo "$recipe" >"$vm/fetched"
    exit
fi
if [[ $folder == vm/zerocopy ]]; then
    # The image is but a name for a package with the kernel and one with its modules.
    version=${kernel#linux-image-}
    (cd "$work/archives" && get download "linux-binary-$version" "linux-modules-$version") || failed "cannot fetch $kernel"
    mkdir "$work/root" "$work/modules" || stop 1 "cannot write to $vm"
    unpack "$work"/archives/linux-binary-*.deb '*/vmlinuz*' || failed "cannot unpack the kernel of $kernel"
    mv "$work"/root/usr/lib/modules/*/vmlinuz "$vm/vmlinuz" 2>>"$log" || failed "$kernel holds not one kernel"
    # Two drivers, and what they depend on.
    modules=(igb dca i2c-algo-bit virtio_net net_failover failover)
    modules=("${modules[@]/#/*/}")
    unpack "$work"/archives/linux-modules-*.deb "${modules[@]/%/.ko*}" || failed "cannot unpack the modules of $kernel"
    find "$work/root" -name '*.ko*' -exec mv -t "$work/modules" {} + || stop 1 "cannot write to $vm"
    mv -T "$work/modules" "$vm/modules" || stop 1 "cannot write to $vm"
    echo "$recipe" >"$vm/fetched"
    exit
fi
# Of QEMU also what it needs and the machine lacks; download-only: what that would install or remove stays as it is.
get --download-only --no-install-recommends --reinstall install qemu-system-x86 qemu-system-data seabios ||
    failed "cannot fetch QEMU"
(cd "$work/archives" && get download "$kernel" busybox-static) || failed "cannot fetch $kernel and busybox-static"

for package in "$work"/archives/*.deb; do
    dpkg-deb --extract "$package" "$work/root" 2>>"$log" || failed "cannot unpack $package"
done
cp "$work"/root/boot/vmlinuz-* "$work/root/vmlinuz" 2>>"$log" || failed "$kernel holds not one kernel"
# It may want libraries newer than the machine's C library.
LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu:$work/root/lib/x86_64-linux-gnu \
    "$work/root/usr/bin/qemu-system-x86_64" --version >>"$log" 2>&1 || failed "QEMU does not start"
mv "$work/root" "$vm/root" || stop 1 "cannot write to $vm"
echo "$recipe" >"$vm/fetched"
