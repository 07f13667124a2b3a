// The tokenizer's part of the border. Apart from module.cpp, as it shares nothing with the ops: bytes, not arrays.
#pragma once
#include <pybind11/pybind11.h>

namespace npgpt {
void bind_text(pybind11::module_& m);
}
