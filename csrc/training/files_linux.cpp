#include "files_posix.inl"
