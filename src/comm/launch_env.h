// What the environment says about how this process was started; it labels logs and guards against
// a launcher that MPI does not understand. Ranks come from MPI.
#pragma once

#include <string>
#include <vector>

namespace megadict {

// True where any launcher left its mark, or MEGADICT_MPI=1.
bool launcher_present();
// "srun", "mpirun" or "none".
std::string launcher_name();
// "NAME=value" of the variables that change how a run behaves.
std::vector<std::string> launch_settings();

// Exit 2 if srun started several tasks and MPI sees one: each would be a run of its own, all
// writing to the same folder. With `ranks` 0 (before MPI_Init) it judges by srun's variables alone,
// and also refuses PMI-2 for an Open MPI, which would end in MPI_Init with pages of text.
void guard_against_blind_srun(int ranks);

// Before MPI_Init, for a process that no launcher of Open MPI's made: lets it start alone, without
// the helper daemon that wants ssh.
void prepare_mpi_alone();

}  // namespace megadict
