// Loops over one row of d floats, compiled for several instruction sets and picked at run time.
// Sums run in a fixed order, so that equal input gives equal bits with one instruction set.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/isa.h"
#include "kernels/kernel_set.h"

namespace megadict {

double dot(const float* a, const float* b, int64_t d);
void add_scaled(float* y, float factor, const float* x, int64_t d);  // y += factor * x
// y += sum of factor[i] * x[i], four rows at once.
void add_scaled4(float* y, const float* factor, const float* const* x, int64_t d);

// y += factor * x, each product rounded to an integer (fixed_point.h).
void add_fixed(int64_t* y, double factor, const float* x, int64_t d);

// Numbers of UpdateArgs that a row's loop needs.
struct RowUpdate {
  OptimiserKind kind;
  float beta1, beta2, eps, scale;
  float rate;  // lr / (1 - beta1^t); lr where there is no first moment
  float root;  // 1 / sqrt(1 - beta2^t)
  bool unit_rows;
};
RowUpdate row_update(const UpdateArgs& args);
// One step on a row of d floats with gradient g; `along` = <g, w> is removed from it first (0:
// nothing). `decay`: of v before this step's gradient. m, v are not touched where unused.
void update_row(float* w, const float* g, float* m, float* v, int64_t d, float along, float decay,
                const RowUpdate& update);
void scale_to_unit(float* w, int64_t d);  // a zero row stays

float largest_magnitude(const float* x, int64_t d);  // not finite where an element is not
// Whether more than half of the elements that are not zero round to zero at that scale: what is
// left says too little of the row.
bool mostly_lost(const float* x, int64_t d, float inverse);
// q = x * inverse, rounded; the rest of q is left. Returns the sum of q.
int64_t quantise(const float* x, int64_t d, float inverse, int8_t* q);
// Sums of fourth powers of x * inverse: of the values, and of the powers of two they begin with.
struct Fourths {
  float values, powers;
};
// The nearest bf16 numbers (ties to even) of finite values.
Fourths to_bf16(const float* x, int64_t d, float inverse, uint16_t* out);

// One version of the loops; the functions above call the one in use.
struct VectorOps {
  Isa isa;
  double (*dot)(const float*, const float*, int64_t);
  void (*add_scaled)(float*, float, const float*, int64_t);
  void (*add_scaled4)(float*, const float*, const float* const*, int64_t);
  void (*add_fixed)(int64_t*, double, const float*, int64_t);
  void (*adam_row)(float* w, const float* g, float* m, float* v, int64_t d, float along,
                   const RowUpdate&);
  void (*adam_b1_0_row)(float* w, const float* g, float* v, int64_t d, float along, float decay,
                        const RowUpdate&);
  void (*sign_row)(float* w, const float* g, int64_t d, float along, float rate);
  float (*largest_magnitude)(const float*, int64_t);
  bool (*mostly_lost)(const float*, int64_t, float);
  int64_t (*quantise)(const float*, int64_t, float, int8_t*);
  Fourths (*to_bf16)(const float*, int64_t, float, uint16_t*);
};
std::span<const VectorOps> all_vector_ops();  // best first, scalar last
const VectorOps& best_vector_ops(Isa isa = isa_in_use());

}  // namespace megadict
