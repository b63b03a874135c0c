// SPDX-License-Identifier: Apache-2.0
// The dynamic linker's auditor that hold_avx2.py puts into a process: it replaces CPUID by UD2 in
// every library as it is mapped, and answers the SIGILL with what the CPU says, less AVX-512,
// AVX-VNNI and AMX.
#define _GNU_SOURCE
#include <cpuid.h>
#include <link.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { CPUID_0 = 0x0f, CPUID_1 = 0xa2, UD2_1 = 0x0b };

#define BIT(n) (1u << (n))

// Leaf 7.0: F, DQ, IFMA, PF, ER, CD, BW, VL; VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ; 4VNNIW, 4FMAPS,
// VP2INTERSECT, AMX-BF16, FP16, AMX-TILE, AMX-INT8.
static const uint32_t kLeaf7Ebx = BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) |
                                  BIT(30) | BIT(31);
static const uint32_t kLeaf7Ecx = BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const uint32_t kLeaf7Edx = BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
// Leaf 7.1: AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA; AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX,
// AVX-VNNI-INT16, AVX10.
static const uint32_t kLeaf71Eax = BIT(4) | BIT(5) | BIT(21) | BIT(23);
static const uint32_t kLeaf71Edx = BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19);

static void answer(int signal_number, siginfo_t* info, void* context) {
  (void)info;
  greg_t* regs = ((ucontext_t*)context)->uc_mcontext.gregs;
  const unsigned char* at = (const unsigned char*)regs[REG_RIP];
  if (at[0] != CPUID_0 || at[1] != UD2_1) {
    signal(signal_number, SIG_DFL);
    return;  // the instruction is executed again, and ends the process
  }
  const uint32_t leaf = (uint32_t)regs[REG_RAX], part = (uint32_t)regs[REG_RCX];
  uint32_t a, b, c, d;
  __cpuid_count(leaf, part, a, b, c, d);
  if (leaf == 7 && part == 0) {
    b &= ~kLeaf7Ebx;
    c &= ~kLeaf7Ecx;
    d &= ~kLeaf7Edx;
  } else if (leaf == 7 && part == 1) {
    a &= ~kLeaf71Eax;
    d &= ~kLeaf71Edx;
  }
  regs[REG_RAX] = a;
  regs[REG_RBX] = b;
  regs[REG_RCX] = c;
  regs[REG_RDX] = d;
  regs[REG_RIP] += 2;
}

static void replace(unsigned char* at) {
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  if (at[0] != CPUID_0 || at[1] != CPUID_1) return;  // another file than the one that was read
  unsigned char* from = (unsigned char*)((uintptr_t)at & ~(page - 1));
  const size_t size = (size_t)(at + 2 - from);
  if (mprotect(from, size, PROT_READ | PROT_WRITE) != 0) return;
  at[1] = UD2_1;
  mprotect(from, size, PROT_READ | PROT_EXEC);
}

unsigned la_version(unsigned version) {
  struct sigaction action = {0};
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, NULL);
  return version < LAV_CURRENT ? version : LAV_CURRENT;
}

// Called for each library once it is mapped, before relocations and constructors.
unsigned la_objopen(struct link_map* map, Lmid_t space, uintptr_t* cookie) {
  (void)space;
  (void)cookie;
  const char* sites = getenv("HOLD_AVX2_SITES");
  char path[PATH_MAX];
  if (!sites || !map->l_name || !map->l_name[0] || !realpath(map->l_name, path)) return 0;
  FILE* file = fopen(sites, "r");
  if (!file) return 0;
  char line[PATH_MAX + 32];
  while (fgets(line, sizeof line, file)) {
    char* name;
    const uintptr_t address = strtoull(line, &name, 16);
    line[strcspn(line, "\n")] = 0;
    if (strcmp(name + 1, path) == 0) replace((unsigned char*)map->l_addr + address);
  }
  fclose(file);
  return 0;
}
