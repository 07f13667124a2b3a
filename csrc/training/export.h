// A GPT-2 as a GGUF file in float32, the bytes that npgpt/interop/gguf.py writes.
#pragma once
#include "gpt2.h"
#include "tokens.h"

namespace npgpt {

// Throws Error
void export_gguf(const Gpt2& model, const Tokens& tokens, const char* path);

}  // namespace npgpt
