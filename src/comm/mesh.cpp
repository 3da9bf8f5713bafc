#include "comm/mesh.h"

#include <fmt/format.h>

#include "base/error.h"

namespace megadict {

namespace {

// "1x6, 2x3, 3x2, 6x1"
std::string possible_meshes(int ranks) {
  std::string list;
  for (int data = 1; data <= ranks; ++data)
    if (ranks % data == 0)
      list += fmt::format("{}{}x{}", list.empty() ? "" : ", ", data, ranks / data);
  return list;
}

[[noreturn]] void refuse_mesh(const std::string& what, int ranks) {
  fail_agreed(ExitCode::usage, what,
              fmt::format("mesh.data x mesh.feature may be {}", possible_meshes(ranks)));
}

}  // namespace

std::string Mesh::name() const {
  return fmt::format("{}x{}", data_size(), feature_size());
}

double communication_seconds(const Mesh& mesh) {
  const double shared = mesh.sweep != nullptr ? mesh.sweep->seconds() : 0;
  return mesh.world->seconds() + mesh.feature->seconds() + mesh.data->seconds() + shared;
}

MeshConfig resolve_mesh(const MeshConfig& config, int ranks) {
  if (config.data < 0 || config.feature < 0)
    refuse_mesh(fmt::format("mesh.data {} and mesh.feature {} must be 0 (auto) or more",
                            config.data, config.feature),
                ranks);
  MeshConfig mesh = config;
  for (const auto& [given, name] : {std::pair{mesh.data, "data"}, {mesh.feature, "feature"}})
    if (given > 0 && ranks % given != 0)
      refuse_mesh(fmt::format("mesh.{} {} does not divide {} ranks", name, given, ranks), ranks);
  if (mesh.feature == 0) mesh.feature = mesh.data == 0 ? ranks : ranks / mesh.data;
  if (mesh.data == 0) mesh.data = ranks / mesh.feature;
  if (mesh.data * mesh.feature != ranks)
    refuse_mesh(fmt::format("mesh.data {} x mesh.feature {} = {} does not make {} ranks", mesh.data,
                            mesh.feature, mesh.data * mesh.feature, ranks),
                ranks);
  return mesh;
}

Mesh make_mesh(Communicator& world, const MeshConfig& config) {
  const MeshConfig sizes = resolve_mesh(config, world.size());
  Mesh mesh;
  mesh.world = &world;
  mesh.data_index = world.rank() / sizes.feature;
  mesh.feature_index = world.rank() % sizes.feature;
  mesh.feature = world.split(mesh.data_index, mesh.feature_index, "feature");
  mesh.data = world.split(mesh.feature_index, mesh.data_index, "data");
  return mesh;
}

}  // namespace megadict
