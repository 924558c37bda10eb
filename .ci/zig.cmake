# Zig's compilers (pip install ziglang) with the symbols of glibc 2.28 and a C++ library that is linked in: for wheels that older
# systems take. VOSRT_ZIG is the processor, x86_64 or aarch64.
set(VOSRT_ZIG x86_64 CACHE STRING "Processor that Zig compiles for: x86_64 or aarch64")
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES VOSRT_ZIG)
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR ${VOSRT_ZIG})
set(CMAKE_C_COMPILER python-zig cc -target ${VOSRT_ZIG}-linux-gnu.2.28)
set(CMAKE_CXX_COMPILER python-zig c++ -target ${VOSRT_ZIG}-linux-gnu.2.28)
