// The folder of a run: what is in it already, where a run resumes, and what is written before the
// first step (config.json, env.json, ranks.txt). Only rank 0 reads and writes.
#pragma once

#include <string>
#include <vector>

#include "app/commands.h"
#include "app/settings.h"
#include "comm/launch.h"
#include "io/file.h"

namespace megadict {

// Where the run begins; the same on every rank.
struct StartPoint {
  std::string checkpoint;   // folder; "" = a fresh start
  std::string config_path;  // config.json of the run that wrote it
  std::string config_text;
};

// What run.resume asks for. `lock`: of run.dir, on rank 0; taken here where the folder exists and
// the caller does not hold it. Exit 2: another process works in the folder; `never` and it holds a
// run; a path that is no checkpoint, or another run's while run.dir holds one; something else has
// the name of what a run writes; a folder that cannot be written. Exit 3: a checkpoint whose run
// has no config.json, a log that cannot be read. Writes nothing. Collective over world.
StartPoint find_start(Communicator& world, const RunConfig& run, FolderLock& lock);

// Settings that the checkpoint's run resolved are taken over; then every difference is refused or
// printed by its class (saved_config.h). Does nothing for a fresh start.
void adopt_start(const StartPoint& start, Settings& settings);
void report_differences(const StartPoint& start, const Settings& settings);

// Makes the folder where it is not there, and holds it. Collective over world.
void write_run_folder(Launch& launch, const Settings& settings, const Args& args, FolderLock& lock);

}  // namespace megadict
