# SPDX-License-Identifier: Apache-2.0
# Reads cmake/targets.json: the flags of each target (instruction set), shared with the tests.

file(READ "${CMAKE_CURRENT_LIST_DIR}/targets.json" _nibblas_targets_json)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
  "${CMAKE_CURRENT_LIST_DIR}/targets.json")

# clang-cl takes MSVC's options, but has intrinsics only for the instruction sets it was told of.
if(MSVC)
  set(NIBBLAS_FLAG_STYLE msvc)
else()
  set(NIBBLAS_FLAG_STYLE gnu)
endif()
if(MSVC AND CMAKE_CXX_COMPILER_ID STREQUAL "MSVC")
  set(NIBBLAS_TARGET_FLAG_STYLE msvc)
else()
  set(NIBBLAS_TARGET_FLAG_STYLE gnu)
endif()

# nibblas_json_list(<variable> <member>...): the JSON array at that path, as a CMake list.
function(nibblas_json_list variable)
  set(items "")
  string(JSON count LENGTH "${_nibblas_targets_json}" ${ARGN})
  if(count GREATER 0)
    math(EXPR last "${count} - 1")
    foreach(index RANGE ${last})
      string(JSON item GET "${_nibblas_targets_json}" ${ARGN} ${index})
      list(APPEND items "${item}")
    endforeach()
  endif()
  set(${variable} "${items}" PARENT_SCOPE)
endfunction()

# nibblas_target_names(<variable>): the names of the targets that <NIBBLAS_ARCH> can have.
function(nibblas_target_names variable)
  set(names "")
  string(JSON count LENGTH "${_nibblas_targets_json}" targets)
  math(EXPR last "${count} - 1")
  foreach(index RANGE ${last})
    string(JSON name MEMBER "${_nibblas_targets_json}" targets ${index})
    string(JSON arch GET "${_nibblas_targets_json}" targets ${name} arch)
    if(arch STREQUAL "any" OR arch STREQUAL NIBBLAS_ARCH)
      list(APPEND names "${name}")
    endif()
  endforeach()
  set(${variable} "${names}" PARENT_SCOPE)
endfunction()
