// Linked into sanitizer builds only. Open MPI unloads its plugins before the process ends, and the
// leak check cannot name, hence not suppress, what an unloaded library allocated. So none is
// unloaded here.
extern "C" __attribute__((visibility("default"))) int dlclose(void*) {
  return 0;
}
