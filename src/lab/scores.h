// How near codes and dictionaries come to the true ones (items D1, D3, D4, D10).
#pragma once

#include <ATen/core/Tensor.h>

#include "lab/layers.h"

namespace megadict {

// f32 [samples, features], and the columns as rows, [cols, rows].
at::Tensor rows_of(const Tiles<float>& tiles);
at::Tensor columns_of(const Learnt<float>& dictionary);

// D1: mean |Pearson| of true and learned columns over samples, matched one to one for the largest
// sum; a column of variance below 1e-12 scores 0.
double latent_mcc(const Tiles<float>& truth, const Tiles<float>& codes);
// D1 over the entries of the dictionaries' columns, so with the means of few numbers removed; and
// the same with cosines.
double dictionary_mcc(const Learnt<float>& truth, const Learnt<float>& learnt);
double dictionary_cosine(const Learnt<float>& truth, const Learnt<float>& learnt);
// The two of a dictionary with N(0, 1) columns of that shape, the mean of ten draws.
struct RandomBaseline {
  double mcc = 0, cosine = 0;
};
RandomBaseline random_baseline(const Learnt<float>& truth, int64_t latents, uint64_t seed);
// Pearson's, of column `a` of one and column `b` of another set of codes; 0 where one is still.
double correlation(const Tiles<float>& first, int64_t a, const Tiles<float>& second, int64_t b);
// D3: mean signed Pearson of columns of the same index.
double known_codes_score(const Tiles<float>& truth, const Tiles<float>& codes);
// D4: the share of codes above `threshold` in absolute value.
double l0_fraction(const Tiles<float>& codes, double threshold);
// D10 of each column: the root of the sum of its squared cosines with the others.
std::vector<double> superposition(const Learnt<float>& dictionary);

}  // namespace megadict
