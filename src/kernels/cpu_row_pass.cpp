// The latent-major pass on the CPU: gradients, optimiser and renormalisation of a latent while its
// rows are in cache, and the same update from gradient tensors.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "base/parallel_guard.h"
#include "kernels/cpu_kernels.h"
#include "kernels/screen.h"
#include "kernels/vector_ops.h"

namespace megadict {

namespace {

// Raw pointers of a Parameter; nullptr where it keeps nothing.
struct Rows {
  float *w, *m, *v;
  int64_t d;
  explicit Rows(const Parameter& p)
      : w(p.w.mutable_data_ptr<float>()),
        m(p.m.defined() ? p.m.mutable_data_ptr<float>() : nullptr),
        v(p.v.defined() ? p.v.mutable_data_ptr<float>() : nullptr),
        d(p.w.dim() > 1 ? p.w.size(1) : 1) {}

  void update(int64_t row, const float* g, float decay, const RowUpdate& args) const {
    const int64_t at = row * d;
    const double along = args.unit_rows ? dot(g, w + at, d) : 0;
    update_row(w + at, g, m ? m + at : nullptr, v ? v + at : nullptr, d, static_cast<float>(along),
               decay, args);
    if (args.unit_rows) scale_to_unit(w + at, d);
  }
};

// beta2^(skipped + 1): v's decay over the steps without gradient and this one.
float decay_after(int64_t skipped, const UpdateArgs& args) {
  return static_cast<float>(std::pow(args.beta2, static_cast<double>(skipped + 1)));
}

// The entries of one source by latent.
struct Lists {
  const int64_t* start;
  const int32_t* row;
  const float *value, *x, *g;
  const int64_t* latent;
  bool every_latent;  // list j is latent j
  int64_t lists;
  double factor, l1;
  const float* gain;
  bool decoder, bias;

  explicit Lists(const GradientSource& s)
      : start(s.codes.latent_start.const_data_ptr<int64_t>()),
        row(s.codes.row.const_data_ptr<int32_t>()),
        value(s.codes.value.const_data_ptr<float>()),
        x(s.x_bd.const_data_ptr<float>()),
        g(s.g_bd.defined() ? s.g_bd.const_data_ptr<float>() : nullptr),
        latent(s.latent_c.defined() ? s.latent_c.const_data_ptr<int64_t>() : nullptr),
        every_latent(!s.latent_c.defined()),
        lists(s.codes.latents),
        factor(s.factor),
        l1(s.l1),
        gain(s.path.gain_l.defined() ? s.path.gain_l.const_data_ptr<float>() : nullptr),
        decoder(s.path.decoder),
        bias(s.path.bias) {}

  // The list of latent j, or -1.
  int64_t list_of(int64_t j) const {
    if (every_latent) return j;
    const int64_t* found = std::lower_bound(latent, latent + lists, j);
    return found != latent + lists && *found == j ? found - latent : -1;
  }
};

// Gradient of one latent.
struct Gradient {
  std::vector<float> dec, enc;
  double bias = 0, input = 0;  // of b_enc, and RowGradients::input_l
  bool touched = false;
  Gradient(int64_t d, int64_t seen) : dec(static_cast<size_t>(d)), enc(static_cast<size_t>(seen)) {}

  void clear() {
    if (touched) {
      std::fill(dec.begin(), dec.end(), 0.0f);
      std::fill(enc.begin(), enc.end(), 0.0f);
    }
    bias = input = 0;
    touched = false;
  }

