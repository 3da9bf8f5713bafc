// B11: codes by the locally competitive algorithm on the small problems, all samples at once, and
// the dictionary learnt with them. eval/pursuit.h has the settings, and the same row by row.
#pragma once

#include "eval/pursuit.h"
#include "lab/layers.h"

namespace megadict {

// What the way back through the steps needs.
template <class T>
struct LcaTrace {
  std::vector<Tiles<T>> u;           // before each step
  std::vector<std::vector<T>> step;  // of each sample, as it was taken
};

// Unit columns. Ends for all samples at once, where no J falls by settings.fall.
template <class T>
void run_lca(const Learnt<T>& dictionary, const Tiles<T>& x, double lambda,
             const LcaSettings& settings, Tiles<T>& codes, LcaTrace<T>* trace = nullptr);

// D5, `nmse`, of LCA's codes, and its gradient into dictionary.gradient: the codes held, or through
// every step that led to them, whose lengths are held. ista only with held codes.
template <class T>
double lca_gradient(Learnt<T>& dictionary, const Tiles<T>& x, double lambda,
                    const LcaSettings& settings, bool whole_loop);

struct DlLcaSettings {
  int64_t latents = 16;
  int64_t batch = 128, steps = 2000;  // samples in turn; Adam
  double rate = 3e-3, lambda = 0.1;
  LcaSettings lca = {};
  bool whole_loop = false;
  uint64_t seed = 0;
};

// `losses`, where asked for: nmse of each step. Exit 4 with the step where it is not finite.
Learnt<float> learn_by_lca(const Tiles<float>& x, const DlLcaSettings& settings,
                           std::vector<double>* losses = nullptr);

}  // namespace megadict
