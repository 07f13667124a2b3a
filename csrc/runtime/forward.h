// The forward pass of a few tokens of one or several sessions, on the pool's threads.
#pragma once
#include "../threads/team.h"
#include "model.h"

namespace npgpt {

// Whether one thread or all of them are faster for a small model's token: that depends on how far apart the cores are
// and on what else runs there, and changes from one second to the next. So of 256 tokens four are read each way, and
// the rest as was faster. The result is the same to the bit.
class Pace {
  public:
    bool together();  // the next token; followed by done()
    void done();

  private:
    static constexpr int TRIALS = 4, TOKENS = 256;
    int token = -1;
    double began = 0, best[2] = {};  // seconds: together, alone
};

struct Workspace {
    // Takes at once all that passes of one session need, whose context is so long: none allocates then.
    void reserve(const Model& model, Index context);

    Buffer floats;
    Lanes lanes;
    Pace pace;
};

// Keys and values of a session: (L, n_kv_head, context, D) each.
struct Cache {
    float *keys, *values;
    Index context;
};

// Tokens of one session, which go to the positions from `position` on.
struct Piece {
    Cache cache;
    const int32_t* ids;
    Index count, position;
};

constexpr Index CHUNK = 128;  // tokens of a piece at most: it bounds the work space
constexpr Index WIDE = 6;     // tokens of a piece from which weights are unpacked for all of them

// One piece, or several of one token each. logits: (rows, V) of the last token of each piece, or of every token.
// hidden: (rows, C) of every token, what the head reads.
// A piece's results do not depend on the other pieces.
void forward(const Model& model, Workspace& work, const Piece* pieces, Index count, float* logits, bool every,
             float* hidden = nullptr);

}  // namespace npgpt
