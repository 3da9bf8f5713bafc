// Screened encoding: a product in few bits (screen_product.h) finds the latents that can be among a
// row's best k, fp32 decides among them and gives the values.
//
// A latent's optimistic value is its pre-activation by that product plus `window` standard
// deviations of what rounding can hide. A row's candidates are evaluated in fp32 until the k-th
// best exact value exceeds the optimistic value of everything that is left. Which latents the
// product lets pass is decided by a threshold guessed from the last batch; rows for which the guess
// was too high are screened once more with what they are now known to hold. Only positive values
// count: what TopK selects and ReLU then removes is not looked for.
//
// A few dims much larger than the others spoil the rounding of all. Where there are such, up to 16
// are kept apart: they are 0 in the packed rows, and their product is added in fp32. They are
// picked once, from the first rows that are encoded and the encoder as it then is: perhaps others
// on another rank or after a resume, which changes how many candidates there are but not the
// result.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kernel_set.h"
#include "kernels/screen_tile.h"

namespace megadict {

struct ScreenStats {
  int64_t rows = 0;       // encoded
  int64_t hits = 0;       // pairs the product let pass
  int64_t rescored = 0;   // pairs evaluated in fp32
  int64_t again = 0;      // rows screened twice
  int64_t exact = 0;      // rows encoded in fp32 alone: values not finite, or too many hits
  int64_t checked = 0;    // rows compared with the exact top k
  int64_t missed = 0;     // entries of those that were not found; each widens the window
  bool given_up = false;  // missed with the widest window: all rows in fp32 from here on
};

class Screen {
 public:
  static constexpr double kWindow = 6, kWidestWindow = 12;
  static constexpr int64_t kWidestRow = 65536;  // sums of 32 bits

  Screen(const at::Tensor& w_enc_ld, const ScreenTile& tile);
  Screen(const at::Tensor& w_enc_ld, ScreenKind kind) : Screen(w_enc_ld, best_screen_tile(kind)) {}

  // After encoder rows changed; of different rows also from different threads.
  void refresh(int64_t row, const float* w) { rows_.set(row, w); }
  void refresh(const at::Tensor& w_enc_ld);

  // The best k' = min(k, l) positive pre-activations of each row, best first, padded with -inf.
  // `check`: rows to be compared with the exact result.
  Candidates topk(const EncodeArgs& args, int64_t k, std::span<const int64_t> check = {});

  // Every pre-activation above `threshold` >= 0, with the values that topk() gives. Exact: fp32
  // alone, for the few rows whose list was too short.
  Codes above(const EncodeArgs& args, float threshold) const;

  ScreenStats take_stats();  // since the last call

  // What it has learnt, for a checkpoint: a screen that is given it goes on as this one.
  struct Memory {
    double window = kWindow;       // standard deviations
    float relative_threshold = 0;  // of |x|, guessed for the next batch; 0 = none yet
    bool operator==(const Memory&) const = default;
  };
  Memory memory() const { return {window_, relative_threshold_}; }
  void remember(const Memory& memory);

  int64_t bytes() const { return rows_.bytes(); }
  std::span<const int64_t> apart() const { return rows_.apart; }  // dims kept apart

 private:
  struct Found;
  void keep_outliers_apart(const EncodeArgs& args);
  Found screened(const EncodeArgs& args, int64_t k, std::span<const float> start);
  static Found unscreened(int64_t rows, int64_t k);
  void screen_again(const EncodeArgs& args, int64_t k, Found& found);
  void encode_exactly(const EncodeArgs& args, int64_t k, Found& found);
  void check(const EncodeArgs& args, int64_t k, std::span<const int64_t> rows, Found& found);
  void learn_threshold(const Found& found);

  ScreenRows rows_;
  const ScreenTile& tile_;
  bool looked_for_outliers_ = false;
  double window_ = kWindow;
  bool given_up_ = false;
  float relative_threshold_ = 0;  // of |x|, for the next batch
  ScreenStats stats_;
};

}  // namespace megadict
