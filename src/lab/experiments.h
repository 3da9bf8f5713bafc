// The experiments, one file each or two (experiments_*.cpp); all_experiments() lists them.
#pragma once

#include "lab/experiment.h"

namespace megadict {

LabExperiment known_codes_experiment();       // E1, E9
LabExperiment known_dictionary_experiment();  // E2
LabExperiment unknown_experiment();           // E3
LabExperiment pursuits_experiment();          // C4 to C7
LabExperiment regimes_experiment();           // E4
LabExperiment frontier_experiment();          // E5
LabExperiment gram_experiment();              // E6
LabExperiment width_experiment();             // E7
LabExperiment bias_experiment();              // E8
LabExperiment topk_codes_experiment();        // C2
LabExperiment resampling_experiment();        // 10.1
LabExperiment connectors_experiment();        // H1 to H4
LabExperiment tied_experiment();              // L2c
LabExperiment sparse_weights_experiment();    // L2g

LabExperiment depth_experiment();          // L1
LabExperiment traditional_experiment();    // C8
LabExperiment variants_experiment();       // A3, L2e
LabExperiment architectures_experiment();  // L2d
LabExperiment scaling_experiment();        // K6, L2h
LabExperiment dead_experiment();           // K1
LabExperiment compositions_experiment();   // L2f
LabExperiment headline_experiment();       // every method's quality against its cost

// E5 on rows of a data set, where one is given.
std::vector<LabCell> row_frontier_cells(const LabScale& scale);
std::vector<LabRow> row_frontier_table(const LabResults& results);

}  // namespace megadict
