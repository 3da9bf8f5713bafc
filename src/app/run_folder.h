// The folder of a run: may it be used, what does it resume from, and the files that say what ran
// (config.json, env.json, ranks.txt).
#pragma once

#include <string>

#include "app/settings.h"
#include "comm/launch.h"

namespace megadict {

// The checkpoint that run.resume asks for, "" = a fresh start. Exit 2 (agreed) where `never` meets
// a folder that holds a run, or PATH is no checkpoint.
std::string resume_source(const RunConfig& run);

// The config.json that belongs to a checkpoint folder; "" where there is none.
std::string config_of_checkpoint(const std::string& checkpoint);

// Creates the folder and writes the three files. Collective.
void write_run_facts(const Settings& settings, Launch& launch);

}  // namespace megadict
