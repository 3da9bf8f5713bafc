// megadict train: one dictionary on the mesh of all ranks (training.h).
#include "app/commands.h"
#include "app/fields.h"
#include "app/options.h"
#include "app/training.h"
#include "comm/watchdog.h"

namespace megadict {

namespace {

OptionSet options(Config& config) {
  return {.command = "train",
          .summary = "Trains one dictionary on the mesh of all ranks; resumes, logs, evaluates.",
          .fields = fields_of(config),
          .config_file = true,
          .required = {"data.path", "run.dir"}};
}

}  // namespace

std::string help_train() {
  Config config;
  return help_text(options(config));
}

int run_train(Launch& launch, const Args& args) {
  Settings settings;
  settings.sources = read_options(options(settings.config), args);
  check_config(settings.config);
  start_watchdog(settings.config.debug);
  FolderLock lock;
  return static_cast<int>(train_dictionary(launch, settings, args, lock));
}

}  // namespace megadict
