// The points of a sweep. A grid is an INI file in which a value may be a list,
//
//   [model]
//   k = 16, 32, 64            ; an axis: every value with every value of the other axes
//   [points]
//   small = model.n_latents=4096 optim.lr=1e-3     ; a listed point: with every value of the axes
//
// and `--set model.k=16,32,64`, which replaces the file's axis of that name. A name with one value
// is the same at all points; a value with commas of its own stands between double quotes.
#pragma once

#include <string>
#include <vector>

#include "app/settings.h"

namespace megadict {

struct GridValue {
  std::string name, value;
  std::string where;  // "grids/k.ini:7", "--set"
};

struct GridAxis {
  std::string name;
  std::vector<std::string> values;
  std::string where;
};

struct ListedPoint {
  std::string name;
  std::vector<GridValue> values;
};

struct Grid {
  std::vector<GridValue> common;  // one value each
  std::vector<GridAxis> axes;     // the first varies slowest
  std::vector<ListedPoint> listed;
};

// One run of the sweep.
struct SweepPoint {
  std::string name;               // of its folder: the same whatever else the grid holds
  std::vector<GridValue> values;  // what makes it this point, as a user would type it
  Settings settings;              // checked, all but run.dir
};

// Exit 2 (agreed), naming file and line, for what is no grid.
Grid read_grid(const std::string& path);

// "model.k=16,32" after --set.
void add_to_grid(Grid& grid, const std::string& text);

// Every point with its settings: `base` and what the grid says; the command line in `base` wins
// over common values. Exit 2 (agreed): no point, an unknown name, one that a sweep sets itself or
// that is both an axis and on the command line, a value or combination that is not allowed, two
// points alike.
std::vector<SweepPoint> points_of(const Grid& grid, const Settings& base);

// Of a folder, from what the user called it and what it stands for: "model.k=16_optim.lr=0.001",
// without what shells and file systems dislike.
std::string point_name(const std::string& listed, const std::string& key);

}  // namespace megadict
