#include "comm/mesh.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "support/mpi_main.h"

namespace megadict {
namespace {

std::string refusal(const MeshConfig& config, int ranks) {
  try {
    resolve_mesh(config, ranks);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_TRUE(error.agreed());
    return error.line();
  }
  return "";
}

TEST(ResolveMesh, FillsTheFeatureAxisFirst) {
  for (const auto& [given, ranks, data, feature] : {std::tuple{MeshConfig{0, 0}, 6, 1, 6},
                                                    {MeshConfig{2, 0}, 6, 2, 3},
                                                    {MeshConfig{0, 2}, 6, 3, 2},
                                                    {MeshConfig{3, 2}, 6, 3, 2},
                                                    {MeshConfig{0, 0}, 1, 1, 1}}) {
    const MeshConfig mesh = resolve_mesh(given, ranks);
    EXPECT_EQ(mesh.data, data);
    EXPECT_EQ(mesh.feature, feature);
  }
}

TEST(ResolveMesh, RefusesWithWhatIsPossible) {
  const std::string hint = ". hint: mesh.data x mesh.feature may be 1x6, 2x3, 3x2, 6x1";
  EXPECT_EQ(refusal({2, 2}, 6), "mesh.data 2 x mesh.feature 2 = 4 does not make 6 ranks" + hint);
  EXPECT_EQ(refusal({0, 4}, 6), "mesh.feature 4 does not divide 6 ranks" + hint);
  EXPECT_EQ(refusal({5, 0}, 6), "mesh.data 5 does not divide 6 ranks" + hint);
  EXPECT_EQ(refusal({-1, 0}, 6), "mesh.data -1 and mesh.feature 0 must be 0 (auto) or more" + hint);
}

TEST(MakeMesh, PutsFeatureNeighboursNextToEachOther) {
  Communicator& world = test_world();
  for (int data = 1; data <= world.size(); ++data) {
    if (world.size() % data != 0) continue;
    const int feature = world.size() / data;
    const Mesh mesh = make_mesh(world, {data, feature});
    EXPECT_EQ(mesh.name(), fmt::format("{}x{}", data, feature));
    EXPECT_EQ(mesh.data_index * feature + mesh.feature_index, world.rank());
    EXPECT_EQ(mesh.feature->rank(), mesh.feature_index);
    EXPECT_EQ(mesh.data->rank(), mesh.data_index);
    EXPECT_EQ(mesh.feature->size(), feature);
    EXPECT_EQ(mesh.data->size(), data);
    // The sum of world ranks over an axis tells that its members are the right ones.
    int64_t row = world.rank(), column = world.rank();
    mesh.feature->all_reduce(view_of(&row, 1), ReduceOp::sum, "row");
    mesh.data->all_reduce(view_of(&column, 1), ReduceOp::sum, "column");
    int64_t expected_row = 0, expected_column = 0;
    for (int f = 0; f < feature; ++f) expected_row += mesh.data_index * feature + f;
    for (int d = 0; d < data; ++d) expected_column += d * feature + mesh.feature_index;
    EXPECT_EQ(row, expected_row);
    EXPECT_EQ(column, expected_column);
  }
}

TEST(MakeMesh, RefusesOnEveryRank) {
  EXPECT_THROW(make_mesh(test_world(), {test_world().size() + 1, 0}), Error);
}

}  // namespace
}  // namespace megadict
