# Included by llama.cpp's project() call (CMAKE_PROJECT_llama.cpp_INCLUDE).
#
# Options, chat templates, grammars and downloads: code that runs once a turn, and a fifth of the program's layer at -O3.
cmake_language(DEFER CALL target_compile_options llama-common PRIVATE -Os)
