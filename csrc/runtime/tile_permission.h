// SPDX-License-Identifier: Apache-2.0
// Whether the operating system lets this process use the tiles of AMX.
#pragma once

#include <string>

namespace nibblas {

// "" if it does, else why not. The first call asks (Linux has each process do so once; a forked
// child inherits the answer), so call it only where the CPU has tiles and they may be used: from
// then on signal frames are 8 KB larger, and Linux refuses alternate signal stacks that are too
// small for them. Windows and others grant tiles at their first use.
std::string why_no_tiles();

}  // namespace nibblas
