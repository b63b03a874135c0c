// SPDX-License-Identifier: Apache-2.0
// The floating-point environment of the numerics contract: round to nearest even, subnormals kept
// (no FTZ, DAZ, DN), exceptions masked. A caller may come with any other (libraries built with
// -ffast-math turn FTZ on for the whole thread), and gets its word back, sticky flags included.
//
// Make one around the indirect call of a kernel, never inside one: the compiler orders the control
// word against calls, not against arithmetic.
#pragma once

#if !defined(__GNUC__) && defined(_MSC_VER)
#include <intrin.h>
#elif !defined(__x86_64__) && !defined(__aarch64__)
#include <cfenv>
#endif

namespace nibblas {

#if defined(__x86_64__) || defined(_M_X64)

class FpEnvironment {
 public:
  FpEnvironment() : saved_(read()) {
    // Bits 0..5 are sticky exception flags, which change no result. Writing the word costs tens of
    // cycles, reading it a few, so write only where the control bits differ.
    if ((saved_ & ~kStickyFlags) != kContract) write(kContract);
  }
  ~FpEnvironment() {
    if (read() != saved_) write(saved_);
  }
  FpEnvironment(const FpEnvironment&) = delete;
  FpEnvironment& operator=(const FpEnvironment&) = delete;

  // Inside one: sets it anew, after a call of something that may have changed it.
  static void enter() {
    if ((read() & ~kStickyFlags) != kContract) write(kContract);
  }

 private:
  static constexpr unsigned kContract = 0x1F80;  // MXCSR: nearest, all six exceptions masked
  static constexpr unsigned kStickyFlags = 0x3F;

#if defined(__GNUC__)
  static unsigned read() {
    unsigned word;
    __asm__ volatile("stmxcsr %0" : "=m"(word) : : "memory");
    return word;
  }
  static void write(unsigned word) { __asm__ volatile("ldmxcsr %0" : : "m"(word) : "memory"); }
#else
  static unsigned read() { return _mm_getcsr(); }
  static void write(unsigned word) { _mm_setcsr(word); }
#endif

  unsigned saved_;
};

#elif defined(__aarch64__) || defined(_M_ARM64)

class FpEnvironment {
 public:
  FpEnvironment() : saved_(read()) {
    if (saved_ != kContract) write(kContract);
  }
  ~FpEnvironment() {
    if (saved_ != kContract) write(saved_);
  }
  FpEnvironment(const FpEnvironment&) = delete;
  FpEnvironment& operator=(const FpEnvironment&) = delete;

  static void enter() {
    if (read() != kContract) write(kContract);
  }

 private:
  static constexpr unsigned long long kContract = 0;  // FPCR; its sticky flags live in FPSR

#if defined(__GNUC__)
  static unsigned long long read() {
    unsigned long long word;
    __asm__ volatile("mrs %0, fpcr" : "=r"(word) : : "memory");
    return word;
  }
  static void write(unsigned long long word) {
    __asm__ volatile("msr fpcr, %0" : : "r"(word) : "memory");
  }
#else
  static unsigned long long read() {
    return static_cast<unsigned long long>(_ReadStatusReg(ARM64_FPCR));
  }
  static void write(unsigned long long word) {
    _WriteStatusReg(ARM64_FPCR, static_cast<__int64>(word));
  }
#endif

  unsigned long long saved_;
};

#else

// No control word known here; C++'s default environment is the contract's.
class FpEnvironment {
 public:
  FpEnvironment() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FpEnvironment() { std::fesetenv(&saved_); }
  FpEnvironment(const FpEnvironment&) = delete;
  FpEnvironment& operator=(const FpEnvironment&) = delete;

  static void enter() { std::fesetenv(FE_DFL_ENV); }

 private:
  std::fenv_t saved_;
};

#endif

}  // namespace nibblas
