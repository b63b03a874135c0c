// SPDX-License-Identifier: Apache-2.0
#include "runtime/os.h"

#include <cstdlib>
#include <fstream>
#include <sstream>

namespace nibblas {

std::string read_text(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::optional<std::string> environment_variable(const char* name) {
#if defined(_MSC_VER)
#pragma warning(suppress : 4996)  // for writers of the environment, which this is not
#endif
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

}  // namespace nibblas
