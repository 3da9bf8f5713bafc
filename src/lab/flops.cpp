#include "lab/flops.h"

namespace megadict {

namespace {

// Samples seen, in units of the data set: n_eff times n of the paper.
int64_t samples_seen(const FlopShape& s, int64_t steps) {
  return steps * s.batch;
}

int64_t of_dictionary(const FlopShape& s, int64_t times) {
  return s.learns_dictionary ? times * s.width * s.latents : 0;
}

}  // namespace

int64_t sae_training_flops(const FlopShape& s, int64_t steps, FlopMode mode) {
  const int64_t m = s.width, n = s.latents, mn = m * n;
  if (mode == FlopMode::consistent)
    return steps * (s.batch * (8 * mn + 3 * n) + 2 * (mn + n) + of_dictionary(s, 3));
  const int64_t forward = 2 * mn + n + 2 * mn + of_dictionary(s, 1);                        // (24)
  const int64_t backward = n + (2 * mn + n) + 2 * mn + 2 * (mn + n) + of_dictionary(s, 2);  // (25)
  return (forward + backward) * samples_seen(s, steps);                                     // (23)
}

int64_t mlp_training_flops(const FlopShape& s, int64_t steps, FlopMode mode) {
  const int64_t m = s.width, n = s.latents, h = s.hidden, mn = m * n, mh = m * h, hn = h * n;
  if (mode == FlopMode::consistent)
    return steps * (s.batch * (4 * mh + 4 * hn + 4 * mn + 3 * h + 3 * n) + 2 * (mh + h + hn + n) +
                    of_dictionary(s, 3));
  const int64_t forward = 2 * mh + h + 2 * hn + n + 2 * mn + of_dictionary(s, 1);  // (28)
  const int64_t backward = n + (2 * hn + n) + h + (2 * mh + h) + 2 * mn + 2 * (mh + h + hn + n) +
                           of_dictionary(s, 2);          // (29)
  return (forward + backward) * samples_seen(s, steps);  // (27)
}

int64_t coding_training_flops(const FlopShape& s, int64_t steps, FlopMode mode) {
  const int64_t m = s.width, n = s.latents, mn = m * n;
  if (mode == FlopMode::consistent)
    return steps * (3 * s.batch * (2 * mn + n) + (2 * m * s.batch + n * s.batch) + n * s.batch +
                    of_dictionary(s, 10));
  const int64_t forward = of_dictionary(s, 3) + n + 2 * mn;                 // (19)
  const int64_t loss = 2 * m * s.batch + n * s.batch;                       // (20)
  const int64_t update = n * s.batch + of_dictionary(s, 1);                 // (22)
  return (forward + loss + 2 * forward + update) * samples_seen(s, steps);  // (18), (21)
}

int64_t sae_inference_flops(const FlopShape& s) {
  const int64_t mn = s.width * s.latents;
  return (2 * mn + s.latents + 2 * mn) * s.samples;
}

int64_t mlp_inference_flops(const FlopShape& s) {
  const int64_t n = s.latents, h = s.hidden;
  return (2 * s.width * h + h + 2 * h * n + n + 2 * n * s.width) * s.samples;
}

int64_t coding_inference_flops(const FlopShape& s) {
  const int64_t mn = s.width * s.latents;
  return of_dictionary(s, 3) + s.latents * s.samples + 2 * mn * s.samples;
}

int64_t ito_flops(const FlopShape& s, int64_t iterations) {
  const int64_t mn = s.width * s.latents;
  return s.samples * ((mn + s.latents) + iterations * (4 * mn + 2 * s.width + 11 * s.latents));
}

}  // namespace megadict
