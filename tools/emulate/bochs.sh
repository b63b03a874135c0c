#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs tests of nibblas on an x86 CPU that this machine is not, emulated by Bochs: see bochs.md.
set -euo pipefail

usage() {
  cat <<'END'
usage: tools/emulate/bochs.sh [-c CACHE] [-p PYTHON] [-t SECONDS] CPU [PYTEST ARGUMENT...]

CPU     a model of Bochs: arrow_lake, sapphire_rapids, corei7_skylake_x, ... (-l lists them)
CACHE   the folder that keeps what all runs share (default ~/.cache/nibblas-bochs)
PYTHON  the interpreter that finds nibblas, numpy, pytest, hypothesis, ml_dtypes (default python3)
SECONDS until the run counts as failed (default 1800)

Environment variables NIBBLAS_* and HYPOTHESIS_PROFILE are set for the tests, too.
END
}

here=$(dirname "$(realpath "$0")")/bochs
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nibblas-bochs python=python3 seconds=1800 list=
while getopts c:p:t:lh option; do
  case $option in
    c) cache=$OPTARG ;;
    p) python=$OPTARG ;;
    t) seconds=$OPTARG ;;
    l) list=1 ;;
    h) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
shift $((OPTIND - 1))
if [[ ! $list && $# == 0 ]]; then usage >&2; exit 2; fi
mkdir -p "$cache"
cache=$(realpath "$cache")
debian=$cache/debian

# step NAME FUNCTION: what is done once; its output goes to CACHE/NAME.log.
step() {
  [[ -e $cache/$1.done ]] && return
  echo "$1: see $cache/$1.log" >&2
  "$2" >"$cache/$1.log" 2>&1 || { tail -n 20 "$cache/$1.log" >&2; return 1; }
  touch "$cache/$1.done"
}

in_debian() { chroot "$debian" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"; }

# Debian 13, for its Linux (that of Debian 12 does not start in Bochs), its BIOS and tools.
install_debian() {
  rm -rf "$debian"
  debootstrap --variant=minbase --include=ca-certificates trixie "$debian" \
    http://deb.debian.org/debian
  echo 'deb-src http://deb.debian.org/debian trixie main' >"$debian/etc/apt/sources.list.d/src.list"
  in_debian apt-get -q update
  in_debian apt-get -q install -y --no-install-recommends g++ make dpkg-dev bochsbios vgabios \
    isolinux syslinux-common xorriso busybox-static cpio </dev/null
}

# Only the kernel itself: no modules, and none of what installing its package starts.
unpack_linux() {
  local package
  package=$(in_debian apt-cache depends linux-image-cloud-amd64 |
    sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p')
  in_debian bash -ec "cd /root && rm -rf linux* && apt-get -q download $package &&
    dpkg -x linux-image-*.deb linux && cp linux/boot/vmlinuz-* /boot/vmlinuz"
  echo "$package"
}

# From source, as the package has neither the corrections of fix_tiles.sh nor fast loops (those are
# off in a Bochs with a debugger).
unpack_bochs() {
  in_debian bash -ec 'cd /root && rm -rf bochs* && apt-get -q source --tar-only bochs &&
    tar -xf bochs_*.orig.tar.* && mv bochs-3.0 bochs'
  bash "$here/fix_tiles.sh" "$debian/root/bochs"
  in_debian bash -ec 'cd /root/bochs && ./configure CFLAGS=-O2 CXXFLAGS=-O2 --with-nogui \
    --enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex --enable-amx \
    --enable-memtype --enable-protection-keys --enable-pci --enable-cdrom \
    --enable-all-optimizations --disable-docbook'
}
compile_bochs() { in_debian make -C /root/bochs -j "$(nproc)"; }

step debian install_debian
step linux unpack_linux
step bochs-source unpack_bochs
step bochs compile_bochs

if [[ $list ]]; then
  in_debian /root/bochs/bochs --help cpu 2>&1 | sed -n 's/^[a-z0-9_]*$/&/p'
  exit
fi

model=$1
shift
run=$debian/srv/$model
rm -rf "$run"
mkdir -p "$run/tree/bin" "$run/iso"
interpreter=$("$python" "$here/guest_tree.py" "$run/tree")
cp "$debian/bin/busybox" "$run/tree/bin"
cp "$here/init" "$run/tree/init"
mkdir -p "$run"/tree/{dev,proc,sys,tmp}

{
  echo "export PYTHONPATH=/site PYTHONUTF8=1 PY_COLORS=0 USER=root"
  env -0 | while IFS= read -rd '' variable; do
    case $variable in
      NIBBLAS_* | HYPOTHESIS_PROFILE=*) printf 'export %s=%q\n' "${variable%%=*}" "${variable#*=}" ;;
    esac
  done
  printf 'cd /nibblas && %q tools/emulate/bochs/guest_tests.py' "$interpreter"
  printf ' %q' "$model" "$@"
  echo
} >"$run/tree/tests"

cat >"$run/bochsrc" <<END
cpu: model=$model, count=1, ips=200000000, reset_on_triple_fault=0
megs: 2048
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=/srv/$model/boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=/srv/$model/serial
clock: sync=none
display_library: nogui
log: /srv/$model/bochs.log
panic: action=fatal
END
# tsc, lpj, nosmp: there is nothing to calibrate clocks with. The others save time.
cat >"$run/iso/isolinux.cfg" <<END
default linux
label linux
  kernel vmlinuz
  initrd tree
  append console=ttyS0,115200 nosmp nokaslr no5lvl mitigations=off tsc=reliable lpj=4000000 no_timer_check quiet
END
cp "$debian/boot/vmlinuz" "$debian"/usr/lib/ISOLINUX/isolinux.bin \
  "$debian"/usr/lib/syslinux/modules/bios/ldlinux.c32 "$run/iso"
in_debian bash -ec "cd /srv/$model
  (cd tree && find . | cpio --quiet -o -H newc) >iso/tree
  xorriso -as mkisofs -quiet -o boot.iso -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 \
    -boot-info-table iso 2>/dev/null"
rm -rf "$run/tree" "$run/iso"

: >"$run/serial"
in_debian timeout "$seconds" /root/bochs/bochs -q -f "/srv/$model/bochsrc" >"$run/bochs.out" 2>&1 &
bochs=$!
trap 'kill "$bochs" 2>/dev/null || true' EXIT
tail -n +1 -f --pid=$bochs "$run/serial" | tr -d '\r'
wait "$bochs" || true
trap - EXIT
status=$(tr -d '\r' <"$run/serial" | sed -n 's/^exit status: \([0-9]*\)$/\1/p')
if [[ ! $status ]]; then
  echo "the tests did not end: see $run/bochs.log" >&2
  exit 1
fi
exit "$status"
