// The operations of the step that are local to a rank, as a table of kernel sets: hand-written CPU
// loops, and plain tensor operations that run on any device and serve as the reference. Shapes: b
// rows, d width, l latents of a shard; all floating-point tensors fp32 and contiguous.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <string_view>

#include "kernels/codes.h"
#include "kernels/optimiser.h"

namespace megadict {

// x_bd: what the encoder sees, x - b_dec or, behind other layers, as wide as W_enc's rows.
struct EncodeArgs {
  const at::Tensor& x_bd;
  const at::Tensor& w_enc_ld;
  const at::Tensor& b_enc_l;
};

// Where the latent-major pass adds its gradients.
struct RowGradients {
  at::Tensor w_dec_ld, w_enc_ld;  // the same tensor when the decoder is tied
  at::Tensor b_enc_l;
  at::Tensor input_l;  // sum over rows of the gradient of <x row, W_enc row>: b_dec's share
};

// What learns from the entries of codes, and how an entry z depends on the input. Gated
// dictionaries (B7) have two such paths; every other one has this one: z = <x row, W_enc row> +
// b_enc.
struct CodePath {
  at::Tensor gain_l = {};            // f32 [l]: dz by that product; undefined = 1
  bool decoder = true, bias = true;  // W_dec and b_enc learn
};

struct RowGradientArgs {
  const LatentCodes& codes;
  const at::Tensor& x_bd;  // as in EncodeArgs
  const at::Tensor& g_bd;  // dL/d x_hat; undefined = 0, where the decoder does not learn
  const at::Tensor& w_dec_ld;
  double l1 = 0;  // adds l1 * sum z |w_dec row|
  CodePath path = {};
};

// A parameter with a row per latent and what the optimiser keeps of it (undefined where it keeps
// nothing); w [l, d] or, of biases, [l].
struct Parameter {
  at::Tensor w, m, v;
};

class Screen;

// The latents that a rank updates. `last_step_l`: i64, the step of each row's last update; only
// where the optimiser is lazy.
struct LatentRows {
  Parameter w_enc, w_dec, b_enc;  // w_dec.w is w_enc.w when the decoder is tied
  at::Tensor last_step_l;
  Screen* screen = nullptr;  // of the encoder rows: told of those that change
  int64_t first = 0;         // row 0's number there
  bool tied() const { return w_dec.w.is_same(w_enc.w); }
};

// Codes and the two row sets whose outer products are a gradient: of the reconstruction, or of
// AuxK's.
struct GradientSource {
  const LatentCodes& codes;
  const at::Tensor& x_bd;  // as in EncodeArgs
  const at::Tensor& g_bd;  // dL/d x_hat, as in RowGradientArgs
  double factor = 1;       // of all that comes from here
  double l1 = 0;           // adds l1 * sum z |w_dec row|
  at::Tensor latent_c =
      {};  // i64 ascending: the latent of each list of `codes`; undefined = itself
  CodePath path = {};
};

struct RowPassResult {
  int64_t skipped = 0;  // latents whose gradient was not finite; they are left alone
  double square = 0;    // sum of the squares of all gradients
  // -sum of RowGradients::input_l times the encoder row before its update: fp64, or i64 with
  // UpdateArgs::b_dec_up, which each term is then multiplied by
  at::Tensor b_dec_d;
};

struct KernelSet {
  std::string_view name, summary;
  // Exact top k' of v = x W_enc^T + b_enc for every row. B x l never exists.
  Candidates (*topk)(const EncodeArgs&, int64_t k);
  // All entries of v above `threshold`, which is not negative (0: relu).
  Codes (*above)(const EncodeArgs&, float threshold);
  // Lists of `parts` shards, each [slot, c] best first and padded with -inf: per row the value of
  // the k-th best entry (tau) and its position part * c + place (cut); among equal values lower
  // positions win. Fewer than k real entries: tau = -inf, cut = kCutAll.
  void (*kth)(const at::Tensor& values_psc, int64_t k, at::Tensor& tau_s, at::Tensor& cut_s);
  // Candidates that beat (tau, cut) and are positive. `first` = part * c: the position of place 0.
  Codes (*keep)(const Candidates&, int64_t latents, const at::Tensor& tau_b,
                const at::Tensor& cut_b, int64_t first);
  // sum over entries of value * w_dec row: [b, d].
  at::Tensor (*decode)(const Codes&, const at::Tensor& w_dec_ld);
  // The same in fixed point (fixed_point.h): sums of value * w_dec row * up, each term rounded;
  // i64.
  at::Tensor (*decode_fixed)(const Codes&, const at::Tensor& w_dec_ld, double up);
  LatentCodes (*by_latent)(const Codes&);
  // <row of x, row of w> of each entry, in the order of the entries: [nnz].
  at::Tensor (*products)(const Codes&, const at::Tensor& x_bd, const at::Tensor& w_ld);
  void (*row_gradients)(const RowGradientArgs&, const RowGradients&);
  // One step on the rows of w with gradient g. A row whose gradient is not finite is left alone,
  // moments too; returns how many there were. `skipped_l`: i64, where the optimiser is lazy: steps
  // without gradient since the row's last update, -1 = leave it alone.
  int64_t (*update_rows)(Parameter&, const at::Tensor& g, const at::Tensor& skipped_l,
                         const UpdateArgs&);
  // Gradients and update in one pass over the latents, no gradient tensor.
  // The same step as row_gradients() of every source and update_rows(). `update.unit_rows` is for
  // w_dec alone.
  RowPassResult (*row_pass)(std::span<const GradientSource>, LatentRows&, const UpdateArgs& update);
};

inline constexpr int64_t kCutAll = 0xFFFFFFFEll;        // every real entry is selected
inline constexpr int64_t kCutTruncated = 0xFFFFFFFFll;  // the lists were too short to tell

std::span<const KernelSet> all_kernel_sets();
// "cpu" for CPU tensors, "tensor" for others, unless use_kernels() named one.
const KernelSet& kernels_for(const at::Tensor& like);
// From here on, for the whole process, this set for every tensor; it must fit their device. nullptr
// = none in particular.
void use_kernels(const KernelSet* set);

extern const KernelSet kCpuKernels;
extern const KernelSet kTensorKernels;

}  // namespace megadict
