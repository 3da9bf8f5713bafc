// The data axis (`mesh.exchange = tokens`): the tokens of all data rows go to the rows' owners,
// who then see the whole batch and update their rows as a single process does, in ascending order
// of tokens whatever the mesh; updated rows go back. At data axis 1 nothing moves.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "model/arriving.h"
#include "model/auxk.h"
#include "train/state.h"

namespace megadict {

// Updated rows travel in pieces of at most so much.
inline constexpr int64_t kRowPieceBytes = int64_t{64} << 20;

// What a part's entries are: codes; gated's codes, which are magnitudes; gated's gates.
enum class PartOf { codes, magnitudes, gates };
// Who learns from such entries. `latents`: which of the shard's, local ids.
CodePath path_of(PartOf of, const Dictionary& dictionary, Range latents);

// A micro-batch's part in the gradients: codes by latent, and the rows they refer to.
struct BatchPart {
  LatentCodes codes = {};
  at::Tensor xc_bd = {}, g_bd = {};  // x - b_dec, and dL/d x_hat
  // x in the data's own type; only where it will be exchanged, and once: another part of the same
  // rows arrives without x - b_dec.
  at::Tensor raw_bd = {};
  double l1 = 0;
  PartOf of = PartOf::codes;
  std::optional<AuxForward> aux = {};
};

// Codes by latent on their way: each owner's lists.
struct ArrivingLists {
  struct Message {
    std::vector<int32_t> words;
    std::vector<int64_t> word_counts;  // per rank
    std::vector<int64_t> sizes;        // per rank: headers, entries
  };
  Message sent = {}, got = {};
  int64_t lists = 0, rows = 0;  // mine; of a data row
  at::Device device = at::kCPU;
  Pending pending = {};
  LatentCodes wait();
};

// A part on its way to the rows' owners.
class ArrivingPart {
 public:
  // The same of all data rows' tokens, restricted to the latents of state.own, ids counted from
  // own.begin; AuxK's lists are those of own_dead(). Rows of data row i follow those of row i - 1.
  // Collective over data, like the start; once.
  BatchPart wait();

 private:
  friend ArrivingPart tokens_to_owners(const Mesh&, const TrainState&, const AuxK&, BatchPart);
  BatchPart mine_;  // all there is at data axis 1
  const TrainState* state_ = nullptr;
  ArrivingLists codes_, aux_codes_;
  Arriving raw_, g_, aux_g_;
};
// Collective over data.
ArrivingPart tokens_to_owners(const Mesh& mesh, const TrainState& state, const AuxK& aux,
                              BatchPart mine);

// The dead latents among state.own, ids counted from own.begin.
at::Tensor own_dead(const TrainState& state, const AuxK& aux);

// Rows of state.own that have an entry in any part: [own] bool.
at::Tensor touched_rows(const TrainState& state, const AuxK& aux, std::span<const BatchPart> parts);

// The owners' rows where `touched` to everybody; returns the local ids of those that arrived.
// Collective over data.
at::Tensor share_touched_rows(const Mesh& mesh, const at::Tensor& touched, TrainState& state);

}  // namespace megadict
