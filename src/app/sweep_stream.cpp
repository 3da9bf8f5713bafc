#include "app/sweep_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "app/fields.h"
#include "app/training.h"
#include "base/error.h"
#include "comm/mesh.h"

namespace megadict {

namespace {

// What a row goes through on its way into a dictionary (scale, mean) is each point's own.
constexpr std::string_view kStreamFields[] = {
    "data.path",   "data.stage_dir",      "data.batch_size", "data.micro_batch_size",
    "data.tokens", "data.shuffle_buffer", "data.last_batch", "data.max_norm_multiple",
    "run.seed",    "mesh.data",           "mesh.feature",
};

std::vector<Field> stream_fields(Config& config) {
  std::vector<Field> fields = fields_of(config);
  std::erase_if(fields, [](const Field& field) {
    return std::find(std::begin(kStreamFields), std::end(kStreamFields), field.name) ==
           std::end(kStreamFields);
  });
  return fields;
}

// This rank's part of the rows, from any step on.
SharedStream::Open reader(Launch& group, const Settings& settings) {
  const auto rows = std::make_shared<const TrainingRows>(open_training_rows(group, settings));
  const MeshConfig mesh = resolve_mesh(settings.config.mesh, group.facts().ranks);
  const int rank = group.facts().rank, queue = settings.config.data.queue;
  return [rows, mesh, rank, queue](int64_t first_step) {
    return std::make_unique<BatchStream>(rows->index, rows->plan, mesh.data, mesh.feature,
                                         rank / mesh.feature, rank % mesh.feature, first_step,
                                         queue);
  };
}

SharedStream::Open reader_or_error(Launch& group, const Settings& settings) {
  try {
    return reader(group, settings);
  } catch (const Error& error) {
    if (!error.agreed() && group.facts().ranks > 1) throw;
    return [error](int64_t) -> std::unique_ptr<BatchStream> { throw error; };
  }
}

}  // namespace

void refuse_other_streams(const std::vector<SweepPoint>& points) {
  Config first = points.front().settings.config;
  const std::vector<Field> fields = stream_fields(first);
  for (const SweepPoint& point : points) {
    Config other = point.settings.config;
    const std::vector<Field> others = stream_fields(other);
    for (size_t i = 0; i < fields.size(); ++i) {
      const std::string before = value_text(fields[i]), after = value_text(others[i]);
      if (before != after)
        fail_agreed(
            ExitCode::usage,
            fmt::format("sweep.share_stream: point {} has {} = {}, point {} has {}", point.name,
                        fields[i].name, in_quotes(after), points.front().name, in_quotes(before)),
            "a sweep of its own for each value, or without sweep.share_stream");
    }
  }
}

StreamGroups::StreamGroups(Launch& whole, Launch& group, int index, const Settings& settings)
    : across_(whole.world().split(group.facts().rank, index, "sweep")) {
  if (index == 0) open_ = reader_or_error(group, settings);
}

std::unique_ptr<SharedStream> StreamGroups::next_wave() {
  return std::make_unique<SharedStream>(*across_, open_);
}

}  // namespace megadict
