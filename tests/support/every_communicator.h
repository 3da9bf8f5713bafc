#pragma once

#include <gtest/gtest.h>

#include <functional>

#include "comm/mesh.h"
#include "support/mpi_main.h"

namespace megadict {

// Runs `body` on the world and on the axes of all meshes of its ranks. Collective.
inline void on_every_communicator(const std::function<void(Communicator&)>& body) {
  Communicator& world = test_world();
  body(world);
  for (int data = 1; data <= world.size(); ++data) {
    if (world.size() % data != 0) continue;
    Mesh mesh = make_mesh(world, {data, world.size() / data});
    SCOPED_TRACE("mesh " + mesh.name());
    body(*mesh.feature);
    body(*mesh.data);
  }
}

}  // namespace megadict
