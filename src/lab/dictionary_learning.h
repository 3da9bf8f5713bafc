// Dictionary learning by alternation on the small problems: codes by FISTA, atoms by block
// coordinates (C8b); and one-hot codes, which is K-means (C9).
#pragma once

#include "lab/layers.h"

namespace megadict {

// C7: min 1/2 |x - D s|^2 + lambda |s|_1, s >= 0, by `iterations` accelerated steps from zero, all
// samples at once.
void run_fista(const Learnt<float>& dictionary, const Tiles<float>& x, double lambda,
               int64_t iterations, Tiles<float>& codes);
// The objective, summed over samples.
double lasso_objective(const Learnt<float>& dictionary, const Tiles<float>& x, double lambda,
                       const Tiles<float>& codes);

// Block coordinates (Mairal et al. 2009): each atom in turn the best for the codes, the others
// fixed; one that no code uses becomes a sample, drawn by (seed, round). Unit columns stay unit.
void improve_atoms(const Tiles<float>& x, const Tiles<float>& codes, uint64_t seed, int64_t round,
                   int64_t passes, Learnt<float>& dictionary);

struct DlFistaSettings {
  int64_t latents = 16;
  int64_t rounds = 200, iterations = 30, passes = 3;
  double lambda = 0.05;
  uint64_t seed = 0;
};

// C8b. `objectives`, where asked for: before each round's new atoms.
Learnt<float> learn_by_fista(const Tiles<float>& x, const DlFistaSettings& settings,
                             std::vector<double>* objectives = nullptr);

// C9: k-means++ (Arthur and Vassilvitskii 2007), then Lloyd until no sample changes its centre.
struct KMeans {
  Learnt<float> centres;         // one a column
  std::vector<double> inertias;  // after each round
};
KMeans learn_by_kmeans(const Tiles<float>& x, int64_t centres, uint64_t seed);
// One-hot codes of the nearest centres.
Tiles<float> nearest_centres(const Learnt<float>& centres, const Tiles<float>& x);

}  // namespace megadict
