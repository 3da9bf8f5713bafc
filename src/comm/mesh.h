// The process mesh: P = D x F ranks. The batch is split over the data axis (size D), the latents
// over the feature axis (size F). Rank = data_index * F + feature_index, so that members of one
// feature row (which talk most) are neighbours.
#pragma once

#include <memory>
#include <string>

#include "comm/communicator.h"

namespace megadict {

struct MeshConfig {
  int data = 0;     // 0 = auto: feature axis first
  int feature = 0;  // 0 = auto
  // What crosses the data axis: auto | gradients | tokens (train/exchange.h, token_exchange.h).
  std::string exchange = "auto";
  bool overlap = false;  // messages move while micro-batches are encoded (train/step.h)
};

struct Mesh {
  Communicator* world = nullptr;          // not owned
  std::unique_ptr<Communicator> feature;  // same data_index; members share the same tokens
  std::unique_ptr<Communicator> data;     // same feature_index; members share the same latents
  // Equal ranks of a sweep's groups, where these share their rows; not owned.
  Communicator* sweep = nullptr;
  int data_index = 0, feature_index = 0;

  int data_size() const { return data->size(); }
  int feature_size() const { return feature->size(); }
  std::string name() const;  // "2x3": D x F
};

// This rank's, in calls of all of them: what its computing waits for.
double communication_seconds(const Mesh& mesh);

// Collective over world. Refuses (exit 2, agreed) a product that is not the number of ranks, with
// the products that are possible.
Mesh make_mesh(Communicator& world, const MeshConfig& config);

// D and F for `ranks` ranks; 0 = auto fills the feature axis first.
MeshConfig resolve_mesh(const MeshConfig& config, int ranks);

}  // namespace megadict
