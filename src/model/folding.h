// Dictionaries as files hold them, and how one becomes another that computes the same (F1 to F4):
// a rule each, in fp64, row by row.
//
//   F1  an activation the target lacks becomes jumprelu: z = relu(h) where h > threshold
//   F2  the normalisation goes into the weights
//   F3  decoder rows to unit length
//   F4  no b_dec is subtracted from the input
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>
#include <vector>

#include "data/normalization.h"

namespace megadict {

// F2. unit: the decoder keeps its norm, latents become z / s. trained: latents keep their size,
// W_enc *= s, W_dec /= s; s is the normalisation's scale.
enum class ExportScale { unit, trained };
// Exit 2 for another word.
ExportScale export_scale_named(const std::string& name);
std::string_view name_of(ExportScale scale);

// A whole dictionary with one linear encoder and one linear decoder; of the tensors, those that its
// activation needs (latent_tensors()), the others undefined.
//
//   u = x - b_dec;  h = u W_enc^T + b_enc
//   relu, topk          z = act(h)
//   batchtopk, jumprelu z = relu(h) where h > threshold
//   prolu               z = relu(h - b_enc) where h > 0
//   gated               g = u W_enc^T;  z = relu(g e^r_mag + b_mag) where g + b_gate > 0
struct PlainDictionary {
  std::string encoder = "linear", decoder = "linear";  // others hold no tensors: only to be refused
  std::string activation;
  int64_t n = 0, d = 0;
  int64_t k = 0;                    // of topk; of others 0 where nobody knows it
  at::Tensor w_enc_nd, w_dec_nd;    // fp32, one row per latent; of a tied one two tensors
  at::Tensor b_enc_n, threshold_n;  // fp32; batchtopk's thresholds are all equal
  at::Tensor r_mag_n, b_gate_n, b_mag_n;
  at::Tensor b_dec_d;
  Normalization normalization;
  bool subtracts_b_dec = true;   // false: u = x
  bool selects_by_norm = false;  // h |w_dec| is what is selected, or compared with a threshold
  int64_t step = 0, tokens = 0;
  std::string source_model, hook;  // "" where unknown
  int64_t layer = -1;
};

struct LatentTensor {
  std::string_view name;
  at::Tensor PlainDictionary::*member;
  bool like_h;  // it is added to h or compared with it: it scales as h does
};
// What an activation needs beside W_enc, W_dec and b_dec. Exit 1 for an unknown activation.
std::vector<LatentTensor> latent_tensors(const std::string& activation);
// All tensors of a dictionary by their names.
struct PlainTensor {
  std::string_view name;
  at::Tensor PlainDictionary::*member;
};
std::vector<PlainTensor> tensors_of(const std::string& activation);

inline constexpr double kNoLeastThreshold = -1e38;

// What the result is to be.
struct FoldTo {
  std::string activation;  // the dictionary's own, or "jumprelu"
  ExportScale scale = ExportScale::unit;
  bool unit_rows = false;  // F3; of topk and batchtopk it changes what is selected
  bool subtracts_b_dec = true;
  double least_threshold = kNoLeastThreshold;  // some formats cannot say 0; far below any code
};

// The same function of raw rows, without normalisation. Its tensors are new ones, on the CPU; of a
// dictionary that is moved in, each goes as its copy comes.
PlainDictionary folded(PlainDictionary plain, const FoldTo& to);

// The same function as a dictionary that subtracts b_dec and selects by h itself: how what a file
// says becomes what this program computes. Changes the tensors in place; the normalisation stays.
PlainDictionary absorbed(PlainDictionary plain);

// Largest | |w_dec| - 1 |.
double off_unit(const PlainDictionary& plain);

}  // namespace megadict
