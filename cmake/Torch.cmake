# LibTorch from the torch 2.11.0 wheel through plain imported targets: find_package(Torch) wants a
# CUDA toolkit even for the CPU libraries. The wheel's include folder also holds fmt and oneDNN
# headers that would shadow the system's, so it is searched last (-idirafter).
if(NOT TORCH_DIR)
  set(home $ENV{MEGADICT_HOME})
  if(NOT home)
    set(home $ENV{HOME}/.cache/megadict)
  endif()
  file(GLOB found ${home}/venv/lib/python3*/site-packages/torch)
  if(found)
    list(GET found 0 found)
    set(TORCH_DIR ${found} CACHE PATH "" FORCE)
  endif()
endif()
if(NOT EXISTS ${TORCH_DIR}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "no LibTorch: '${TORCH_DIR}/lib/libtorch_cpu.so' does not exist. "
                      "Run tools/bootstrap.sh, or set TORCH_DIR to the torch folder of a torch 2.11.0 wheel.")
endif()
file(READ ${TORCH_DIR}/include/torch/headeronly/version.h version_header)
foreach(part MAJOR MINOR PATCH)
  string(REGEX MATCH "TORCH_VERSION_${part} ([0-9]+)" ignored "${version_header}")
  list(APPEND torch_version ${CMAKE_MATCH_1})
endforeach()
if(NOT torch_version STREQUAL "2;11;0")
  message(FATAL_ERROR "TORCH_DIR '${TORCH_DIR}' holds torch ${torch_version}; Megadict is built with 2.11.0")
endif()

add_library(megadict_torch INTERFACE)
target_compile_options(megadict_torch INTERFACE
  "SHELL:-idirafter ${TORCH_DIR}/include"
  "SHELL:-idirafter ${TORCH_DIR}/include/torch/csrc/api/include")
foreach(part c10 torch_cpu)
  add_library(megadict_${part} SHARED IMPORTED)
  set_target_properties(megadict_${part} PROPERTIES IMPORTED_LOCATION ${TORCH_DIR}/lib/lib${part}.so)
  target_link_libraries(megadict_torch INTERFACE megadict_${part})
endforeach()
# The CUDA 13 runtime libraries that even libtorch_cpu.so asks for lie beside it in the wheel's
# site-packages/nvidia; its own run path finds them, the linker has to be told.
file(GLOB nvidia_libs ${TORCH_DIR}/../nvidia/cu13/lib ${TORCH_DIR}/../nvidia/*/lib)
foreach(folder IN LISTS nvidia_libs)
  target_link_options(megadict_torch INTERFACE -Wl,-rpath-link,${folder})
endforeach()

# One OpenMP runtime in the process: LibTorch's own copy where it brings one.
target_compile_options(megadict_torch INTERFACE -fopenmp)
file(GLOB torch_gomp ${TORCH_DIR}/lib/libgomp*.so*)
if(torch_gomp)
  list(GET torch_gomp 0 torch_gomp)
  target_link_libraries(megadict_torch INTERFACE ${torch_gomp})
else()
  target_link_libraries(megadict_torch INTERFACE OpenMP::OpenMP_CXX)
endif()

# One precompiled header for all torch rooms and tests of one kind of flags.
function(megadict_torch_pch target)
  if(NOT TARGET megadict_pch)
    file(GENERATE OUTPUT ${CMAKE_BINARY_DIR}/pch.cpp CONTENT "")
    add_library(megadict_pch STATIC ${CMAKE_BINARY_DIR}/pch.cpp)
    target_link_libraries(megadict_pch PUBLIC megadict_flags megadict_torch)
    target_precompile_headers(megadict_pch PRIVATE <ATen/ATen.h> <string> <vector>)
  endif()
  target_precompile_headers(${target} REUSE_FROM megadict_pch)
endfunction()
