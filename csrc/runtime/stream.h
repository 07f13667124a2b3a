// Bytes of tokens in, text out: whole characters, held back where a stop string may have begun.
#pragma once
#include <string>
#include <vector>

namespace npgpt {

class Stream {
  public:
    explicit Stream(std::vector<std::string> stops) : stop(std::move(stops)) {}

    // Takes bytes and returns the text that is certain now. Nothing comes after a stop string.
    std::string push(const std::string& bytes);
    std::string close();  // what is left
    bool stopped() const { return done; }

  private:
    std::string take(bool end);
    std::vector<std::string> stop;
    std::string partial;  // the beginning of a character
    std::string held;
    bool done = false;
};

}  // namespace npgpt