  // Four entries at a time: the sums stay in registers while four rows of x and g pass.
  void add(const Lists& from, int64_t latent, int64_t list, const float* w) {
    const auto d = static_cast<int64_t>(dec.size()), seen = static_cast<int64_t>(enc.size());
    const int64_t end = from.start[list + 1];
    const double norm = from.l1 != 0 ? std::sqrt(dot(w, w, d)) : 0;
    const double gain = from.gain != nullptr ? from.gain[latent] : 1;
    double z_sum = 0;
    for (int64_t e = from.start[list]; e < end; e += 4) {
      const int64_t count = std::min<int64_t>(4, end - e);
      const float *g[4] = {}, *x[4] = {};
      float z[4] = {}, dz[4] = {};
      for (int64_t i = 0; i < count; ++i) {
        if (from.g != nullptr) g[i] = from.g + static_cast<int64_t>(from.row[e + i]) * d;
        x[i] = from.x + static_cast<int64_t>(from.row[e + i]) * seen;
        const double of_g = from.g != nullptr ? dot(g[i], w, d) : 0;
        const double slope = from.factor * of_g + from.l1 * norm;
        z[i] = static_cast<float>(from.factor * from.value[e + i]);
        dz[i] = static_cast<float>(gain * slope);
        input += gain * slope;
        if (from.bias) bias += slope;
        z_sum += from.value[e + i];
      }
      if (from.decoder) add_rows(dec, z, g, count);
      add_rows(enc, dz, x, count);
      touched = true;
    }
    if (from.decoder && from.l1 != 0 && norm > 0)
      add_scaled(dec.data(), static_cast<float>(from.l1 * z_sum / norm), w, d);
  }

  // Tied rows have one gradient: enc's.
  void fold() {
    add_scaled(enc.data(), 1.0f, dec.data(), static_cast<int64_t>(enc.size()));
    std::fill(dec.begin(), dec.end(), 0.0f);
  }

  double square() const {
    if (!touched) return 0;
    const auto of = [](const std::vector<float>& g) {
      return dot(g.data(), g.data(), static_cast<int64_t>(g.size()));
    };
    return of(dec) + of(enc) + bias * bias;
  }

 private:
  static void add_rows(std::vector<float>& to, const float* factor, const float* const* rows,
                       int64_t count) {
    const auto d = static_cast<int64_t>(to.size());
    if (count == 4) return add_scaled4(to.data(), factor, rows, d);
    for (int64_t i = 0; i < count; ++i) add_scaled(to.data(), factor[i], rows[i], d);
  }
};

// The pass over all latents of a shard.
class RowPass {
 public:
  RowPass(std::span<const GradientSource> sources, LatentRows& rows, const UpdateArgs& args)
      : enc_(rows.w_enc),
        dec_(rows.w_dec),
        bias_(rows.b_enc),
        tied_(rows.tied()),
        last_(rows.last_step_l.defined() ? rows.last_step_l.mutable_data_ptr<int64_t>() : nullptr),
        screen_(rows.screen),
        first_(rows.first),
        args_(args),
        of_decoder_(row_update(args)) {
    UpdateArgs plain = args;
    plain.unit_rows = false;
    of_encoder_ = row_update(plain);
    for (const GradientSource& source : sources) sources_.emplace_back(source);
  }

  // One latent; adds to the block's sums.
  template <class Sum>
  void visit(int64_t j, Gradient& gradient, Sum* b_dec, RowPassResult& sums) {
    gradient.clear();
    for (const Lists& source : sources_)
      if (const int64_t list = source.list_of(j); list >= 0)
        gradient.add(source, j, list, dec_.w + j * dec_.d);
    if (!gradient.touched && last_ != nullptr) return;
    if (gradient.touched && tied_) gradient.fold();
    const double square = gradient.square();
    if (!std::isfinite(square * args_.gradient_scale * args_.gradient_scale)) {
      ++sums.skipped;
      return;
    }
    sums.square += square;
    if (gradient.input != 0) add_to_b_dec(b_dec, gradient.input, enc_.w + j * enc_.d);
    update(j, gradient);
  }

 private:
  void add_to_b_dec(double* b_dec, double input, const float* e) const {
    for (int64_t i = 0; i < enc_.d; ++i) b_dec[i] -= input * static_cast<double>(e[i]);
  }
  void add_to_b_dec(int64_t* b_dec, double input, const float* e) const {
    add_fixed(b_dec, -input * args_.b_dec_up, e, enc_.d);
  }

