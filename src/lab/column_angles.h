// Angles between a dictionary's columns as a part of the loss (L2f).
#pragma once

#include <vector>

#include "lab/layers.h"

namespace megadict {

// Mean over i != j of cos^2(d_i, d_j) of unit columns: (|D D^T|_F^2 - N) / (N (N - 1)), so that
// N x N cosines are never made.
template <class T>
double mean_squared_cosine(const Learnt<T>& d);

// Adds `factor` times that mean's gradient to d.gradient.
template <class T>
void add_angle_gradient(Learnt<T>& d, double factor);

// Shares of the cosines of all pairs i < j of `unit_rows` ([columns][entries], length 1) in `bins`
// equal parts of [-1, 1].
std::vector<double> cosine_histogram(const std::vector<std::vector<double>>& unit_rows, int bins);

}  // namespace megadict
