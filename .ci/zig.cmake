# Zig's compilers (pip install ziglang) for x86-64, with the symbols of glibc 2.28 and a C++ library that is linked in: for wheels
# that older systems take.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(CMAKE_C_COMPILER python-zig cc -target x86_64-linux-gnu.2.28)
set(CMAKE_CXX_COMPILER python-zig c++ -target x86_64-linux-gnu.2.28)
