// SPDX-License-Identifier: Apache-2.0
// Two small questions to the operating system, shared by detection, dispatch and the pool.
#pragma once

#include <optional>
#include <string>

namespace nibblas {

// The whole of a small text file (/proc, /sys), or "" when it cannot be read.
std::string read_text(const std::string& path);

// An environment variable. An empty one counts as unset: `NAME= command` clears one in a shell.
std::optional<std::string> environment_variable(const char* name);

}  // namespace nibblas
