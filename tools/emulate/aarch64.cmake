# SPDX-License-Identifier: Apache-2.0
# A cross build for aarch64 with Debian's compiler (g++-aarch64-linux-gnu), as
# tools/emulate/aarch64_wheel.py uses it: NIBBLAS_AARCH64_SYSROOT has the headers of the Python that
# the library is for.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)

# The compiler's own C and C++ headers come first: the sysroot's are only for what it lacks.
set(CMAKE_CXX_FLAGS_INIT "-idirafter $ENV{NIBBLAS_AARCH64_SYSROOT}/usr/include")
