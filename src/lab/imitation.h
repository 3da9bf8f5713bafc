// Encoders that learn somebody else's codes: how near one pass of an encoder comes to what an
// optimiser finds for the same dictionary.
#pragma once

#include "lab/methods.h"

namespace megadict {

// Steps of FISTA that make the codes to imitate, and the test codes beside them.
inline constexpr int64_t kTeacherSteps = 500;

// The dictionary is the true one (settings.known_dictionary) or DL-FISTA's (C8b); an encoder with
// biases and settings.hidden is trained on the mean of (z - s)^2, s being FISTA's codes of the
// training half. Exit 4 with the step where the loss is not finite.
Learned learn_imitation(const LabProblem& problem, const MethodSettings& settings);

}  // namespace megadict
