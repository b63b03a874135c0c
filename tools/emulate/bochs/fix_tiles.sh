#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fix_tiles.sh FOLDER: what the source of Bochs 3.0 in FOLDER lacks for AMX under Linux.
set -euo pipefail
cd "$1"
[[ ! -e tiles_fixed ]] || exit 0

# edit FILE SED-ARGUMENTS...: an edit that must change something.
edit() {
  local file=$1
  shift
  cp "$file" "$file.before"
  sed -i "$@" "$file"
  if cmp -s "$file" "$file.before"; then
    echo "fix_tiles.sh: $file is not that of Bochs 3.0" >&2
    exit 1
  fi
  rm "$file.before"
}

# TDPBSSD, TDPBSUD and TDPBUSD take signed bytes for unsigned ones (the first letter is x's, the
# second y's).
edit cpu/avx/amx.cc \
  -e '/ DPBDS[SU](/,/^}/ { /xbyte\[4\]/ s/Bit8u/Bit8s/g }' \
  -e '/ DPBD[SU]S(/,/^}/ { /ybyte\[4\]/ s/Bit8u/Bit8s/g }'

# Saving and restoring tiles, so that a process keeps them when another one runs: which tiles are in
# use is not known at first, then told the wrong way round; rows and bytes per row of the
# configuration are exchanged; only half of the 16 rows of a tile are saved; and XRSTORS does not skip
# what lies in memory before the tiles but is not to be restored (Linux leaves out PKRU).
edit cpu/avx/amx.h -e 's/AMX(): palette_id(0), start_row(0) {}/AMX() { clear(); }/'
edit cpu/xsave.cc \
  -e '/tile_use_tracker == 0/ s/==/!=/' \
  -e '/::xsave_tilecfg_state(/,/^}/ {
    s/vmm16u(8+n).*/vmm16u(8+n) = BX_CPU_THIS_PTR amx->tilecfg[n].bytes_per_row;/
    s/vmmubyte(48+n).*/vmmubyte(48+n) = BX_CPU_THIS_PTR amx->tilecfg[n].rows;/
  }' \
  -e 's/row < BX_TILE_REGISTERS/row < BX_TILE_MAX_ROWS/' \
  -e 's/^        if (format & feature_mask)$/      }\n      {\n&/'

# XFD, the switch by which Linux withholds the tiles from a process until it asks for them: two
# registers, the CPUID bits that announce them, and #NM from an instruction on tiles while the
# switch is set. Without it Linux does not offer tiles at all.
edit cpu/cpu.h -e '/^  Bit64u ia32_xss;/ a\  Bit64u ia32_xfd, ia32_xfd_err;'
edit cpu/init.cc -e '/msr\.ia32_xss = 0;/ a\
  BX_CPU_THIS_PTR msr.ia32_xfd = BX_CPU_THIS_PTR msr.ia32_xfd_err = 0;'
edit cpu/cpuid.cc \
  -e '/leaf->eax |= (1<<3);/ a\
    if (is_cpu_extension_supported(BX_ISA_AMX))\
      leaf->eax |= (1<<4);' \
  -e '/leaf->ecx = (cpu->ia32_xss_suppmask & (1 << subfunction))/ a\
      if (subfunction == xcr0_t::BX_XCR0_XTILEDATA_BIT)\
        leaf->ecx |= 4;'
edit cpu/msr.cc \
  -e '/msr_desc\[BX_MSR_XSS\] = new/ a\
  msr_desc[BX_MSR_IA32_XFD] = new MSR_Descriptor("MSR_IA32_XFD", BX_ISA_AMX);\
  msr_desc[BX_MSR_IA32_XFD_ERROR] = new MSR_Descriptor("MSR_IA32_XFD_ERR", BX_ISA_AMX);' \
  -e '/::rdmsr(Bit32u index/,/^}/ s/^    case BX_MSR_XSS:/\
    case BX_MSR_IA32_XFD: val64 = BX_CPU_THIS_PTR msr.ia32_xfd; break;\
    case BX_MSR_IA32_XFD_ERROR: val64 = BX_CPU_THIS_PTR msr.ia32_xfd_err; break;\
&/' \
  -e '/::wrmsr(Bit32u index/,/^}/ s/^    case BX_MSR_XSS:/\
    case BX_MSR_IA32_XFD:\
    case BX_MSR_IA32_XFD_ERROR:\
      if (val_64 \& ~Bit64u(BX_XCR0_XTILEDATA_MASK)) return false;\
      if (index == BX_MSR_IA32_XFD_ERROR) {\
        BX_CPU_THIS_PTR msr.ia32_xfd_err = val_64;\
        break;\
      }\
      BX_CPU_THIS_PTR msr.ia32_xfd = val_64;\
      handleAvxModeChange();\
      break;\
&/'
edit cpu/proc_ctrl.cc \
  -e '/if (! long64_mode() .*OSXSAVE() ||$/ a\
      BX_CPU_THIS_PTR msr.ia32_xfd ||' \
  -e '/::BxNoAMX(/,/^}/ s/^  BX_ASSERT(0);/\
  BX_CPU_THIS_PTR msr.ia32_xfd_err = BX_CPU_THIS_PTR msr.ia32_xfd;\
  exception(BX_NM_EXCEPTION, 0);\
&/'
touch tiles_fixed
