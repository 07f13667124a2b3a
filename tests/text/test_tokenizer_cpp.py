"""csrc/text serves a C++ program that has no Python in it: the C runtime's view of it."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "csrc" / "text"

PROGRAM = r"""
#include <cstdio>
#include "bpe.h"

int main() {
    uint32_t byte_ids[256];
    for (uint32_t b = 0; b < 256; b++) byte_ids[b] = b;
    const std::string text = "low lower lowest low new new";
    npgpt::PieceCounts counts;
    counts.add(reinterpret_cast<const uint8_t*>(text.data()), text.size());
    const auto merges = npgpt::train_bpe(counts, byte_ids, 5, 2);
    std::vector<std::string> tokens(256 + merges.size());
    for (uint32_t b = 0; b < 256; b++) tokens[b] = std::string(1, char(b));
    for (const auto& merge : merges) tokens[merge.token] = tokens[merge.left] + tokens[merge.right];
    const npgpt::Bpe bpe(byte_ids, merges, tokens);
    std::vector<uint32_t> ids(text.size());
    ids.resize(bpe.encode(reinterpret_cast<const uint8_t*>(text.data()), text.size(), ids.data()));
    std::string back;
    bpe.decode(ids.data(), ids.size(), back);
    for (uint32_t id : ids) std::printf("%u ", id);
    std::printf("%s", back == text ? "same" : "different");
}
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no g++")
def test_a_program_without_python(tmp_path):
    (tmp_path / "main.cpp").write_text(PROGRAM)
    sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}", "-o", "program"]
    subprocess.run([*command, "main.cpp", *sources], cwd=tmp_path, check=True)
    out = subprocess.run(["./program"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    *ids, verdict = out.split()
    assert verdict == "same" and len(ids) < 20 and max(map(int, ids)) > 255