  void update(int64_t j, Gradient& gradient) {
    const int64_t skipped = last_ != nullptr ? args_.step - last_[j] - 1 : 0;
    const float decay = decay_after(skipped, args_);
    if (!tied_) dec_.update(j, gradient.dec.data(), decay, of_decoder_);
    enc_.update(j, gradient.enc.data(), decay, of_encoder_);
    if (screen_ != nullptr) screen_->refresh(first_ + j, enc_.w + j * enc_.d);
    const auto bias = static_cast<float>(gradient.bias);
    bias_.update(j, &bias, decay, of_encoder_);
    if (last_ != nullptr) last_[j] = args_.step;
  }

  Rows enc_, dec_, bias_;
  bool tied_;
  int64_t* last_;
  Screen* screen_;
  int64_t first_;
  UpdateArgs args_;
  RowUpdate of_decoder_, of_encoder_{};
  std::vector<Lists> sources_;
};

}  // namespace

namespace {

// `Sum`: double, or int64_t for fixed point.
template <class Sum>
RowPassResult pass_over(std::span<const GradientSource> sources, LatentRows& rows,
                        const UpdateArgs& args) {
  // Blocks depend on the size alone and are summed in order: the same bits for any threads.
  constexpr int64_t kBlocks = 256;
  const int64_t l = rows.w_enc.w.size(0), d = rows.w_enc.w.size(1);
  const int64_t block = std::max<int64_t>(1, (l + kBlocks - 1) / kBlocks);
  const int64_t blocks = (l + block - 1) / block;
  RowPass pass(sources, rows, args);
  at::Tensor b_dec = at::zeros({blocks, d}, c10::CppTypeToScalarType<Sum>::value);
  std::vector<RowPassResult> sums(static_cast<size_t>(blocks));
  const auto visit = [&](int64_t i, Gradient& gradient) {
    for (int64_t j = i * block; j < std::min(l, (i + 1) * block); ++j)
      pass.visit(j, gradient, b_dec.mutable_data_ptr<Sum>() + i * d, sums[static_cast<size_t>(i)]);
  };
  ParallelGuard guard;
#pragma omp parallel
  {
    std::optional<Gradient> gradient;
    guard.run([&] { gradient.emplace(rows.w_dec.w.size(1), d); });
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < blocks; ++i) guard.run([&] { visit(i, *gradient); });
  }
  guard.rethrow();
  RowPassResult total;
  total.b_dec_d = b_dec.sum(0);
  for (const RowPassResult& one : sums) {
    total.skipped += one.skipped;
    total.square += one.square;
  }
  return total;
}

}  // namespace

RowPassResult cpu_row_pass(std::span<const GradientSource> sources, LatentRows& rows,
                           const UpdateArgs& args) {
  return args.b_dec_up > 0 ? pass_over<int64_t>(sources, rows, args)
                           : pass_over<double>(sources, rows, args);
}

int64_t cpu_update_rows(Parameter& parameter, const at::Tensor& g, const at::Tensor& skipped_l,
                        const UpdateArgs& args) {
  const int64_t rows = parameter.w.size(0);
  const Rows all(parameter);
  const float* g_all = g.const_data_ptr<float>();
  const int64_t* skipped = skipped_l.defined() ? skipped_l.const_data_ptr<int64_t>() : nullptr;
  const RowUpdate update = row_update(args);
  int64_t refused = 0;
#pragma omp parallel for schedule(static) reduction(+ : refused)
  for (int64_t row = 0; row < rows; ++row) {
    const float* g_row = g_all + row * all.d;
    const double square = dot(g_row, g_row, all.d);
    if (skipped != nullptr && skipped[row] < 0) continue;
    if (std::isfinite(square * args.gradient_scale * args.gradient_scale))
      all.update(row, g_row, decay_after(skipped != nullptr ? skipped[row] : 0, args), update);
    else
      ++refused;
  }
  return refused;
}

}  // namespace megadict
